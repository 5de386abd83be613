"""`verify` of a method, against plain decoding, transformers and in the exact mode: verdicts, reports, exit codes."""

import importlib.util
import json
import re

import numpy as np
import pytest
from support.commands import NEW, PROMPTS, RAW, write, write_prompts

from jax_probe_mtp.generation import exact_check
from jax_probe_mtp.generation.decoder import Decoder
from jax_probe_mtp.sameness import compare, first_difference


def test_verify_prints_each_record_and_the_counts(run, model, expected, tmp_path):
    args = ["--model", model, "--input", write_prompts(tmp_path), "--batch-size", "3"]
    code, out, err = run("verify", *args, *RAW)
    assert code == 0
    assert out.splitlines() == [
        *[
            f"{name}: same {len(tokens)} tokens; {len(accepted)} calls, plain decoding {len(tokens) - 1}"
            for name, (tokens, accepted) in expected.items()
        ],
        "3 same, 0 tie, 0 diverged",
    ]
    plain, probe = err.splitlines()
    assert plain.startswith("plain: tau 1.000, 48 calls for 48 tokens, ")
    assert probe.startswith(f"probe:7+3: tau {48 / sum(len(accepted) for _, accepted in expected.values()):.3f}, ")


@pytest.mark.parametrize("method", ["ngram", "recycle"])
def test_other_sources_give_the_same_tokens(run, model, expected, tmp_path, method):
    args = [
        "--model",
        model,
        "--input",
        write_prompts(tmp_path),
        "--batch-size",
        "3",
        "--method",
        method,
        "--tree",
        "12",
    ]
    code, out, err = run("verify", *args, "--no-chat-template", "--max-new-tokens", "24")
    assert code == 0
    assert out.endswith("3 same, 0 tie, 0 diverged\n")
    assert err.splitlines()[1].startswith(f"{method}:12: tau 1.")
    assert not err.splitlines()[1].startswith(f"{method}:12: tau 1.000")


def test_verify_samples_both_ways_alike(run, model, tmp_path):
    args = ["--model", model, "--input", write_prompts(tmp_path), "--temperature", "1", "--batch-size", "3"]
    code, out, _ = run("verify", *args, *RAW, "--seed", "5")
    assert code == 0
    assert out.endswith("3 same, 0 tie, 0 diverged\n")


@pytest.fixture
def plant(monkeypatch):
    """Puts a wrong token into what the drafted decoder gives for record "b"."""

    def plant(position):
        honest = Decoder.run

        def wrong(self, prompts, settings):
            for generation in honest(self, prompts, settings):
                if self.source.num_nodes > 1 and generation.id == "b":
                    generation.token_ids[position] = (generation.token_ids[position] + 1) % 61
                yield generation

        monkeypatch.setattr(Decoder, "run", wrong)

    return plant


@pytest.mark.parametrize("cuts", [[], ["--temperature", "1", "--seed", "7"]], ids=["greedy", "drawn"])
def test_verify_fails_where_tokens_differ(run, model, expected, tmp_path, plant, cuts):
    plant(4)
    args = ["--model", model, "--input", write_prompts(tmp_path), "--batch-size", "3"]
    code, out, _ = run("verify", *args, *RAW, *cuts)
    assert code == 1
    a, b, c, counts = out.splitlines()
    assert "a: same" in a
    assert "c: same" in c
    assert counts == "2 same, 0 tie, 1 diverged"
    if not cuts:
        right = expected["b"][0][4]
        assert b.startswith(f"b: diverged at new token 4: plain {right} (")
        assert f", this {right + 1} (" in b


def test_verify_forgives_a_tie(run, model, tmp_path, plant, monkeypatch):
    plant(4)
    monkeypatch.setattr(first_difference, "FLOAT32_TIE", 1e9)  # everything is a tie
    args = ["--model", model, "--input", write_prompts(tmp_path), "--batch-size", "3"]
    code, out, _ = run("verify", *args, *RAW)
    assert code == 0
    assert "b: tie at new token 4" in out
    assert out.endswith("2 same, 1 tie, 0 diverged\n")


def test_without_torch_the_error_says_how_to_get_it(run, monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
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
    assert err.startswith("probe:4: tau 1.")


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
    assert float(re.match(r"probe:7\+3: tau (\d\.\d+), ", second).group(1)) > 1


def test_where_exact_is_one_text_it_is_compared_with_plain_decoding_at_one_row(run, model, tmp_path, monkeypatch):
    honest, seen = Decoder.run, []

    def spy(self, prompts, settings):
        seen.append((self.source.num_rows, settings.batch_size, settings.is_exact, settings.max_accept))
        return honest(self, prompts, settings)

    monkeypatch.setattr(Decoder, "run", spy)
    monkeypatch.setattr(compare.one_text, "has_one_text", lambda checkpoint: True)
    prompts = write(tmp_path / "p.jsonl", [{"id": name, "prompt_ids": ids} for name, ids in PROMPTS.items()])
    command = ["verify", "--model", model, "--input", prompts, "--exact", "--max-new-tokens", str(NEW), "--tree", "7"]
    for module in (exact_check, compare.one_text):  # the model is too small for the kernels
        monkeypatch.setattr(module, "check", lambda *args: 0)
    code, out, _ = run(*command, "--batch-size", "2")
    assert (code, out.splitlines()[-1]) == (0, "3 same, 0 tie, 0 diverged")
    assert [each[:3] for each in seen] == [(1, 1, True), (16, 2, True)]
    assert seen[0][3] == seen[1][3]  # both accept what they draft


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
