"""throughput.py and long_questions.py: every run decodes as its name says; no file is written over by mistake."""

import json
import sys

import long_questions
import pytest
import throughput
from checkpoints import make_checkpoint, words, write_folder

from jax_probe_mtp.errors import exit_status
from jax_probe_mtp.files.questions import read_questions

TURNS = ("Summarize: " + words(5, 9, 2), words(44, 17))


@pytest.fixture
def model(tiny, tmp_path, own_caches):
    return str(write_folder(tmp_path / "tiny", make_checkpoint(tiny)))


def test_each_run_has_its_own_lambda(model, tmp_path, capsys):
    """Masks that follow the text draft otherwise than frozen ones, and both give plain decoding's tokens."""
    drafts = "ar;probe:14@ema=0;probe:14@ema=1"
    args = ["--model", model, "--random", "6", "--longest", "20", "--batch-sizes", "3", "--drafts", drafts]
    assert throughput.main([*args, "--max-new-tokens", "40", "--output", str(tmp_path / "r.json")]) == 0
    plain, frozen, following = json.loads((tmp_path / "r.json").read_text())["runs"]
    assert [run["equal_to_the_first_setting"] for run in (plain, frozen, following)] == [1, 1, 1]
    assert plain["calls"] > max(frozen["calls"], following["calls"])
    assert frozen["calls"] != following["calls"]


def test_what_is_wrong_is_said_before_anything_runs(model, tmp_path, capsys):
    prompts = tmp_path / "p.jsonl"
    prompts.write_text('{"id": 1, "prompt_ids": [7]}\n')
    args = ["--model", model, "--input", str(prompts)]
    for more, says in [
        (["--output", str(prompts)], f"--output {prompts} is read by this command"),
        (["--output", str(tmp_path / "no" / "r.json")], "is in a folder that does not exist"),
        (["--drafts", "magic"], "draft 'magic': the name is none of"),
        (["--drafts", "plain;merged:16@mask_init=tuned"], "needs tuned masks: give --masks FILE"),
    ]:
        assert exit_status(lambda more=more: throughput.main([*args, *more])) == 2
        out, err = capsys.readouterr()
        assert (out, err.count("\n"), says in err) == ("", 1, True)
    assert prompts.read_text() == '{"id": 1, "prompt_ids": [7]}\n'


def test_questions_of_given_lengths(model, tmp_path, monkeypatch, capsys):
    def make(*args, turns=TURNS):
        lines = [{"question_id": i, "category": "summarization", "turns": [turn]} for i, turn in enumerate(turns)]
        (tmp_path / "q.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        fixed = ["long_questions.py", "--model", model, "--questions", str(tmp_path / "q.jsonl")]
        monkeypatch.setattr(sys, "argv", [*fixed, "--output", str(tmp_path / "long.jsonl"), *args])
        return exit_status(long_questions.main)

    assert make("--lengths", "7", "4", "7", "--count", "2") == 0
    found = read_questions(tmp_path / "long.jsonl")
    assert [question.id for question in found] == ["4-0", "4-1", "7-0", "7-1"]
    # By hand: the texts in turn, w5 w9 w2 w44 w17 w5 w9 w2 ..., go on from question to question, whole texts at a time.
    assert [question.text.split("\n")[0].split() for question in found][:2] == [
        words(5, 9, 2, 44).split(),
        words(5, 9, 2, 44).split(),
    ]
    before = (tmp_path / "long.jsonl").read_bytes()
    assert make("--lengths", "4", turns=["Summarize: "]) == 2
    assert make("--output", str(tmp_path / "q.jsonl")) == 2
    assert capsys.readouterr().err.count("\n") == 2
    assert (tmp_path / "long.jsonl").read_bytes() == before
