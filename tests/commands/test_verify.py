"""`verify` on files of outputs, against transformers, and in the exact mode: verdicts, reports, exit codes, refusals."""

import dataclasses
import json
import re

import numpy as np
import pytest
import reference
from checkpoints import EOS, make_checkpoint, words, write_folder

from checkpoints_convert.load import OpenedCheckpoint
from jax_probe_mtp.commands import options
from jax_probe_mtp.commands import verify as verify_cli
from jax_probe_mtp.generation.decoder import Decoder
from jax_probe_mtp.sameness import first_difference

PROMPTS = {"a": [7], "b": [5, 9, 2, 44, 17, 3, 3], "c": [60, 1, 33, 8]}
NEW = 24


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("models") / "tiny", make_checkpoint(tiny))


@pytest.fixture(scope="module")
def plain(tiny):
    found = {}
    for name, prompt in PROMPTS.items():
        tokens, gap = reference.plain_decode(tiny.reference, prompt, max_new_tokens=NEW, eos=(EOS,))
        assert gap > 2e-3, "choose another prompt: rounding could decide this one"
        found[name] = tokens
    return found


def write(path, records):
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


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
    assert out.splitlines() == [*lines, "3 same, 0 tie, 0 diverged"]


def test_reports_of_outputs_one_of_which_diverged(verify, plain, tmp_path):
    wrong = [*plain["b"]]
    wrong[4] = (wrong[4] + 1) % 26
    reports = tmp_path / "r.json", tmp_path / "r.md"
    records = outputs_of(plain, b={"token_ids": wrong}, c={"token_ids": plain["c"][:3], "category": "y"})
    code, out, _ = verify(records, "--json", reports[0], "--markdown", reports[1])
    assert code == 1
    assert out.splitlines()[1].startswith(f"b: diverged at new token 4: plain {plain['b'][4]} (")
    assert out.splitlines()[2:] == [
        "c: incomplete: ends after 3 tokens, short of an end of text and of the limit of 24.",
        "1 same, 0 tie, 1 diverged, 1 incomplete",
    ]
    record = json.loads(reports[0].read_text())
    assert (record["summary"]["records"], record["summary"]["diverged"]) == (3, 1)
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


def test_prompts_may_be_messages(verify, tiny):
    prompt = [0, 59, 7, 60]  # the chat template's
    tokens, _ = reference.plain_decode(tiny.reference, prompt, max_new_tokens=5, eos=(EOS,))
    record = {"id": 1, "messages": [{"role": "user", "content": words(7)}], "token_ids": tokens}
    assert verify([record], "--max-new-tokens", "5")[:2] == (0, "1: same 5 tokens\n1 same, 0 tie, 0 diverged\n")
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


def test_without_torch_the_error_says_how_to_get_it(run, monkeypatch):
    monkeypatch.setattr(verify_cli.importlib.util, "find_spec", lambda name: None)
    code, _, err = run("verify", "--model", "m", "--prompt", "x", "--against", "torch")
    assert (code, err) == (
        2,
        "error: --against torch needs torch: pip install '.[torch]' from a checkout installs it.\n",
    )


@pytest.fixture
def against_torch(run, model, tmp_path):
    records = [{"id": name, "prompt_ids": ids, "category": "bc"[name == "c"]} for name, ids in PROMPTS.items()]
    prompts = write(tmp_path / "p.jsonl", records)
    flags = ["--input", prompts, "--against", "torch", "--max-new-tokens", str(NEW), "--tree", "4", "--batch-size", "3"]
    return lambda *more: run("verify", "--model", model, *flags, *more)


def test_transformers_gives_the_same_tokens(against_torch, plain):
    pytest.importorskip("torch")
    code, out, err = against_torch()
    assert code == 0
    lines = [f"{name}: same {len(tokens)} tokens; transformers {len(tokens)} tokens" for name, tokens in plain.items()]
    assert out.splitlines() == [*lines, "3 same, 0 tie, 0 diverged"]
    assert err.startswith("probe: tau 1.")


def test_transformers_asks_for_no_sampling_and_no_penalty(against_torch, plain, monkeypatch):
    """Were the checkpoint's own wishes followed, a penalty would change the text."""
    pytest.importorskip("torch")
    from checkpoints_convert import compare

    honest = compare.torch_model

    def torch_model(*args):
        model = honest(*args)
        model.generation_config.repetition_penalty = 5.0
        model.generation_config.do_sample = True
        return model

    monkeypatch.setattr(compare, "torch_model", torch_model)
    assert against_torch()[1].endswith("3 same, 0 tie, 0 diverged\n")


def test_another_token_of_transformers_is_judged(against_torch, plain, monkeypatch, tmp_path):
    pytest.importorskip("torch")
    from checkpoints_convert import compare

    honest = compare.greedy

    def greedy(model, prompt_ids, **limits):
        tokens = honest(model, prompt_ids, **limits)
        return [*tokens[:2], (tokens[2] + 1) % 26, *tokens[3:]] if prompt_ids == PROMPTS["b"] else tokens

    monkeypatch.setattr(compare, "greedy", greedy)
    code, out, _ = against_torch("--json", tmp_path / "r.json")
    assert (code, out.splitlines()[-1]) == (1, "2 same, 0 tie, 1 diverged")
    assert out.splitlines()[1].startswith(f"b: diverged at new token 2: plain {(plain['b'][2] + 1) % 26} (")
    totals = json.loads((tmp_path / "r.json").read_text())["summary"]
    compared = sum(len(tokens) for tokens in plain.values()) - len(plain["b"]) + 3  # what follows is another text
    assert (totals["compared_tokens"], totals["differences"]) == (compared, 1)
    assert totals["differences_per_1000_tokens"] == 1000 / compared
    counts = {name: (each["same"], each["diverged"]) for name, each in totals["by_category"].items()}
    assert counts == {"b": (1, 1), "c": (1, 0)}


def test_bfloat16_is_compared_with_transformers_in_bfloat16(against_torch, tiny):
    """Weights are rounded, rope's frequencies are not, as in `from_pretrained`; the tokens are measured, not promised."""
    torch = pytest.importorskip("torch")
    from checkpoints_convert import compare

    model = compare.torch_model(tiny.cfg, tiny.params, "bfloat16")
    frequencies = model.model.rotary_emb.inv_freq
    assert {leaf.dtype for leaf in model.parameters()} == {torch.bfloat16}
    assert frequencies.dtype == torch.float32
    np.testing.assert_allclose(frequencies.numpy(), 10_000.0 ** (-np.arange(0, 8, 2) / 8), rtol=1e-6)
    code, out, _ = against_torch("--dtype", "bfloat16")
    assert code == int(" 0 diverged" not in out.splitlines()[-1])
    assert len(out.splitlines()) == 4


@pytest.mark.parametrize(
    "flags", [[], ["--dtype", "bfloat16", "--temperature", "1"]], ids=["float32", "bfloat16-drawn"]
)
def test_the_exact_mode_is_compared_with_its_own_program(run, model, tmp_path, flags):
    prompts = write(tmp_path / "p.jsonl", [{"id": name, "prompt_ids": ids} for name, ids in PROMPTS.items()])
    command = ["verify", "--model", model, "--input", prompts, "--exact", "--max-new-tokens", str(NEW), "--tree", "7,3"]
    code, out, err = run(*command, "--batch-size", "2", *flags)
    assert (code, out.splitlines()[-1]) == (0, "3 same, 0 tie, 0 diverged")
    first, second = err.splitlines()
    assert first.startswith("plain: tau 1.000, ")
    assert float(re.match(r"probe: tau (\d\.\d+), ", second).group(1)) > 1


def test_no_decoders_seconds_hold_the_work_of_another(run, model, tmp_path, monkeypatch):
    honest, events = Decoder.run, []

    def spy(self, prompts, settings):
        events.append("begins")
        yield from honest(self, prompts, settings)
        events.append("ends")

    monkeypatch.setattr(Decoder, "run", spy)
    prompts = write(tmp_path / "p.jsonl", [{"id": name, "prompt_ids": ids} for name, ids in PROMPTS.items()])
    code, out, _ = run("verify", "--model", model, "--input", prompts, "--max-new-tokens", "5")
    assert (code, out.splitlines()[-1]) == (0, "3 same, 0 tie, 0 diverged")
    assert events == ["begins", "ends", "begins", "ends"]


def test_in_the_exact_mode_no_difference_is_a_tie(run, model, tmp_path, monkeypatch):
    honest = Decoder.run

    def wrong(self, prompts, settings):
        for generation in honest(self, prompts, settings):
            if settings.max_accept != 0:
                generation.token_ids[2] = (generation.token_ids[2] + 1) % 26
            yield generation

    monkeypatch.setattr(Decoder, "run", wrong)
    monkeypatch.setattr(first_difference, "FLOAT32_TIE", 1e9)
    flags = ["--prompt", "w7", "--max-new-tokens", "5"]
    assert run("verify", "--model", model, *flags)[:2][0] == 0
    code, out, _ = run("verify", "--model", model, *flags, "--exact")
    assert (code, out.splitlines()[-1]) == (1, "0 same, 0 tie, 1 diverged")


def test_a_device_that_is_not_exact_is_refused(run, model, monkeypatch):
    monkeypatch.setattr(dataclasses.replace(verify_cli.Settings()).__class__, "attention", "plain", raising=True)
    code, out, err = run("generate", "--model", model, "--prompt", "w7", "--exact", "--max-new-tokens", "5")
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: not exact on this device: \d+ of \d+ rows of logits .*; leave --exact out.*\n", err)
