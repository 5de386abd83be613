"""Runs that a signal ends: what is in the file then, and that they go on."""

import os
import re
import signal

import pytest
from support.files.job_runs import files, read

from jax_probe_mtp.files import answer_file
from jax_probe_mtp.generation import scheduler
from jax_probe_mtp.jobs import progress


@pytest.fixture
def at_write(monkeypatch):
    """Has something done right after the answers are written for the `number`th time."""

    def at_write(number, do):
        honest, count = answer_file.AnswerFile.write, [0]

        def write(self, answers):
            honest(self, answers)
            count[0] += 1
            if count[0] == number:
                do(self)

        monkeypatch.setattr(answer_file.AnswerFile, "write", write)

    return at_write


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"])
def test_a_signal_ends_the_run_after_the_calls_under_way(generate, whole, tmp_path, at_write, number, status):
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]
    written_before = []

    def stop(answers):
        written_before.append(answers.num_written)
        os.kill(os.getpid(), number)

    at_write(2, stop)
    code, out, err = generate(*files(tmp_path))
    lines, name = read(tmp_path / "answers.jsonl"), signal.Signals(number).name
    assert (code, out) == (status, "")
    heard, stopped = err.splitlines()
    says = "finishing the calls under way, the last of which took"
    assert re.fullmatch(
        rf"{name}: {says} \d+\.\d s; a second signal stops at once, and the next run makes them again", heard
    )
    assert [stopped] == [
        f"stopped by {name}: {tmp_path / 'answers.jsonl'} holds {len(lines)} of 10 records; give the same command to go on",
    ]
    assert lines == whole[: len(lines)]
    assert written_before[0] < len(lines) < 10  # what ended in the calls under way was written too
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert generate(*files(tmp_path))[0] == 0
    assert read(tmp_path / "answers.jsonl")[: len(lines)] == lines
    assert sorted(read(tmp_path / "answers.jsonl")) == sorted(whole)


def test_a_signal_counts_what_is_in_the_file_where_answers_wait_for_their_turn(generate, leave, tmp_path, monkeypatch):
    honest, count = progress.Progress.show, [0]

    def show(self):
        honest(self)
        count[0] += 1
        if count[0] == 4:  # the first record is still being decoded; others have ended and wait for it
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(progress.Progress, "show", show)
    code, _, err = generate(*files(tmp_path), "--ordered")
    assert code == 143
    assert read(tmp_path / "answers.jsonl") == []
    assert f"stopped by SIGTERM: {tmp_path / 'answers.jsonl'} holds 0 of 10 records; " in err


def test_a_signal_is_heard_where_no_record_can_run(generate, tmp_path, at_write, monkeypatch):
    monkeypatch.setattr(scheduler, "MOST_REFUSALS", 2)  # that are written at a time, and three rows'
    at_write(2, lambda _: os.kill(os.getpid(), signal.SIGTERM))
    command = files(tmp_path, [{"id": i, "prompt_ids": []} for i in range(40)])
    code, _, err = generate(*command)
    num_done = len(read(tmp_path / "answers.jsonl"))
    assert (code, num_done < 40) == (143, True)
    assert f"stopped by SIGTERM: {tmp_path / 'answers.jsonl'} holds {num_done} of 40 records; " in err


def test_a_second_signal_ends_the_run_at_once(generate, whole, tmp_path, at_write):
    handlers = [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)]

    def stop(_):
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)

    at_write(1, stop)
    code, _, err = generate(*files(tmp_path))
    assert (code, err.splitlines()[-1]) == (130, "error: interrupted")
    assert [signal.getsignal(each) for each in (signal.SIGTERM, signal.SIGINT)] == handlers
    assert generate(*files(tmp_path))[0] == 0
    assert sorted(read(tmp_path / "answers.jsonl")) == sorted(whole)
