"""Hugging Face folders: every weight at its place, every flaw named."""

import json
import os
import signal

import jax
import ml_dtypes
import numpy as np
import pytest
from support.checkpoints.hf_folders import LINES, D, F, G, H, K, L, h, hf_config, hf_tensors, tiny_tokenizer, write_hf
from tokenizers import processors

from checkpoints_convert import CheckpointError, convert_hf, load_checkpoint
from jax_probe_mtp.model.params import abstract_params


def assert_leaves_match(params, tensors, family):
    """Compares each leaf with the Hugging Face tensors, indexed number by number from the shapes in `abstract_params`."""
    np.testing.assert_array_equal(params["embed"], tensors["model.embed_tokens.weight"])
    np.testing.assert_array_equal(params["final_norm"], tensors["model.norm.weight"])
    if "lm_head.weight" in tensors:
        np.testing.assert_array_equal(params["head"], tensors["lm_head.weight"])
    for i, layer in enumerate(params["layers"]):
        layer = jax.tree.map(np.asarray, layer)
        layer["qkv"] = layer["qkv"].reshape(D, K, G + 2, h)
        layer["out"] = layer["out"].reshape(K, G, h, D)
        if family == "qwen2":
            layer["qkv_bias"] = layer["qkv_bias"].reshape(K, G + 2, h)

        def hf(name, i=i):
            return tensors[f"model.layers.{i}.{name}"]

        for kv in range(K):
            for j in range(h):
                for g in range(G):
                    row = (kv * G + g) * h + j  # transformers: query head kv * G + g reads kv head kv (repeat_kv)
                    np.testing.assert_array_equal(layer["qkv"][:, kv, g, j], hf("self_attn.q_proj.weight")[row])
                    np.testing.assert_array_equal(layer["out"][kv, g, j], hf("self_attn.o_proj.weight")[:, row])
                    if family == "qwen2":
                        assert layer["qkv_bias"][kv, g, j] == hf("self_attn.q_proj.bias")[row]
                np.testing.assert_array_equal(layer["qkv"][:, kv, G, j], hf("self_attn.k_proj.weight")[kv * h + j])
                np.testing.assert_array_equal(layer["qkv"][:, kv, G + 1, j], hf("self_attn.v_proj.weight")[kv * h + j])
                if family == "qwen2":
                    assert layer["qkv_bias"][kv, G, j] == hf("self_attn.k_proj.bias")[kv * h + j]
                    assert layer["qkv_bias"][kv, G + 1, j] == hf("self_attn.v_proj.bias")[kv * h + j]
        for f in range(F):
            np.testing.assert_array_equal(layer["gate"][:, f], hf("mlp.gate_proj.weight")[f])
            np.testing.assert_array_equal(layer["up"][:, f], hf("mlp.up_proj.weight")[f])
            np.testing.assert_array_equal(layer["down"][f], hf("mlp.down_proj.weight")[:, f])
        np.testing.assert_array_equal(layer["attn_norm"], hf("input_layernorm.weight"))
        np.testing.assert_array_equal(layer["mlp_norm"], hf("post_attention_layernorm.weight"))
        if family == "qwen3":
            np.testing.assert_array_equal(layer["q_norm"], hf("self_attn.q_norm.weight"))
            np.testing.assert_array_equal(layer["k_norm"], hf("self_attn.k_norm.weight"))


@pytest.mark.parametrize(
    ("family", "num_shards", "is_tied"),
    [("llama", 0, True), ("llama", 3, False), ("qwen2", 2, False), ("qwen3", 0, True)],
)
def test_every_weight_lands_at_its_place(tmp_path, family, num_shards, is_tied, monkeypatch):
    monkeypatch.setattr(
        "checkpoints_convert.params.fill.CHUNK_BYTES", 4 * D * 50
    )  # several reads for the larger tensors
    config = hf_config(family, tie_word_embeddings=is_tied)
    tensors = hf_tensors(config)
    folder = write_hf(tmp_path / "hf", config, tensors, num_shards=num_shards)

    direct = load_checkpoint(folder)
    convert_hf(folder, tmp_path / "ours", note=lambda text: None)
    stored = load_checkpoint(str(tmp_path / "ours"))

    for checkpoint in (direct, stored):
        assert jax.tree.structure(checkpoint.params) == jax.tree.structure(abstract_params(checkpoint.config))
        assert all(
            isinstance(leaf, jax.Array) and leaf.dtype == np.float32 for leaf in jax.tree.leaves(checkpoint.params)
        )
        assert_leaves_match(checkpoint.params, tensors, family)
        assert checkpoint.eos_token_ids == (7,)
        assert checkpoint.tokenizer("the fox")["input_ids"] == tiny_tokenizer().encode("the fox").ids
    assert direct.config == stored.config
    assert (direct.config.has_qkv_bias, direct.config.has_qk_norm) == (family == "qwen2", family == "qwen3")


def test_dtype_follows_the_file_unless_asked(tmp_path):
    config = hf_config("llama")
    tensors = hf_tensors(config)

    def cast(dtype):
        return {name: tensor.astype(dtype) for name, tensor in tensors.items()}

    mixed = cast(ml_dtypes.bfloat16) | {"model.norm.weight": tensors["model.norm.weight"]}
    wanted = {"bf16": "bfloat16", "f16": "float32", "mixed": "float32"}
    sources = {"bf16": cast(ml_dtypes.bfloat16), "f16": cast(np.float16), "mixed": mixed}
    for name, source in sources.items():
        loaded = load_checkpoint(write_hf(tmp_path / name, config, source))
        assert {str(leaf.dtype) for leaf in jax.tree.leaves(loaded.params)} == {wanted[name]}
        np.testing.assert_array_equal(
            np.asarray(loaded.params["embed"], np.float32), source["model.embed_tokens.weight"].astype(np.float32)
        )

    folder = write_hf(tmp_path / "f32", config, tensors)
    rounded = load_checkpoint(folder, dtype="bfloat16").params["embed"]
    # Round to nearest, ties to even, by integer arithmetic on the bits.
    bits = tensors["model.embed_tokens.weight"].view(np.uint32).astype(np.uint64)
    expected = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    np.testing.assert_array_equal(np.asarray(rounded).view(np.uint16), expected)
    convert_hf(folder, tmp_path / "ours", note=lambda text: None)
    restored = load_checkpoint(tmp_path / "ours", dtype="bfloat16").params["embed"]
    np.testing.assert_array_equal(np.asarray(restored).view(np.uint16), expected)


def test_buffers_and_an_equal_tied_head_are_ignored(tmp_path):
    config = hf_config("llama", tie_word_embeddings=True)
    tensors = hf_tensors(config)
    extra = {
        "model.layers.0.self_attn.rotary_emb.inv_freq": np.ones(4, np.float32),
        "lm_head.weight": tensors["model.embed_tokens.weight"].copy(),
    }
    assert "head" not in load_checkpoint(write_hf(tmp_path / "a", config, tensors | extra)).params

    extra["lm_head.weight"][-1, -1] += 1e-6
    folder = write_hf(tmp_path / "b", config, tensors | extra)
    for read in (load_checkpoint, lambda path: convert_hf(path, tmp_path / "ours", note=lambda text: None)):
        with pytest.raises(CheckpointError, match=r"'lm_head\.weight' differs from 'model\.embed_tokens\.weight'"):
            read(folder)


@pytest.mark.parametrize("is_tied", [False, True])
def test_names_without_their_prefix_are_the_same_weights(tmp_path, is_tied):
    config = hf_config("qwen3", tie_word_embeddings=is_tied)
    tensors = hf_tensors(config)
    bare = {name.removeprefix("model."): tensor for name, tensor in tensors.items()}
    bare["layers.0.self_attn.rotary_emb.inv_freq"] = np.ones(4, np.float32)
    if is_tied:
        bare["lm_head.weight"] = tensors["model.embed_tokens.weight"].copy()
    params = load_checkpoint(write_hf(tmp_path / "hf", config, bare)).params
    assert_leaves_match(params, tensors, "qwen3")
    if is_tied:
        bare["lm_head.weight"][-1, -1] += 1e-6
        with pytest.raises(CheckpointError, match=r"'lm_head\.weight' differs from 'embed_tokens\.weight'"):
            load_checkpoint(write_hf(tmp_path / "other", config, bare))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"model.norm.weight": None}, r"'model\.norm\.weight' of shape \[36\] is missing"),
        ({"lm_head.weight": None}, r"'lm_head\.weight' of shape \[293, 36\] is missing"),
        ({"model.layers.1.mlp.extra.weight": (3, 2)}, r"'model\.layers\.1\.mlp\.extra\.weight' of shape \[3, 2\]"),
        ({"model.layers.5.input_layernorm.weight": (D,)}, r"'model\.layers\.5\.input_layernorm\.weight'.*not known"),
        ({"model.layers.4.self_attn.q_proj.bias": (H * h,)}, r"q_proj\.bias' of shape \[48\] is not known"),
        ({"model.layers.2.mlp.down_proj.weight": (F, D)}, r"has shape \[52, 36\], .* asks for \[36, 52\]"),
    ],
)
def test_missing_unknown_and_misshapen_tensors_are_named(tmp_path, change, message):
    config = hf_config("llama")
    tensors = hf_tensors(config)
    for name, shape in change.items():
        if shape is None:
            del tensors[name]
        else:
            tensors[name] = np.zeros(shape, np.float32)
    with pytest.raises(CheckpointError, match=message) as error:
        load_checkpoint(write_hf(tmp_path / "hf", config, tensors))
    assert str(tmp_path) in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_hidden_layers": 10**12}, r"holds 48 tensors, too few for the 1000000000000 layers"),
        ({"num_hidden_layers": L - 1}, r"'model\.layers\.4\..*not known for a llama model of 4 layers"),
        ({"vocab_size": 10**30}, r"'vocab_size' must be a whole number within 64 bits, got 10{30}"),
        ({"vocab_size": 10**18}, r"a parameter of shape \[10{18}, 36\]"),
        ({"vocab_size": 10**15}, r"has shape \[293, 36\], but its config asks for \[10{15}, 36\]"),
    ],
)
def test_absurd_sizes_are_named_before_anything_is_allocated(tmp_path, change, message):
    folder = write_hf(tmp_path / "hf", hf_config("llama") | change, hf_tensors(hf_config("llama")))
    with pytest.raises(CheckpointError, match=message):
        load_checkpoint(folder)


@pytest.mark.parametrize("tokenizer_class", ["PreTrainedTokenizerFast", "Qwen2Tokenizer", "LlamaTokenizerFast"])
@pytest.mark.parametrize("has_bos", [False, True])
def test_a_converted_tokenizer_is_the_folder_s_own(tmp_path, tokenizer_class, has_bos):
    config = hf_config("qwen2" if tokenizer_class == "Qwen2Tokenizer" else "llama")
    folder = write_hf(tmp_path / "hf", config, hf_tensors(config))
    tokenizer = tiny_tokenizer()
    settings = {"tokenizer_class": tokenizer_class, "eos_token": "<eos>", "bos_token": "<eos>"}
    if has_bos:
        tokenizer.post_processor = processors.TemplateProcessing(single="<eos> $A", special_tokens=[("<eos>", 0)])
        settings["add_bos_token"] = True
    tokenizer.save(str(folder / "tokenizer.json"))
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    convert_hf(folder, tmp_path / "ours", note=lambda text: None)
    direct, stored = load_checkpoint(folder).tokenizer, load_checkpoint(tmp_path / "ours").tokenizer
    for text in [*LINES, "  two  spaces 12345\n\n\té", "a<eos>b"]:
        ids = stored(text)["input_ids"]
        assert ids == direct(text)["input_ids"]
        assert (ids[0] == 0) == has_bos
        assert stored.decode(ids[has_bos:]) == direct.decode(ids[has_bos:]) == text


def test_a_folder_without_tokenizer_json_is_named(tmp_path):
    config = hf_config("llama")
    folder = write_hf(tmp_path / "hf", config, hf_tensors(config))
    (folder / "tokenizer.json").unlink()
    with pytest.raises(CheckpointError, match=r"no tokenizer\.json; make one"):
        load_checkpoint(folder)
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(CheckpointError, match="its tokenizer cannot be loaded"):
        load_checkpoint(folder)


def test_a_pipe_in_the_place_of_a_file_is_not_waited_for(tmp_path):
    config = hf_config("llama")
    folder = write_hf(tmp_path / "hf", config, hf_tensors(config))
    for name in ("tokenizer_config.json", "config.json"):
        (folder / name).unlink()
        os.mkfifo(folder / name)
        before = signal.signal(signal.SIGALRM, lambda *args: pytest.fail("it waits"))
        signal.alarm(5)
        try:
            with pytest.raises(CheckpointError, match=f"{name} is not a file"):
                load_checkpoint(folder)
        finally:
            signal.alarm(0)
            signal.signal(signal.SIGALRM, before)


def test_layers_that_the_tensors_cannot_fill_are_not_planned(tmp_path):
    config = hf_config("llama")
    folder = write_hf(tmp_path / "hf", config | {"num_hidden_layers": 40}, hf_tensors(config))
    with pytest.raises(
        CheckpointError, match="48 tensors, too few for the 40 layers"
    ):  # as many as it has, but 9 a layer
        load_checkpoint(folder)


def test_a_tokenizer_leads_to_no_file_elsewhere(tmp_path):
    config = hf_config("llama")
    folder = write_hf(tmp_path / "hf", config, hf_tensors(config))
    (folder / "tokenizer.json").rename(tmp_path / "tokenizer.4.0.json")
    (folder / "tokenizer.json").write_text("{}")
    settings = {"fast_tokenizer_files": ["../tokenizer.4.0.json"]}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings))
    with pytest.raises(CheckpointError, match="names other files under 'fast_tokenizer_files'; remove that entry"):
        load_checkpoint(folder)
