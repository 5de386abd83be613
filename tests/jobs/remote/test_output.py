"""Answers at an address: those of a run here, byte for byte, whatever cuts a run off, and one line for what cannot be."""

import itertools
import os
import re
import signal
import tempfile

import pytest
from support.files.job_runs import IDS, RECORDS, assert_refused, files, ids_of, read, write
from support.files.stores import Store, StoreError, content, fill, names

from jax_probe_mtp.files.remote import working_copy
from jax_probe_mtp.jobs import progress

THERE = "store://b/answers.jsonl"


class Killed(BaseException):
    """As nothing catches it, nothing is done after it: as after SIGKILL."""


@pytest.fixture(autouse=True)
def copies(tmp_path, monkeypatch):
    """The folder in which copies lie, which is empty in the end."""
    (tmp_path / "copies").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "copies"))
    return tmp_path / "copies"


@pytest.fixture
def often(monkeypatch):
    """Answers are put after every chunk of calls."""
    monkeypatch.setattr(working_copy, "SECONDS_BETWEEN", 0)
    monkeypatch.setattr(working_copy, "TIMES_BETWEEN", 0)


@pytest.fixture
def leave_there(store, whole_run):
    """Leaves at the address what a run that was cut off does."""

    def leave_there(lines, torn=""):
        fill(THERE, ("".join(lines) + torn).encode())
        fill(f"{THERE}.run.json", whole_run[1])

    return leave_there


def lines_there(address=THERE):
    return content(address).decode().splitlines(keepends=True)


@pytest.mark.parametrize("begins", ["store://b", "memory://b/c", "file://{}", "local://{}"])
def test_answers_are_those_of_a_run_here(generate, store, whole, tmp_path, copies, begins):
    (tmp_path / "there").mkdir()
    there = f"{begins.format(tmp_path / 'there')}/answers.jsonl"
    code, out, err = generate("--input", write(tmp_path, RECORDS), "--output", there)
    assert (code, out, err) == (0, "", f"10 of 10 records in {there}\n")
    assert lines_there(there) == whole
    assert os.listdir(copies) == []
    if "{}" in begins:
        assert sorted(os.listdir(tmp_path / "there")) == ["answers.jsonl", "answers.jsonl.run.json"]
    fill(there, b"")


def test_what_is_put_and_when(generate, store, whole, tmp_path, often):
    assert generate("--input", write(tmp_path, RECORDS), "--output", THERE)[0] == 0
    first, second, *others = store.puts
    assert (first, second[0]) == (
        ("/b/answers.jsonl", b""),
        "/b/answers.jsonl.run.json",
    )  # can it be written? and by whom
    assert {name for name, _ in others} == {"/b/answers.jsonl"}
    texts = [data for _, data in others]
    assert len(texts) > 2
    assert all(later.startswith(data) and later != data for data, later in itertools.pairwise(texts))
    assert texts[-1].decode() == "".join(whole)
    store.puts.clear()
    assert generate("--input", write(tmp_path, RECORDS), "--output", THERE)[0] == 0
    assert store.puts == [("/b/answers.jsonl", texts[-1])]  # can it be written? and nothing else


@pytest.mark.parametrize(("kept", "torn"), [(0, ""), (0, '{"id": "lo'), (4, '{"id": "3", "prompt_ids": [60, 1')])
def test_a_run_that_was_cut_off_goes_on(generate, leave_there, whole, tmp_path, kept, torn):
    leave_there(whole[:kept], torn)
    code, _, err = generate("--input", write(tmp_path, RECORDS), "--output", THERE)
    assert code == 0
    assert lines_there()[:kept] == whole[:kept]
    assert sorted(lines_there()) == sorted(whole)
    assert [f"{THERE}: dropped {len(torn)} bytes after record {kept}" in err] == [bool(torn)]
    assert [f"{THERE} holds {kept} of 10 records: going on" in err] == [bool(kept)]


@pytest.mark.parametrize(("seconds", "most"), [(0, 99), (30, 4)], ids=["often", "at the end"])
@pytest.mark.parametrize("when", ["at_put", "after_put"])
def test_a_kill_at_any_put_loses_nothing_that_was_there(
    generate, store, whole, tmp_path, often, monkeypatch, when, seconds, most
):
    monkeypatch.setattr(working_copy, "SECONDS_BETWEEN", seconds)
    prompts, num_kills = write(tmp_path, RECORDS), 0
    for number in range(1, 99):
        store.store.clear()
        before = []
        for kill_at in (number, number + 1):  # a run, and the one that goes on with it
            count = iter(range(1, 99))

            def kill(path, count=count, kill_at=kill_at):
                if next(count) == kill_at:
                    raise Killed

            setattr(store, when, staticmethod(kill))
            try:
                assert generate("--input", prompts, "--output", THERE)[0] == 0
                is_whole = True
            except Killed:
                is_whole, num_kills = False, num_kills + 1
            there = lines_there() if "/b/answers.jsonl" in store.store else []
            assert there[: len(before)] == before
            before = there
        setattr(store, when, staticmethod(lambda path: None))
        assert generate("--input", prompts, "--output", THERE)[0] == 0
        assert lines_there()[: len(before)] == before
        assert sorted(lines_there()) == sorted(whole)
        assert names() == ["/b/answers.jsonl", "/b/answers.jsonl.run.json"]
        if is_whole and kill_at > 4:
            break
    assert num_kills > min(most, 8)


def test_a_run_with_other_settings_may_begin_where_no_answer_was_put(generate, store, tmp_path):
    prompts = write(tmp_path, RECORDS)

    def kill(path):
        if path.endswith(".run.json"):
            raise Killed

    store.after_put = staticmethod(kill)
    with pytest.raises(Killed):
        generate("--input", prompts, "--output", THERE)
    assert (names(), content(THERE)) == (["/b/answers.jsonl", "/b/answers.jsonl.run.json"], b"")
    store.after_put = staticmethod(lambda path: None)
    flags = ["--max-new-tokens", "5"]
    assert generate("--input", prompts, "--output", THERE, *flags)[0] == 0
    assert generate(*files(tmp_path), *flags)[0] == 0
    assert lines_there() == read(tmp_path / "answers.jsonl")
    assert b'"max_new_tokens": 5' in content(f"{THERE}.run.json")


def test_what_is_refused_here_is_refused_there(generate, leave_there, store, whole, tmp_path):
    leave_there(whole[:3])
    before = {name: content(f"store://{name}") for name in names()}
    result = generate("--input", write(tmp_path, RECORDS), "--output", THERE, "--seed", "1")
    assert_refused(result, f"{THERE} was made with settings.seed 0, but this run has 1; name another --output")
    changed = [record | {"prompt_ids": [1]} if record["id"] == 2 else record for record in RECORDS]
    there, at = whole[:3], ids_of(whole).index(2)
    assert at < 3, "choose a record that ends early"
    result = generate("--input", write(tmp_path, changed), "--output", THERE)
    assert_refused(
        result, f"{THERE} answers 1 records of {tmp_path}/prompts.jsonl that have changed since, first the id 2"
    )
    assert {name: content(f"store://{name}") for name in names()} == before
    assert generate("--input", write(tmp_path, changed), "--output", THERE, "--redo-changed")[0] == 0
    assert lines_there()[:2] == there[:at] + there[at + 1 :]
    assert sorted(map(str, ids_of(lines_there()))) == sorted(map(str, IDS))
    store.rm_file(Store(), "/b/answers.jsonl.run.json")
    result = generate("--input", write(tmp_path, changed), "--output", THERE)
    assert_refused(result, f"{THERE} has no answers.jsonl.run.json beside it that says what made it; name another.")


def test_prompts_are_not_written_over(generate, store, tmp_path):
    data = write(tmp_path, RECORDS).read_bytes()
    fill("store://b/prompts.jsonl", data)
    result = generate("--input", "store://b/prompts.jsonl", "--output", "store:///b/prompts.jsonl")
    assert_refused(result, "--output store://b/prompts.jsonl is read by this command; name another.")
    result = generate("--input", tmp_path / "prompts.jsonl", "--output", "store://b/prompts.jsonl")
    assert_refused(result, "store://b/prompts.jsonl has no prompts.jsonl.run.json beside it")
    assert content("store://b/prompts.jsonl") == data
    assert names() == ["/b/prompts.jsonl"]


def test_where_nothing_can_be_written_nothing_starts(generate, store, tmp_path):
    def refuse(path):
        raise StoreError("403 Forbidden")

    store.at_put = staticmethod(refuse)
    prompts = write(tmp_path, RECORDS)
    result = generate("--input", prompts, "--output", THERE, "--log-level", "error")
    says = "cannot be written (StoreError: 403 Forbidden); check the address, and your access to it."
    assert_refused(result, f"{THERE} {says}")
    assert_refused(
        generate("--input", prompts, "--output", f"file://{tmp_path}/none/a.jsonl"),
        f"file://{tmp_path}/none/a.jsonl is in a bucket or folder that is not there; make it first.",
    )


def test_a_lost_network_costs_a_line_and_at_the_end_a_copy_by_hand(generate, store, whole, tmp_path, often, copies):
    count = iter(range(99))

    def fail_sometimes(path):
        if path == "/b/answers.jsonl" and next(count) == 1:  # 0 is the check at the start
            raise StoreError("timeout")

    store.at_put = staticmethod(fail_sometimes)
    command = ["--input", write(tmp_path, RECORDS), "--output", THERE]
    code, _, err = generate(*command)
    assert (code, lines_there()) == (0, whole)
    assert err.count("\n") == 2
    assert "cannot be written (StoreError: timeout)" in err
    assert os.listdir(copies) == []

    store.store.clear()
    count = iter(range(99))

    def fail_then(path):
        if path == "/b/answers.jsonl" and next(count) > 1:
            raise StoreError("timeout")

    store.at_put = staticmethod(fail_then)
    code, _, err = generate(*command, "--log-level", "error")
    [kept] = copies.iterdir()
    says = rf"error: {THERE} cannot be written \(.*\); .* What is missing there lies in {kept}: copy it, or .*\.\n"
    assert (code, bool(re.fullmatch(says, err))) == (2, True)
    assert read(kept / "answers.jsonl") == whole
    there = lines_there()
    assert 0 < len(there) < 10
    store.at_put = staticmethod(lambda path: None)
    assert generate(*command)[0] == 0
    assert lines_there()[: len(there)] == there
    assert sorted(lines_there()) == sorted(whole)


@pytest.fixture
def after_a_chunk(monkeypatch):
    """Has something done once, after the `number`th chunk of calls."""

    def after_a_chunk(number, do):
        honest, count = progress.Progress.show, iter(range(1, 99))

        def show(self):
            honest(self)
            if next(count) == number:
                do()

        monkeypatch.setattr(progress.Progress, "show", show)

    return after_a_chunk


def test_answers_of_another_run_are_not_written_over(generate, store, whole, tmp_path, often, copies, after_a_chunk):
    after_a_chunk(3, lambda: fill(THERE, b"another's"))
    code, _, err = generate("--input", write(tmp_path, RECORDS), "--output", THERE, "--log-level", "error")
    says = f"error: {THERE} was written by another run since this one began; let one alone write it. What is missing"
    assert (code, err.startswith(says), err.count("\n")) == (2, True, 1)
    assert content(THERE) == b"another's"
    [kept] = copies.iterdir()
    assert read(kept / "answers.jsonl") == whole[: len(read(kept / "answers.jsonl"))]


def test_a_signal_puts_what_has_ended(generate, store, whole, tmp_path, after_a_chunk):
    after_a_chunk(4, lambda: os.kill(os.getpid(), signal.SIGTERM))
    command = ["--input", write(tmp_path, RECORDS), "--output", THERE]
    code, _, err = generate(*command)
    there = lines_there()
    assert (code, there, 0 < len(there) < 10) == (143, whole[: len(there)], True)
    assert err.splitlines()[-1] == (
        f"stopped by SIGTERM: {THERE} holds {len(there)} of 10 records; give the same command to go on"
    )
    assert generate(*command)[0] == 0
    assert sorted(lines_there()) == sorted(whole)


def test_what_rows_have_learned_is_there_too(run, model, store, tmp_path, log_level_stays, programs_are_compiled_once):
    """Then drafts are as good as those of the same two runs here: answers say in how many calls they were made."""
    records = [{"id": i, "prompt_ids": [5, 9, 2, 44, 17, 3, i % 2], "max_new_tokens": 24} for i in range(4)]
    flags = ["--model", model, "--draft", "recycle:8@warm=1", "--batch-size", "2", "--log-level", "error"]
    for limit in (["--limit", "2"], []):
        for output in (tmp_path / "answers.jsonl", THERE):
            assert run("generate", *flags, "--input", write(tmp_path, records), "--output", output, *limit) == (
                0,
                "",
                "",
            )
    assert names() == [f"/b/answers.jsonl{end}" for end in ("", ".run.json", ".warm")]
    assert content(THERE) == (tmp_path / "answers.jsonl").read_bytes()
