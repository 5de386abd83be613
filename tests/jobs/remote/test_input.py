"""Prompts that are at an address or come on stdin: the same answers, and messages that name where they were."""

import json

import pytest
from support.files.job_runs import RECORDS, assert_refused, files, read, write
from support.files.stores import fill

LINES = "".join(json.dumps(record) + "\n" for record in RECORDS).encode()


@pytest.fixture
def give(store, at_stdin, tmp_path):
    """Puts bytes where --input of this kind finds them."""

    def give(begins, data):
        if begins == "-":
            at_stdin(data)
            return "-"
        address = f"{begins.format(tmp_path)}/prompts.jsonl"
        fill(address, data)
        return address

    return give


KINDS = ["-", "memory://b", "store://b/c", "file://{}"]


@pytest.mark.parametrize("kind", KINDS)
def test_answers_are_those_of_a_file_here(generate, give, whole, tmp_path, kind):
    output = tmp_path / "answers.jsonl"
    code, out, err = generate("--input", give(kind, LINES), "--output", output)
    assert (code, out, err) == (0, "", f"10 of 10 records in {output}\n")
    assert read(output) == whole


@pytest.mark.parametrize("kind", KINDS[:3])
def test_a_run_goes_on_where_the_same_prompts_come_again(generate, give, leave, whole, tmp_path, kind):
    leave(whole[:4])
    output = tmp_path / "answers.jsonl"
    assert generate("--input", give(kind, LINES), "--output", output)[0] == 0
    assert read(output)[:4] == whole[:4]
    assert sorted(read(output)) == sorted(whole)
    changed = LINES.replace(b'[7], "max_new_tokens": 1', b'[8], "max_new_tokens": 1')
    assert changed != LINES
    named = give(kind, changed)
    says = [f"answers 1 records of {'stdin' if kind == '-' else named} that have changed since, first the id 2"]
    assert_refused(generate("--input", named, "--output", output), *says)
    assert sorted(read(output)) == sorted(whole)


@pytest.mark.parametrize("kind", KINDS)
def test_a_bad_line_is_named_by_where_it_was(generate, give, tmp_path, kind):
    named = give(kind, LINES + b"{torn")
    result = generate("--input", named, "--output", tmp_path / "answers.jsonl")
    assert_refused(result, f"{'stdin' if kind == '-' else named}, line 11 is not JSON")
    assert_refused(generate("--input", give(kind, b""), "--output", tmp_path / "answers.jsonl"), " holds no records; ")
    assert not (tmp_path / "answers.jsonl").exists()


def test_prompts_that_are_not_there(generate, store, tmp_path):
    result = generate("--input", "store://b/none.jsonl", "--output", tmp_path / "answers.jsonl")
    assert_refused(result, "store://b/none.jsonl is not there, or its bucket or folder is not; check the address.")


def test_verify_reads_what_is_elsewhere(run, model, give, generate, tmp_path):
    few = "".join(json.dumps(record) + "\n" for record in RECORDS[1:3]).encode()
    flags = ["--model", model, "--tree", "7,3", "--max-new-tokens", "24"]
    local = run("verify", *flags, "--input", write(tmp_path, RECORDS[1:3]))
    assert local[0] == 0
    assert generate(*files(tmp_path, RECORDS[1:3]))[0] == 0
    answers = (tmp_path / "answers.jsonl").read_bytes()
    checked = run("verify", "--model", model, "--outputs", tmp_path / "answers.jsonl")
    assert checked[0] == 0
    for kind in KINDS[:3]:
        assert run("verify", *flags, "--input", give(kind, few))[:2] == local[:2]
        assert run("verify", "--model", model, "--outputs", give(kind, answers))[:2] == checked[:2]
