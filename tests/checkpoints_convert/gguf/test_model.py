"""GGUF files: the same weights as the Hugging Face folder."""

import struct

import jax
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from support.checkpoints.gguf_files import write_gguf
from support.checkpoints.hf_folders import D, V, hf_config, hf_tensors, write_hf

from checkpoints_convert import CheckpointError, load_checkpoint
from checkpoints_convert.gguf.model import open_gguf
from jax_probe_mtp.model.transformer import full_logits


@pytest.mark.parametrize(
    ("family", "is_tied"),
    [("llama", True), ("llama", False), ("mistral", False), ("qwen2", False), ("qwen3", True), ("smollm3", True)],
)
def test_a_gguf_file_gives_what_the_folder_gives(tmp_path, family, is_tied, monkeypatch):
    monkeypatch.setattr("checkpoints_convert.params.fill.CHUNK_BYTES", 4 * D * 20)
    config = hf_config(family, tie_word_embeddings=is_tied)
    tensors = hf_tensors(config)
    ours = load_checkpoint(write_gguf(tmp_path / "m.gguf", family.replace("mistral", "llama"), tensors))
    theirs = load_checkpoint(write_hf(tmp_path / "hf", config, tensors))
    assert ours.config == theirs.config
    assert ours.eos_token_ids == (0,)  # the file's own: tokenizer.ggml.eos_token_id
    for (path, a), (_, b) in zip(
        jax.tree.leaves_with_path(ours.params), jax.tree.leaves_with_path(theirs.params), strict=True
    ):
        np.testing.assert_array_equal(a, b, err_msg=str(path))


SCALED = {  # of a folder, and in a GGUF file
    "linear": ({"type": "linear", "factor": 4.0}, {"type": "linear", "factor": 4.0}),
    "yarn": (
        {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64, "attn_factor": 0.75},
        {"type": "yarn", "factor": 4.0, "original_context_length": 64, "attn_factor": 0.75},
    ),
}


@pytest.mark.parametrize("scaling", SCALED)
@pytest.mark.parametrize("family", ["qwen3", "smollm3"])
def test_a_gguf_file_gives_the_folders_logits(tmp_path, family, scaling):
    of_folder, of_gguf = SCALED[scaling]
    config = hf_config(family, rope_scaling=of_folder)
    tensors = {name: values / (1 + 2 * ("proj" in name)) for name, values in hf_tensors(config).items()}
    fields = {f"{family}.rope.scaling.{key}": value for key, value in of_gguf.items()}
    folder = write_hf(tmp_path / "hf", config, tensors)
    models = [folder, write_gguf(tmp_path / "m.gguf", family, tensors, fields=fields), tmp_path / "plain"]
    write_hf(models[2], hf_config(family), tensors)
    token_BT = np.random.default_rng(0).integers(0, V, (1, 200))
    run = jax.jit(full_logits, static_argnums=1)
    theirs, ours, unscaled = [
        np.asarray(run(model.params, model.config, token_BT)) for model in map(load_checkpoint, models)
    ]
    np.testing.assert_allclose(ours, theirs, atol=1e-4)  # the scale is float32 in a GGUF file
    assert np.abs(unscaled - theirs).max() > 0.1


def test_dtype_of_a_file(tmp_path):
    config = hf_config("qwen2")
    tensors = hf_tensors(config)
    all_bf16 = write_gguf(tmp_path / "b.gguf", "qwen2", tensors, kinds=dict.fromkeys(tensors, Kind.BF16))
    mixed = write_gguf(tmp_path / "m.gguf", "qwen2", tensors, kinds={"lm_head.weight": Kind.BF16})
    half = write_gguf(tmp_path / "h.gguf", "qwen2", tensors, kinds=dict.fromkeys(tensors, Kind.F16))
    assert [open_gguf(path).dtype for path in (all_bf16, mixed, half)] == ["bfloat16", "float32", "float32"]
    loaded = load_checkpoint(half).params["head"]
    np.testing.assert_array_equal(loaded, tensors["lm_head.weight"].astype(np.float16).astype(np.float32))
    assert load_checkpoint(half, dtype="bfloat16").params["head"].dtype == "bfloat16"


def test_rope_divisors_are_read(tmp_path):
    tensors = hf_tensors(hf_config("llama"))
    divisors = np.array([1.0, 1.25, 4.0, 8.0], np.float32)
    extra = {"rope_freqs.weight": divisors}
    assert open_gguf(write_gguf(tmp_path / "m.gguf", "llama", tensors, extra=extra)).config.rope_divisors == (
        1,
        1.25,
        4,
        8,
    )
    for bad, message in ((np.ones(3, np.float32), "must hold 4 numbers, got 3"), (divisors * 0, "not above 0")):
        path = write_gguf(tmp_path / "bad.gguf", "llama", tensors, extra={"rope_freqs.weight": bad})
        with pytest.raises(CheckpointError, match=message):
            open_gguf(path)


def test_a_quantized_model_becomes_float32(tmp_path):
    tensors = {"model.embed_tokens.weight": np.ones((V, 64), np.float32)}
    path = write_gguf(tmp_path / "q.gguf", "llama", tensors, kinds=dict.fromkeys(tensors, Kind.Q8_0))
    model = open_gguf(path)
    assert (model.description["types"], model.dtype) == (["Q8_0"], "float32")


def test_other_types_are_named(tmp_path):
    tensors = hf_tensors(hf_config("llama"))
    path = write_gguf(tmp_path / "m.gguf", "llama", tensors)
    raw = bytearray(path.read_bytes())
    name = b"output_norm.weight"
    at = raw.index(name) + len(name) + 4 + 8  # after the name: axes, one length, then the type
    raw[at : at + 4] = struct.pack("<I", int(Kind.I32))
    path.write_bytes(raw)
    with pytest.raises(
        CheckpointError, match=r"'output_norm\.weight' is I32, which is not supported; F32, F16.*Q6_K are"
    ):
        load_checkpoint(path)
    raw[at : at + 4] = struct.pack("<I", 99)
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"'output_norm\.weight' has the unknown type 99"):
        load_checkpoint(path)
