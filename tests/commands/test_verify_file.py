"""`verify --outputs`, what it says of a file as a whole: flags, tests with an error rate, tables, exit statuses."""

import dataclasses
import json

import numpy as np
import pytest
from checkpoints import make_checkpoint, write_folder
from conftest import BASE, make_tiny
from support.commands import assert_refused, write

from checkpoints_convert.load import OpenedCheckpoint

LIMIT, RECORDS = 40, 60
PROMPT_IDS = np.random.default_rng(3).integers(0, 57, (RECORDS, 6)).tolist()


@pytest.fixture(scope="module")
def other(tmp_path_factory):
    """A model of the same tokenizer with other weights."""
    return str(write_folder(tmp_path_factory.mktemp("models") / "other", make_checkpoint(make_tiny(BASE, seed=9))))


@pytest.fixture
def answers(run, model, other, tmp_path):
    """(name, flags, is_of_other) -> a file of answers in our own format."""

    def answers(name, *flags, is_of_other=False):
        records = [{"id": i, "prompt_ids": ids} for i, ids in enumerate(PROMPT_IDS)]
        prompts, path = write(tmp_path / "p.jsonl", records), tmp_path / name
        sizes = ["--max-new-tokens", LIMIT, "--batch-size", "20", "--draft", "plain", "--capacity", "64"]
        made = ["--input", prompts, "--output", path, *sizes, *flags]
        assert run("generate", "--model", other if is_of_other else model, *map(str, made))[0] == 0
        return path

    return answers


@pytest.fixture
def verify(run, model):
    def verify(path, *flags):
        sizes = ["--max-new-tokens", LIMIT, "--batch-size", "20"]
        code, out, err = run("verify", "--model", model, "--outputs", path, *map(str, [*sizes, *flags]))
        return code, [line for line in out.splitlines() if ": same" not in line and ": scored" not in line], err

    return verify


def test_draws_of_unknown_seeds_are_judged_by_their_likelihood(answers, verify, tmp_path):
    drawn = answers("drawn.jsonl", "--temperature", "1", "--seed", "77")
    code, _, _ = verify(drawn, "--temperature", "1")
    assert code == 1  # the seed is another one
    how = ["--temperature", "1", "--unknown-seeds", "--json", tmp_path / "r.json"]
    code, lines, _ = verify(drawn, *how)
    assert code == 0
    assert lines[-1].endswith(f"{RECORDS} scored")
    found = json.loads((tmp_path / "r.json").read_text())
    assert found["summary"]["scored"] == RECORDS
    assert abs(found["file"]["drawn"]["z_likelihood"]) < 4
    assert found["file"]["drawn"]["impossible_tokens"] == 0
    code, lines, _ = verify(drawn, "--temperature", "0.5", "--unknown-seeds")
    assert code == 1
    assert any(line.startswith("not draws of this model at the stated temperature and cuts") for line in lines)


def test_rounding_at_the_border_of_the_cuts_is_no_fault(answers, verify):
    cut = ["--temperature", "1", "--top-p", "0.9"]
    rounded, uncut = answers("b.jsonl", *cut, "--dtype", "bfloat16"), answers("u.jsonl", "--temperature", "1")
    code, lines, _ = verify(rounded, *cut, "--unknown-seeds")
    assert (code, lines[-1]) == (0, f"0 same, 0 tie, 0 diverged, {RECORDS} scored")
    code, lines, _ = verify(uncut, *cut, "--unknown-seeds")
    assert code == 1
    assert "tokens that the cuts leave out" in lines[0]


def test_a_baseline_gives_a_p_value(answers, verify, tmp_path):
    good, bad = answers("good.jsonl"), answers("bad.jsonl", is_of_other=True)
    code, lines, _ = verify(good, "--baseline", good, "--json", tmp_path / "r.json")
    assert code == 0
    assert any(line.startswith("greedy tokens and ") and "nothing tells them" in line for line in lines)
    assert [line for line in lines if line.startswith("baseline: ")][
        -1
    ] == f"baseline: {RECORDS} same, 0 tie, 0 diverged"
    code, lines, _ = verify(bad, "--baseline", good, "--json", tmp_path / "r.json")
    assert code == 1
    assert any("not made as the baseline was" in line for line in lines)
    found = json.loads((tmp_path / "r.json").read_text())["file"]
    assert found["p_against_baseline"]["greedy"] < 0.01
    assert found["baseline"]["greedy"]["match_rate"] == 1


def test_the_model_that_made_the_outputs_explains_them(answers, verify, other, tmp_path):
    made = answers("o.jsonl", is_of_other=True)
    _, lines, _ = verify(made, "--against-model", other, "--json", tmp_path / "r.json")
    [line] = [line for line in lines if "explains the tokens" in line]
    assert line.startswith(f"{other} (float32) explains the tokens, not ")
    found = json.loads((tmp_path / "r.json").read_text())["file"]["against_model"]
    assert found["log_likelihood_ratio"] < -100
    assert found["decided_after_tokens"] < 40


def test_a_model_with_other_tokens_is_refused_before_weights_are_read(answers, run, model, tmp_path, monkeypatch):
    made, strange = answers("o.jsonl"), make_checkpoint(make_tiny(dataclasses.replace(BASE, vocab_size=62)))
    folder = str(write_folder(tmp_path / "strange", strange))
    monkeypatch.setattr(OpenedCheckpoint, "load", lambda *_: pytest.fail("weights were read"))
    flags = ["--outputs", made, "--max-new-tokens", LIMIT, "--against-model", folder]
    assert_refused(
        run("verify", "--model", model, *map(str, flags)), f"{folder} has another tokenizer (('w61', 61) is in"
    )


def test_a_table_a_figure_and_a_share_for_ci(answers, verify, tmp_path):
    good, bad = answers("good.jsonl"), answers("bad.jsonl", is_of_other=True)
    files = ["--tokens", tmp_path / "t.jsonl", "--figure", tmp_path / "f.svg", "--markdown", tmp_path / "r.md"]
    assert verify(good, *files, "--fail-below", "0.99")[0] == 0
    rows = [json.loads(line) for line in (tmp_path / "t.jsonl").read_text().splitlines()]
    given = [json.loads(line) for line in good.read_text().splitlines()]
    assert len(rows) == sum(len(each["token_ids"]) for each in given)
    assert {row["rank"] for row in rows} == {0}
    assert (tmp_path / "f.svg").read_text().startswith("<?xml")
    assert "are the model's best" in (tmp_path / "r.md").read_text()
    assert verify(bad, "--fail-below", "0.99")[0] == 1
    assert verify(bad, "--fail-below", "0.0001")[0] == 0  # the share alone decides


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--prompt", "x", "--unknown-seeds"], "--unknown-seeds is for --outputs; leave it out."),
        (["--prompt", "x", "--tokens", "t.jsonl"], "--tokens is for --outputs; leave it out."),
        (["--outputs", "o", "--frequencies", "--fail-below", "0.9"], "--fail-below is not for --frequencies"),
        (["--outputs", "o", "--against-weights", "int8"], "give --against-model as well."),
        (["--outputs", "o", "--fail-below", "1.5"], "must be a number above 0 and at most 1, got '1.5'"),
        (["--outputs", "o", "--fail-below", "nan"], "must be a number above 0 and at most 1, got 'nan'"),
    ],
)
def test_flags_that_say_nothing_here_are_refused(run, model, flags, says):
    assert_refused(run("verify", "--model", model, *flags), says)


def test_a_file_is_not_written_over_by_its_own_table(answers, run, model):
    path = answers("o.jsonl")
    assert_refused(run("verify", "--model", model, "--outputs", path, "--tokens", path), "name another")
