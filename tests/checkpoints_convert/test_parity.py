"""Our logits against those of transformers on torch, for models saved by transformers itself."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.checkpoints.hf_folders import tiny_tokenizer

from checkpoints_convert import convert_hf, load_checkpoint
from jax_probe_mtp.model.transformer import full_logits

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

NUM_TOKENS = 500
LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 500000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
    "original_max_position_embeddings": 64,  # short, so that the scaling is felt at 500 tokens
}
YARN = {"rope_type": "yarn", "rope_theta": 10000.0, "factor": 8.0, "original_max_position_embeddings": 64}
PLAIN = {"rope_type": "default", "rope_theta": 10000.0}

# name: config, model, what differs from the sizes below, largest shard in bytes or None
CASES = {
    "llama": (transformers.LlamaConfig, transformers.LlamaForCausalLM, {}, None),
    "llama-3.1-tied-sharded": (
        transformers.LlamaConfig,
        transformers.LlamaForCausalLM,
        {"rope_parameters": LLAMA3, "tie_word_embeddings": True},
        60_000,
    ),
    "qwen2-sharded": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, {}, 60_000),
    "qwen2-tied": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, {"tie_word_embeddings": True}, None),
    "llama-linear": (
        transformers.LlamaConfig,
        transformers.LlamaForCausalLM,
        {"rope_parameters": PLAIN | {"rope_type": "linear", "factor": 4.0}},
        None,
    ),
    "llama-dynamic": (
        transformers.LlamaConfig,
        transformers.LlamaForCausalLM,
        {"rope_parameters": PLAIN | {"rope_type": "dynamic", "factor": 4.0}},
        None,
    ),
    "qwen2-yarn": (transformers.Qwen2Config, transformers.Qwen2ForCausalLM, {"rope_parameters": YARN}, None),
    "qwen2-yarn-mscale": (
        transformers.Qwen2Config,
        transformers.Qwen2ForCausalLM,
        {"rope_parameters": YARN | {"mscale": 0.7, "mscale_all_dim": 1.3, "beta_fast": 8.0, "beta_slow": 2.0}},
        None,
    ),
    "qwen3-yarn-not-truncated": (
        transformers.Qwen3Config,
        transformers.Qwen3ForCausalLM,
        {"rope_parameters": YARN | {"attention_factor": 1.3, "truncate": False}, "head_dim": 24},
        None,
    ),
    "mistral": (
        transformers.MistralConfig,
        transformers.MistralForCausalLM,
        {"sliding_window": None, "head_dim": 20, "rope_parameters": PLAIN | {"rope_theta": 1e6}},  # as Nemo: no D / H
        None,
    ),
    "mistral-window-not-reached": (
        transformers.MistralConfig,
        transformers.MistralForCausalLM,
        {"sliding_window": 1024},
        60_000,
    ),
    "mistral-yarn": (
        transformers.MistralConfig,
        transformers.MistralForCausalLM,
        {"sliding_window": None, "head_dim": 20, "rope_parameters": YARN},
        None,
    ),
    "smollm3": (transformers.SmolLM3Config, transformers.SmolLM3ForCausalLM, {"num_hidden_layers": 5}, None),
    "smollm3-yarn-sharded": (
        transformers.SmolLM3Config,
        transformers.SmolLM3ForCausalLM,
        {"no_rope_layers": [0, 1, 0], "rope_parameters": YARN, "tie_word_embeddings": False},
        60_000,
    ),
    "qwen3": (transformers.Qwen3Config, transformers.Qwen3ForCausalLM, {"head_dim": 24}, None),
    "qwen3-tied-sharded": (
        transformers.Qwen3Config,
        transformers.Qwen3ForCausalLM,
        {"head_dim": 24, "tie_word_embeddings": True},
        60_000,
    ),
}


def random_model(config_class, model_class, changes):
    """Makes a model whose every weight matters: logits of a few units, biases and norms away from 0 and 1."""
    torch.manual_seed(0)
    sizes = {
        "vocab_size": 331,
        "hidden_size": 96,
        "intermediate_size": 136,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "max_position_embeddings": 1024,
        "rms_norm_eps": 1e-5,
        "rope_parameters": PLAIN,
        "eos_token_id": 0,
        "pad_token_id": None,  # else SmolLM3 takes its own, 128004
        "attn_implementation": "eager",
    }
    model = model_class(config_class(**(sizes | changes))).float().eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight"):
                parameter.normal_(1.0, 0.2)
            elif name.endswith("bias"):
                parameter.normal_(0.0, 0.5)
            else:
                parameter.normal_(0.0, 1.5 * parameter.shape[-1] ** -0.5)
    return model


@pytest.mark.parametrize("case", CASES)
def test_logits_equal_those_of_transformers(tmp_path, case):
    config_class, model_class, changes, shard_bytes = CASES[case]
    model = random_model(config_class, model_class, changes)
    model.save_pretrained(tmp_path / "hf", **({"max_shard_size": shard_bytes} if shard_bytes else {}))
    tiny_tokenizer().save(str(tmp_path / "hf" / "tokenizer.json"))
    assert (tmp_path / "hf" / "model.safetensors.index.json").exists() == bool(shard_bytes)
    convert_hf(tmp_path / "hf", tmp_path / "ours", note=lambda text: None)
    ours = load_checkpoint(tmp_path / "ours")

    ids = np.random.default_rng(1).integers(0, 331, NUM_TOKENS)
    with torch.no_grad():
        theirs_TV = model(torch.from_numpy(ids)[None]).logits[0].numpy()
    ours_TV = np.asarray(jax.jit(full_logits, static_argnums=1)(ours.params, ours.config, jnp.asarray(ids)[None])[0])

    assert theirs_TV.std() > 1  # else a small difference would say nothing
    assert np.abs(ours_TV - theirs_TV).max() <= 1e-3
    assert (ours_TV.argmax(-1) == theirs_TV.argmax(-1)).all()


SCALED = [
    case for case in CASES if CASES[case][2].get("rope_parameters", PLAIN)["rope_type"] not in ("default", "dynamic")
]


@pytest.mark.parametrize("case", SCALED)
def test_scaling_is_felt_in_that_comparison(case):
    config_class, model_class, changes, _ = CASES[case]
    ids = torch.arange(NUM_TOKENS)[None] % 331
    with torch.no_grad():
        scaled = random_model(config_class, model_class, changes)(ids).logits
        plain_rope = {"rope_parameters": PLAIN | {"rope_theta": changes["rope_parameters"]["rope_theta"]}}
        plain = random_model(config_class, model_class, changes | plain_rope)(ids).logits
    assert (scaled - plain).abs().max() > 0.1


def test_rope_divisors_equal_transformers_frequencies(tmp_path):
    config_class, model_class, changes, _ = CASES["llama-3.1-tied-sharded"]
    for trained_length, head_dim in ((64, 16), (8192, 128)):
        rope = LLAMA3 | {"original_max_position_embeddings": trained_length}
        model = random_model(config_class, model_class, changes | {"rope_parameters": rope, "head_dim": head_dim})
        folder = tmp_path / str(head_dim)
        model.save_pretrained(folder)
        tiny_tokenizer().save(str(folder / "tokenizer.json"))
        cfg = load_checkpoint(folder).config
        plain = cfg.rope_theta ** -(np.arange(0, head_dim, 2) / head_dim)
        np.testing.assert_allclose(
            plain / np.array(cfg.rope_divisors), model.model.rotary_emb.inv_freq.numpy(), rtol=2e-6
        )
        assert 1 < max(cfg.rope_divisors) <= 8
        assert min(cfg.rope_divisors) == 1
