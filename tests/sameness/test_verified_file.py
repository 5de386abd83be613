"""`verify_file`: the command's report from Python, and what it refuses."""

import dataclasses
import json

import numpy as np
import pytest
import reference
from checkpoints import EOS, make_checkpoint, words, write_folder
from conftest import BASE, make_tiny
from support.commands import PROMPTS, write

from checkpoints_convert import load_checkpoint
from jax_probe_mtp import Settings, generate, verify_file

NEW, PLACE = 12, 5
LIMIT = 40
MANY = np.random.default_rng(3).integers(0, 57, (60, 6)).tolist()  # prompts of enough tokens for a baseline

pytestmark = pytest.mark.usefixtures("programs_are_compiled_once")


@pytest.fixture(scope="module")
def checkpoint(tiny):
    return make_checkpoint(tiny)


@pytest.fixture(scope="module")
def plain(tiny):
    found = {}
    for name, prompt in PROMPTS.items():
        found[name], gap = reference.plain_decode(tiny.reference, prompt, max_new_tokens=NEW, eos=(EOS,))
        assert gap > 1e-3, "choose another prompt: rounding could decide this one"
    return found


def changed(tokens):
    return [*tokens[:PLACE], (tokens[PLACE] + 1) % 26, *tokens[PLACE + 1 :]]


def answers(model, name, folder, settings):
    """A file of a model's answers to many prompts, in our own format."""
    found = generate(model, MANY, draft="plain", settings=dataclasses.replace(settings, max_new_tokens=LIMIT))
    pairs = zip(MANY, found, strict=True)
    return write(folder / name, [{"prompt_ids": ids, "token_ids": answer.token_ids} for ids, answer in pairs])


def test_it_gives_what_the_command_writes(checkpoint, plain, run, tmp_path):
    model = str(write_folder(tmp_path / "tiny", checkpoint))
    sequences = [[*PROMPTS["a"], *plain["a"]], [*PROMPTS["b"], *changed(plain["b"])]]
    values = [
        {"id": name, "input_ids": PROMPTS[name], "sequences": ids} for name, ids in zip("ab", sequences, strict=True)
    ]
    path = write(tmp_path / "o.jsonl", values)
    flags = ["--batch-size", 2, "--max-new-tokens", NEW, "--json", tmp_path / "r.json"]
    code, out, err = run("verify", "--model", model, "--outputs", path, *flags)
    found = verify_file(load_checkpoint(model), str(path), settings=Settings(batch_size=2), max_new_tokens=NEW)
    written = json.loads((tmp_path / "r.json").read_text(encoding="utf-8"))
    records = [verdict.as_json() for verdict in found.verdicts]
    assert [found.counts, found.report, records] == [written["summary"], written["file"], written["records"]]
    assert found.conclusion == written["conclusion"]
    assert (found.status, found.says) == (code, err.splitlines())
    printed = [*map(str, found.verdicts), *found.lines, f"verdict: {found.conclusion}"]
    assert printed == out.splitlines()[:-1]  # the counts are the last line
    assert [(verdict.id, verdict.kind) for verdict in found.verdicts] == [("a", "same"), ("b", "diverged")]
    assert (found.status, found.counts["diverged"]) == (1, 1)
    assert (
        found.says[0]
        == "o.jsonl is read as transformers (outputs of transformers' generate or pipeline); --format names another"
    )
    assert found.match_rate == written["file"]["greedy"]["match_rate"] < 1
    assert found.causes == written["file"]["causes"]


def test_a_baseline_gives_a_p_value(checkpoint, tmp_path):
    other, settings = make_checkpoint(make_tiny(BASE, seed=9)), Settings(batch_size=20)
    good, bad = (answers(model, name, tmp_path, settings) for model, name in ((checkpoint, "good"), (other, "bad")))
    asked = {"settings": settings, "max_new_tokens": LIMIT, "baseline": good}
    found = verify_file(checkpoint, good, **asked)
    assert (found.status, found.match_rate, found.causes, found.counts["same"]) == (0, 1, [], 60)
    assert found.p_values == {"greedy_against_baseline": 1}  # blocks that are all alike
    found = verify_file(checkpoint, bad, **asked)
    assert found.status == 1
    assert found.p_values.keys() == {"greedy_against_baseline"}
    assert found.p_values["greedy_against_baseline"] < 0.01
    assert found.causes


def test_draws_of_unknown_seeds_have_a_p_value(checkpoint, tmp_path):
    drawn = Settings(batch_size=20, temperature=1.0, seed=77)
    path = answers(checkpoint, "drawn", tmp_path, drawn)
    asked = {"settings": dataclasses.replace(drawn, seed=5), "max_new_tokens": LIMIT}
    found = verify_file(checkpoint, path, **asked)
    assert (found.status, found.p_values) == (1, {})  # the seed is another one
    found = verify_file(checkpoint, path, **asked, unknown_seeds=True)
    both = [found.report["drawn"][name] for name in ("p_likelihood", "p_uniform")]
    assert found.p_values == {"draws": min(1, 2 * min(both))}
    assert (found.status, found.counts["scored"]) == (0, 60)
    cold = dataclasses.replace(drawn, temperature=0.5)
    found = verify_file(checkpoint, path, settings=cold, max_new_tokens=LIMIT, unknown_seeds=True)
    assert found.p_values["draws"] < 0.01
    assert (found.status, found.counts["diverged"], found.counts["incomplete"]) == (1, 0, 0)


def test_another_model_and_a_table_of_tokens(checkpoint, tmp_path):
    other, settings = make_checkpoint(make_tiny(BASE, seed=9)), Settings(batch_size=20)
    path, table = answers(checkpoint, "good", tmp_path, settings), tmp_path / "t.jsonl"
    found = verify_file(checkpoint, path, settings=settings, max_new_tokens=LIMIT, against=other, tokens=table)
    judged = found.report["against_model"]
    assert (judged["favours_it"], judged["tokens"]) == (False, found.counts["compared_tokens"])
    assert any(line.startswith("tiny explains the tokens, not tiny: ") for line in found.lines)
    rows = [json.loads(line) for line in table.read_text(encoding="utf-8").splitlines()]
    assert len(rows) == found.counts["compared_tokens"]
    assert {row["margin"] for row in rows} == {0}
    reversed_ = verify_file(other, path, settings=settings, max_new_tokens=LIMIT, against=checkpoint)
    assert reversed_.report["against_model"]["favours_it"]
    strange = make_checkpoint(make_tiny(dataclasses.replace(BASE, vocab_size=62)))
    with pytest.raises(
        ValueError, match=r"against, tiny, has another tokenizer \(\('w61', 61\) is in one of them alone\)"
    ):
        verify_file(checkpoint, path, max_new_tokens=LIMIT, against=strange)


def test_prompts_of_another_file_and_the_template(checkpoint, plain, tmp_path):
    prompts = write(tmp_path / "p.jsonl", [{"id": name, "prompt": words(*PROMPTS[name])} for name in "ab"])
    path = write(tmp_path / "o.jsonl", [{"id": name, "token_ids": plain[name]} for name in "ba"])
    asked = {"input": str(prompts), "max_new_tokens": NEW, "format": "ours"}
    found = verify_file(checkpoint, path, **asked, use_chat_template=False)
    assert [(verdict.id, verdict.kind) for verdict in found.verdicts] == [("b", "same"), ("a", "same")]
    assert verify_file(checkpoint, path, **asked).counts["same"] == 0


def test_the_limit_is_the_one_that_was_stated(checkpoint, plain, tmp_path):
    assert EOS not in plain["b"]
    path = write(tmp_path / "o.jsonl", [{"prompt_ids": PROMPTS["b"], "token_ids": plain["b"]}])
    [verdict] = verify_file(checkpoint, path, settings=Settings(max_new_tokens=NEW)).verdicts
    assert verdict.reason == "12 tokens without an end of text, and no limit is known; state max_new_tokens."
    found = verify_file(checkpoint, path, settings=Settings(max_new_tokens=3), max_new_tokens=NEW)
    assert found.status == 0


@pytest.mark.parametrize(
    ("asked", "says"),
    [
        ({"format": "vllm2"}, "format must be one of auto, ours, vllm, openai-chat, "),
        ({"format": "vllm"}, "line 1 is ours, but the file is read as vllm; "),
        ({"max_new_tokens": 0}, "max_new_tokens must be a whole number of at least 1, got 0."),
        ({"settings": Settings(temperature=-1.0)}, "temperature must be 0 (greedy) to "),
        ({"settings": Settings(batch_size=0)}, "batch_size and calls_per_chunk must be at least 1, got 0 and 8."),
    ],
)
def test_what_is_refused(checkpoint, tmp_path, asked, says):
    path = write(tmp_path / "o.jsonl", [{"prompt_ids": [5], "token_ids": [7]}])
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        verify_file(checkpoint, path, **asked)
    assert says in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_checkpoint_without_a_tokenizer_is_refused(checkpoint, tmp_path):
    with pytest.raises(
        ValueError, match=r"the checkpoint tiny has no tokenizer, which reading a file takes; give one, "
    ):
        verify_file(dataclasses.replace(checkpoint, tokenizer=None), tmp_path / "o.jsonl")


def test_settings_of_decoding_are_not_read(checkpoint, plain, tmp_path):
    path = write(tmp_path / "o.jsonl", [{"prompt_ids": PROMPTS["b"], "token_ids": plain["b"]}])
    settings = Settings(is_exact=True, capacity=8, prompt_slots=64, calls_per_chunk=3)
    assert verify_file(checkpoint, path, settings=settings, max_new_tokens=NEW).status == 0
