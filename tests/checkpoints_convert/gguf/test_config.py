"""The fields of a GGUF file: what is read, what is refused."""

import json

import numpy as np
import pytest
from support.checkpoints.gguf_files import write_gguf
from support.checkpoints.hf_folders import G, V, hf_config, hf_tensors

from checkpoints_convert import CheckpointError
from checkpoints_convert.gguf.model import open_gguf
from checkpoints_convert.huggingface.config import read_hf_config

SCALING = "llama.rope.scaling"
YARN = {f"{SCALING}.type": "yarn", f"{SCALING}.factor": 4.0, f"{SCALING}.original_context_length": 64}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"llama.expert_count": 8}, r"llama\.expert_count = 8 is not supported"),
        ({"llama.rope.scaling.type": "yarn"}, r"type is yarn, but rope\.scaling\.factor is missing"),
        ({"llama.rope.scaling.type": "linear"}, r"type is linear, but rope\.scaling\.factor is missing"),
        ({"llama.rope.scaling.type": "longrope"}, r"type = 'longrope' is not supported; none, linear and yarn are"),
        ({"llama.rope.scaling.type": "none", "llama.rope.scaling.factor": 4.0}, "type is none, but its factor 4"),
        ({"llama.rope.scaling.factor": 0.5}, "factor must be at least 1, got 0.5"),
        ({"llama.rope.scaling.attn_factor": 0.0}, "attn_factor must be above 0, got 0"),
        (YARN | {"llama.rope.scaling.yarn_beta_fast": 0.5}, "0 < beta_slow <= beta_fast"),
        (YARN | {"llama.rope.scaling.yarn_log_multiplier": 0.1}, r"yarn_log_multiplier = 0\.1"),
        (YARN | {"llama.rope.scaling.yarn_ext_factor": 0.5}, r"yarn_ext_factor = 0\.5 is not supported"),
        (YARN | {"llama.rope.scaling.alpha": 8.0}, r"alpha = 8\.0 is not supported"),
        (
            {"llama.attention.sliding_window": 639},
            r"sliding_window = 639 is not supported, since texts of up to 640 .* context_length",
        ),
        (YARN | {"llama.attention.sliding_window": 640, "llama.rope.scaling.factor": 11.0}, "texts of up to 704"),
        ({"llama.attention.sliding_window": True}, "sliding_window' must be a whole number"),
        ({"llama.attn_logit_softcapping": 50.0}, r"attn_logit_softcapping = 50"),
        ({"llama.something.new": 1}, r"llama\.something\.new = 1 is not supported"),
        ({"general.type": "adapter"}, "general.type is 'adapter'"),
        ({"split.count": 2}, "one part of 2"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(tmp_path, fields, message):
    path = write_gguf(tmp_path / "m.gguf", "llama", hf_tensors(hf_config("llama")), fields=fields)
    with pytest.raises(CheckpointError, match=message):
        open_gguf(path)


V01 = {"context_length": 32768, "embedding_length": 4096, "feed_forward_length": 14336, "attention.head_count_kv": 8}
V01 |= {"attention.head_count": 32, "attention.key_length": 128, "attention.value_length": 128}


@pytest.mark.parametrize(
    ("change", "is_refused"),
    [
        ({}, True),
        ({"context_length": 4096}, False),
        ({"rope.freq_base": 1e6}, False),  # v0.2
        ({"feed_forward_length": 14337}, False),
    ],
)
def test_mistral_v01_is_known_by_its_sizes(tmp_path, change, is_refused):
    """llama.cpp's converter writes no window for it: the numbers are those of the file on the hub."""
    numbers = V01 | {"rope.freq_base": 10000.0, "rope.dimension_count": 128} | change
    fields = {f"llama.{key}": value for key, value in numbers.items()}
    path = write_gguf(
        tmp_path / "m.gguf", "llama", hf_tensors(hf_config("llama")), fields=fields, without=list(numbers)
    )
    if is_refused:
        with pytest.raises(CheckpointError, match=r"the window of Mistral 7B v0\.1, .* = 4096 is not .* up to 32768"):
            open_gguf(path)
    else:
        open_gguf(path)


@pytest.mark.parametrize(
    ("architecture", "reason"),
    [
        ("qwen3moe", "a mixture of experts"),
        ("deepseek2", "a mixture"),
        ("mamba", "its recurrent state"),
        ("gemma3", ""),
    ],
)
def test_other_families_are_refused_with_the_reason(tmp_path, architecture, reason):
    path = write_gguf(tmp_path / "m.gguf", architecture, {})
    with pytest.raises(CheckpointError, match=rf"'{architecture}' is not supported( \({reason}.*\))?; llama") as error:
        open_gguf(path)
    assert ("(" in str(error.value)) == bool(reason)


def test_neutral_fields_are_accepted(tmp_path):
    fields = {
        "llama.attention.sliding_window": 640,
        "llama.expert_count": 0,
        "llama.rope.scaling.type": "none",
        "llama.vocab_size": V,
    }
    model = open_gguf(write_gguf(tmp_path / "m.gguf", "llama", hf_tensors(hf_config("llama")), fields=fields))
    assert (model.config.norm_eps, model.config.queries_per_kv) == (1e-5, G)


@pytest.mark.parametrize(
    ("fields", "scaling"),
    [
        (YARN, {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}),
        (
            YARN | {f"{SCALING}.attn_factor": 0.8782488703727722, f"{SCALING}.yarn_beta_fast": 8.0},
            {"attn_factor": 0.87824887, "beta_fast": 8},
        ),
        ({f"{SCALING}.factor": 4.0}, {"type": "linear", "factor": 4.0}),
        ({"llama.rope.scale_linear": 4.0}, {"type": "linear", "factor": 4.0}),
        ({f"{SCALING}.factor": 0.0}, None),
    ],
)
def test_scalings_are_those_of_a_folder(tmp_path, fields, scaling):
    """What a folder's scaling comes to is compared with transformers in test_parity.py."""
    if scaling and "type" not in scaling:
        scaling = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64} | scaling
    config = hf_config("llama", rope_scaling=scaling)
    path = write_gguf(tmp_path / "m.gguf", "llama", hf_tensors(config), fields=fields)
    (tmp_path / "config.json").write_text(json.dumps(config))
    expected, _ = read_hf_config(tmp_path)
    got = open_gguf(path).config
    assert (got.rope_divisors, got.context_length) == (expected.rope_divisors, expected.context_length)
    assert got.rope_scale == pytest.approx(expected.rope_scale, rel=1e-7)  # float32 there
    assert bool(got.rope_divisors) == (scaling is not None)


def test_a_table_of_divisors_and_a_factor_are_one_too_many(tmp_path):
    tensors, table = hf_tensors(hf_config("llama")), {"rope_freqs.weight": np.ones(4, np.float32)}
    with pytest.raises(CheckpointError, match=r"rope_freqs\.weight and a rope\.scaling\.factor; one of them"):
        open_gguf(write_gguf(tmp_path / "m.gguf", "llama", tensors, fields=YARN, extra=table))


def test_partial_rope_and_missing_fields_are_named(tmp_path):
    tensors = hf_tensors(hf_config("llama"))
    path = write_gguf(
        tmp_path / "a.gguf",
        "llama",
        tensors,
        without=["rope.dimension_count"],
        fields={"llama.rope.dimension_count": 4},
    )
    with pytest.raises(CheckpointError, match=r"rope\.dimension_count = 4 must equal the head size 8"):
        open_gguf(path)
    path = write_gguf(tmp_path / "b.gguf", "llama", tensors, without=["block_count"])
    with pytest.raises(CheckpointError, match="has no 'block_count'"):
        open_gguf(path)
    path = write_gguf(tmp_path / "c.gguf", "gemma2", {})
    with pytest.raises(CheckpointError, match="'gemma2' is not supported; llama, qwen2, qwen3, smollm3 are"):
        open_gguf(path)
