"""`verify` on files of outputs: verdicts, reports, exit codes, and what is refused before a model is read."""

import json
import re

import numpy as np
import pytest
import reference
from checkpoints import EOS, words
from support.commands import NEW, PROMPTS, assert_refused, write

from checkpoints_convert.load import OpenedCheckpoint
from jax_probe_mtp.commands import options


def outputs_of(plain, **changes):
    return [
        {"id": name, "prompt_ids": prompt, "token_ids": plain[name], "max_new_tokens": NEW, "category": "x"}
        | changes.get(name, {})
        for name, prompt in PROMPTS.items()
    ]


@pytest.fixture
def verify(run, model, tmp_path):
    def verify(records, *flags):
        return run("verify", "--model", model, "--outputs", write(tmp_path / "o.jsonl", records), *flags)

    return verify


def test_outputs_that_are_the_models_own(verify, plain):
    code, out, err = verify(outputs_of(plain), "--batch-size", "2")
    assert (code, err) == (0, "")
    lines = [f"{name}: same {len(tokens)} tokens" for name, tokens in plain.items()]
    *found, of_file, conclusion, counts = out.splitlines()
    assert (found, counts) == (lines, "3 same, 0 tie, 0 diverged")
    assert of_file.startswith(f"{sum(map(len, plain.values()))} tokens: 1.0000 are the model's best (")
    assert conclusion == "verdict: this model's: every token that was compared is its own choice, or ties with it"


def test_reports_of_outputs_one_of_which_diverged(verify, plain, tmp_path):
    wrong = [*plain["b"]]
    wrong[4] = (wrong[4] + 1) % 26
    reports = tmp_path / "r.json", tmp_path / "r.md"
    records = outputs_of(plain, b={"token_ids": wrong}, c={"token_ids": plain["c"][:3], "category": "y"})
    code, out, _ = verify(records, "--json", reports[0], "--markdown", reports[1])
    assert code == 1
    assert out.splitlines()[1].startswith(f"b: diverged at new token 4: plain {plain['b'][4]} (")
    assert f" plain says {words(plain['b'][4])!r}, this {words(wrong[4])!r}" in out.splitlines()[1]
    says = "c: incomplete: ends after 3 tokens, short of an end of text and of the limit of 24."
    assert (out.splitlines()[2], out.splitlines()[-1]) == (says, "1 same, 0 tie, 1 diverged, 1 incomplete")
    record = json.loads(reports[0].read_text())
    assert (record["summary"]["records"], record["summary"]["diverged"]) == (3, 1)
    assert record["conclusion"].startswith("not this model's as stated: 1 of 3 outputs differ by more than a tie")
    assert f"verdict: {record['conclusion']}" in reports[1].read_text()
    assert re.fullmatch("[0-9a-f]{64}", record["run"]["outputs_sha256"])
    assert record["summary"]["by_category"]["y"]["incomplete"] == 1
    assert [each["kind"] for each in record["records"]] == ["same", "diverged", "incomplete"]
    assert record["records"][1]["difference"]["position"] == 4
    assert (record["run"]["dtype"], record["run"]["outputs"], record["run"]["model"]["name"]) == (
        "float32",
        "o.jsonl",
        "tiny",
    )
    text = reports[1].read_text()
    assert "- b: diverged at new token 4" in text
    assert "| x | 1 | 0 | 1 | 0 | 0 |" in text


def test_answers_of_generate_are_such_a_file(run, model, plain, tmp_path):
    prompts = write(tmp_path / "p.jsonl", [{"id": name, "prompt_ids": ids} for name, ids in PROMPTS.items()])
    files = ["--input", prompts, "--output", tmp_path / "a.jsonl", "--temperature", "0.8", "--seed", "5"]
    sizes = ["--max-new-tokens", "12", "--batch-size", "3", "--tree", "4"]
    assert run("generate", "--model", model, *files, *sizes)[0] == 0
    checked = ["verify", "--model", model, "--outputs", tmp_path / "a.jsonl", "--max-new-tokens", "12"]
    code, out, _ = run(*checked, "--temperature", "0.8", "--seed", "5")
    assert (code, out.splitlines()[-1]) == (0, "3 same, 0 tie, 0 diverged")
    code, out, _ = run(*checked, "--temperature", "0.8", "--seed", "6")
    assert (code, out.splitlines()[-1].startswith("3 same")) == (1, False)


def test_outputs_tell_which_weights_made_them(run, model, tmp_path):
    """Texts enough, drawn from near-even odds, for rounding to change a token."""
    records = [{"id": i, "prompt_ids": [(7 * i + j * j) % 57 for j in range(6)]} for i in range(24)]
    prompts = write(tmp_path / "p.jsonl", records)
    outputs, report = tmp_path / "a.jsonl", tmp_path / "r.json"
    how = ["--max-new-tokens", "100", "--temperature", "2", "--batch-size", "8"]
    made = ["--input", prompts, "--output", outputs, "--tree", "4", "--stats"]
    code, _, err = run("generate", "--model", model, *made, *how, "--weights", "int8")
    assert code == 0
    assert float(re.search(r"tau ([\d.]+)", err)[1]) > 1, "no draft was accepted: this proves nothing"
    checked = ["verify", "--model", model, "--outputs", outputs, *how]
    code, out, _ = run(*checked, "--weights", "int8", "--json", report)
    assert (code, out.splitlines()[-1]) == (0, "24 same, 0 tie, 0 diverged")
    assert json.loads(report.read_text())["run"]["dtype"] == "float32, int8 weights"
    code, out, _ = run(*checked)
    assert (code, "diverged at new token" in out) == (1, True), out


def test_prompts_may_be_messages(verify, tiny):
    prompt = [0, 59, 7, 60]  # the chat template's
    tokens, _ = reference.plain_decode(tiny.reference, prompt, max_new_tokens=5, eos=(EOS,))
    record = {"id": 1, "messages": [{"role": "user", "content": words(7)}], "token_ids": tokens}
    code, out, _ = verify([record], "--max-new-tokens", "5")
    assert (code, out.splitlines()[0], out.splitlines()[-1]) == (0, "1: same 5 tokens", "1 same, 0 tie, 0 diverged")
    code, out, _ = verify([record], "--max-new-tokens", "5", "--no-chat-template")
    assert code == 2
    assert out.startswith("1: unchecked: messages need the chat template; ")


def test_frequencies_of_many_seeds(verify, tiny):
    draw, logits_V = np.random.default_rng(0), tiny.reference.logits(tiny.reference.embed([7]))[-1]
    p = np.exp(logits_V) / np.exp(logits_V).sum()
    records = [{"id": i, "prompt_ids": [7], "token_ids": [int(t)]} for i, t in enumerate(draw.choice(61, 1500, p=p))]
    code, out, _ = verify(records, "--frequencies", "--temperature", "1")
    assert code == 0
    assert re.fullmatch(
        r"1500 answers to the prompt of 0: same: distance 0\.\d+, by chance at most 0\.\d+\.", out.splitlines()[0]
    )
    assert verify(records, "--frequencies", "--temperature", "0.5")[0] == 1


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"id": 1, "prompt_ids": [1]}, "line 1: token_ids must be a list of whole numbers, got null."),
        ({"id": 1, "prompt_ids": [1], "token_ids": [True]}, "token_ids must be a list of whole numbers, got [true]."),
        ({"id": 1, "prompt_ids": [1], "token_ids": [1], "category": 7}, "line 1: category must be a text, got 7."),
        ({"id": 1, "token_ids": [1]}, 'must be an object with a text "prompt", or "messages" or "prompt_ids"'),
    ],
)
def test_bad_files_are_refused_before_anything_is_opened(verify, monkeypatch, record, says):
    monkeypatch.setattr(options, "open_model", lambda *_: pytest.fail("the model was opened"))
    code, out, err = verify([record])
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--outputs", "o", "--tree", "4"], "--tree says how to decode, and --outputs decodes nothing; leave it out."),
        (["--outputs", "o", "--exact"], "--exact says how to decode"),
        (["--outputs", "o", "--against", "torch"], "--against says how to decode"),
        (["--outputs", "o", "--mask-ema", "0"], "--mask-ema says how to decode"),
        (["--outputs", "o", "--capacity", "16"], "--capacity says how to decode"),
        (["--prompt", "x", "--frequencies"], "--frequencies is for --outputs; leave it out."),
        (["--prompt", "x", "--against", "torch", "--temperature", "1"], "compares greedy tokens of the ordinary mode"),
        (["--prompt", "x", "--against", "torch", "--exact"], "compares greedy tokens of the ordinary mode"),
        (["--prompt", "x", "--against", "torch", "--stop", "y"], "compares whole answers; leave stop texts out"),
        (
            ["--prompt", "x", "--json", "no/such/r.json"],
            "no/such/r.json is in a folder that does not exist; make it first.",
        ),
    ],
)
def test_options_that_do_not_go_together(run, monkeypatch, flags, says):
    monkeypatch.setattr(options, "open_model", lambda *_: pytest.fail("the model was opened"))
    code, out, err = run("verify", "--model", "m", *flags)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--batch-size", "0"], "batch_size and calls_per_chunk must be at least 1, got 0 and 8."),
        (["--max-new-tokens", "-5"], "max_new_tokens must be a whole number of at least 1, got -5."),
        (["--temperature", "-1"], "temperature must be 0 (greedy) to 1e+30, got -1.0."),
        (["--stop", ""], "a stop text is empty"),
    ],
)
def test_settings_that_make_no_sense_are_refused_once_and_before_loading(verify, plain, monkeypatch, flags, says):
    monkeypatch.setattr(OpenedCheckpoint, "load", lambda *_: pytest.fail("the weights were read"))
    code, out, err = verify(outputs_of(plain), *flags)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err


def test_a_stop_text_may_hold_a_special_token(run, model, plain, tmp_path):
    flags = ["--model", model, "--stop", "<bot>", "--max-new-tokens", "24"]
    code, out, _ = run("verify", *flags, "--prompt", words(*PROMPTS["c"]), "--no-chat-template")
    assert (code, out.splitlines()[0][:18]) == (0, "0: same 3 tokens; ")
    outputs = [{"id": n, "prompt_ids": PROMPTS["c"], "token_ids": plain["c"][:n]} for n in (2, 3, 4)]
    code, out, _ = run("verify", *flags, "--outputs", write(tmp_path / "o.jsonl", outputs))
    short, whole, behind, _, conclusion, counts = out.splitlines()
    assert (code, whole, counts) == (1, "3: same 3 tokens", "1 same, 0 tie, 0 diverged, 2 incomplete")
    assert conclusion == "verdict: what is there is this model's, but 2 of 3 outputs are no whole answers"
    assert short.endswith("ends after 2 tokens, short of an end of text and of the limit of 24.")
    assert behind.endswith("1 of 4 tokens are behind the end of the text.")


def test_the_assistants_last_message_is_continued_if_asked(verify, tiny, run, tmp_path):
    """The tiny model's template shows the first message alone: of a conversation of one, that is what is continued."""
    prompt = [0, 59, 7]
    tokens, _ = reference.plain_decode(tiny.reference, prompt, max_new_tokens=5, eos=(EOS,))
    record = {"id": "x", "messages": [{"role": "assistant", "content": words(7)}], "token_ids": tokens}
    flags = ["--max-new-tokens", "5"]
    code, out, _ = verify([record], *flags, "--continue-final-message")
    assert (code, out.splitlines()[0]) == (0, "x: same 5 tokens")
    code, out, _ = verify([record | {"continue_final_message": True}], *flags)
    assert (code, out.splitlines()[0]) == (0, "x: same 5 tokens")
    code, out, _ = verify([record], *flags)
    assert code == 2
    assert out.startswith("x: unchecked: the last message is the assistant's, ")


def test_verify_names_the_record_that_it_cannot_read(run, model, tmp_path):
    record = {"id": "x", "messages": [{"role": "assistant", "content": words(7)}]}
    file = write(tmp_path / "p.jsonl", [record])
    assert_refused(run("verify", "--model", model, "--input", file), "record 'x': the last message is the assistant's")
