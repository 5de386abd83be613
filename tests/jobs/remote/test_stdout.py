"""Answers on stdout: the lines of a file, as they end, and nothing else."""

import json
import os
import signal
import sys

import pytest
from support.files.job_runs import ERRORS, RECORDS, SIZES, assert_refused, files, read, write

from jax_probe_mtp.files.remote.working_copy import CopyOnStdout
from jax_probe_mtp.jobs import progress


def test_the_lines_are_those_of_a_file(generate, whole, tmp_path):
    code, out, err = generate("--input", write(tmp_path, RECORDS), "--output", "-")
    assert (code, out, err) == (0, "".join(whole), "10 of 10 records in stdout\n")
    assert os.listdir(tmp_path) == ["prompts.jsonl"]


def test_stdin_to_stdout(generate, whole, at_stdin):
    at_stdin("".join(json.dumps(record) + "\n" for record in RECORDS).encode())
    assert generate("--input", "-", "--output", "-")[:2] == (0, "".join(whole))


def test_lines_come_as_answers_end(generate, whole, tmp_path, monkeypatch):
    """What is on stdout after each chunk of calls, seen from the next one."""
    honest, seen = progress.Progress.show, []

    def show(self):
        honest(self)
        sys.stdout.flush()
        seen.append(sys.stdout.buffer.getvalue().decode())

    monkeypatch.setattr(progress.Progress, "show", show)
    _, out, _ = generate("--input", write(tmp_path, RECORDS), "--output", "-")
    assert len(set(seen)) > 3
    assert all(out.startswith(text) for text in seen)
    assert out == "".join(whole)


def test_a_signal_says_that_nothing_is_kept(generate, whole, tmp_path, monkeypatch):
    honest, count = progress.Progress.show, iter(range(99))

    def show(self):
        honest(self)
        if next(count) == 3:
            os.kill(os.getpid(), signal.SIGTERM)

    monkeypatch.setattr(progress.Progress, "show", show)
    code, out, err = generate("--input", write(tmp_path, RECORDS), "--output", "-")
    num = out.count("\n")
    assert (code, out, 0 < num < 10) == (143, "".join(whole[:num]), True)
    says = f"stopped by SIGTERM: stdout holds {num} of 10 records; the same command begins anew"
    assert err.splitlines()[-1] == says


def test_errors_are_lines_too_and_nothing_that_cannot_be_given_is_advised(generate, tmp_path):
    code, out, err = generate("--input", write(tmp_path, ERRORS), "--output", "-", *SIZES)
    assert code == 3
    assert generate(*files(tmp_path, ERRORS), *SIZES)[0] == 3
    assert out == "".join(read(tmp_path / "answers.jsonl"))
    assert err.splitlines()[-1] == (
        '5 records could not run; their "error" in stdout says why: mend that and begin anew'
    )


@pytest.mark.parametrize("flag", ["--redo-changed", "--retry-errors", "--distributed"])
def test_flags_of_files_that_are_kept_are_refused(generate, tmp_path, flag):
    result = generate("--input", write(tmp_path, RECORDS), "--output", "-", flag)
    assert_refused(result, f"{flag} needs an --output that is kept, which - is not; leave it out.")


def test_a_reader_that_has_gone_ends_the_run(generate, tmp_path, monkeypatch):
    times = []

    def gone(self):
        times.append(1)
        raise BrokenPipeError(32, "Broken pipe")

    with monkeypatch.context() as patch:
        patch.setattr(CopyOnStdout, "put", gone)
        patch.setattr(sys.stdout, "fileno", lambda: 1)
        patch.setattr(os, "dup2", lambda *_: None)
        code, _, err = generate("--input", write(tmp_path, RECORDS), "--output", "-", "--log-level", "error")
    assert (code, err, len(times)) == (141, "", 1)
