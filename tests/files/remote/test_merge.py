"""Files of answers at addresses that become one file, there or here."""

import json
import tempfile

import pytest
from support.files.answer_files import ONE, THREE, TWO, filled
from support.files.stores import StoreError, content, fill, names


@pytest.fixture
def parts(store, tmp_path):
    """Two parts here and, the same, there; what they become here."""
    here = [filled(tmp_path / "a.jsonl", ONE, TWO), filled(tmp_path / "b.jsonl", THREE)]
    for part in here:
        fill(f"store://b/{part.name}", part.read_bytes())
        fill(f"store://b/{part.name}.run.json", (tmp_path / f"{part.name}.run.json").read_bytes())
    return here


@pytest.fixture
def merged(run, parts, tmp_path):
    """The two files that a merge here writes."""
    assert run("merge", *parts, "--output", tmp_path / "m.jsonl")[:2] == (0, "")
    return (tmp_path / "m.jsonl").read_bytes(), (tmp_path / "m.jsonl.run.json").read_bytes()


THERE = ["store://b/a.jsonl", "store://b/b.jsonl"]


def test_parts_there_become_a_file_here_or_there(run, merged, parts, tmp_path):
    assert run("merge", *THERE, "--output", tmp_path / "n.jsonl") == (
        0,
        "",
        f"{tmp_path / 'n.jsonl'} holds 3 records\n",
    )
    assert ((tmp_path / "n.jsonl").read_bytes(), (tmp_path / "n.jsonl.run.json").read_bytes()) == merged
    for output in ("store://b/n.jsonl", "memory://b/n.jsonl"):
        mixed = [THERE[0], parts[1]]
        assert run("merge", *mixed, "--output", output) == (0, "", f"{output} holds 3 records\n")
        assert (content(output), content(f"{output}.run.json")) == merged
        assert run("merge", THERE[0], "--output", output)[0] == 0  # in place of the old one
        assert content(output) == parts[0].read_bytes()


def test_prompts_there_or_on_stdin_give_the_order(run, merged, at_stdin, tmp_path):
    ids = [ONE["id"], TWO["id"], THREE["id"], "missing"]
    lines = "".join(json.dumps({"id": name, "prompt": "x"}) + "\n" for name in ids[::-1]).encode()
    (tmp_path / "p.jsonl").write_bytes(lines)
    fill("store://b/p.jsonl", lines)
    at_stdin(lines)
    told = {}
    for prompts, name in ((tmp_path / "p.jsonl", None), ("store://b/p.jsonl", None), ("-", "stdin")):
        code, out, err = run("merge", *THERE, "--input", prompts, "--output", "store://b/n.jsonl")
        assert (code, out) == (1, "")
        assert err.splitlines()[-1] == f"1 records of {name or prompts} have no answer"
        told[str(prompts)] = content("store://b/n.jsonl")
    assert len(set(told.values())) == 1
    assert told["-"] != merged[0]


def test_what_is_refused_here_is_refused_there(run, parts, tmp_path):
    before = {name: content(f"store://{name}") for name in names()}

    def refusal(*args):
        code, out, err = run("merge", *args)
        assert (code, out, err.count("\n")) == (2, "", 1)
        return err.removeprefix("error: ").rstrip("\n")

    says = "store://b/a.jsonl would be written over, but is read; name another --output."
    assert refusal(*THERE, "--output", "store:///b/a.jsonl") == says
    says = "store://b/none.jsonl is not there, or its bucket or folder is not; check the address."
    assert refusal("store://b/none.jsonl", "--output", tmp_path / "m") == says
    assert refusal(THERE[0], "store:///b/a.jsonl", "--output", tmp_path / "m").endswith("is named twice; name it once.")
    fill("store://b/p.jsonl", b'{"id": 1, "prompt": "x"}\n')
    says = "store://b/p.jsonl is there and holds prompts, no answers; name another --output."
    assert refusal(*THERE, "--output", "store://b/p.jsonl") == says
    assert {name: content(f"store://{name}") for name in names() if name != "/b/p.jsonl"} == before


class Killed(BaseException):
    """As nothing catches it, nothing is done after it."""


@pytest.mark.parametrize("when", ["at_put", "after_put"])
@pytest.mark.parametrize("kill_at", [1, 2])
def test_a_kill_between_two_puts_leaves_no_answers_beside_the_run_of_others(run, merged, parts, store, when, kill_at):
    fill("store://b/m.jsonl", b'{"id": 1, "token_ids": []}\n')
    fill("store://b/m.jsonl.run.json", b'{"of": "another run"}')
    count = iter(range(1, 9))

    def kill(path):
        if next(count) == kill_at:
            raise Killed

    setattr(store, when, staticmethod(kill))
    with pytest.raises(Killed):
        run("merge", *THERE, "--output", "store://b/m.jsonl")
    setattr(store, when, staticmethod(lambda path: None))
    if "/b/m.jsonl.run.json" in names():
        assert (content("store://b/m.jsonl"), content("store://b/m.jsonl.run.json")) == merged
    assert run("merge", *THERE, "--output", "store://b/m.jsonl")[0] == 0
    assert (content("store://b/m.jsonl"), content("store://b/m.jsonl.run.json")) == merged


def test_what_cannot_be_put_stays_here(run, merged, store, tmp_path, monkeypatch):
    (tmp_path / "copies").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "copies"))

    def fail(path):
        raise StoreError("403")

    store.at_put = staticmethod(fail)
    code, _, err = run("merge", *THERE, "--output", "store://b/m.jsonl")
    [kept] = (tmp_path / "copies").iterdir()
    assert (code, err.count("\n")) == (2, 1)
    assert err.startswith("error: store://b/m.jsonl cannot be written (StoreError: 403); ")
    assert f"What is missing there lies in {kept}: " in err
    assert ((kept / "m.jsonl").read_bytes(), (kept / "m.jsonl.run.json").read_bytes()) == merged
