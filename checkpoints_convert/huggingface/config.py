"""Reads a Hugging Face config.json as our ModelConfig; refuses by name what it asks for and we do not compute."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.mapping.ends import HOW_TO_GIVE, checked_ids, given_ids
from checkpoints_convert.mapping.fields import Fields, read_json
from checkpoints_convert.mapping.rope import MAX_HEAD_DIM, rope_settings
from jax_probe_mtp.errors import one_line
from jax_probe_mtp.model.config import ModelConfig

FAMILIES = {"LlamaForCausalLM": "llama", "Qwen2ForCausalLM": "qwen2", "Qwen3ForCausalLM": "qwen3"}

# What transformers assumes where config.json leaves it out.
_DEFAULT_CONTEXT = {"llama": 2048, "qwen2": 32768, "qwen3": 32768}
_DEFAULT_KV_HEADS = {"qwen2": 32, "qwen3": 32}  # llama: as many as query heads
_DEFAULT_HEAD_DIM = {"qwen3": 128}  # the others: D / H

# Settings that change what a model computes, each with the one value under which it computes what we do; an absent
# setting has that value. Some belong to other families: a config that carries one is not the plain model it claims.
_NEUTRAL: dict[str, Any] = {
    "hidden_act": "silu",
    "mlp_bias": False,
    "use_sliding_window": False,
    "quantization_config": None,
    "compression_config": None,
    "pretraining_tp": 1,
    "partial_rotary_factor": 1.0,
    "rotary_pct": 1.0,
    "rope_interleave": False,
    "rope_interleaved": False,
    "no_rope_layers": None,
    "is_encoder_decoder": False,
    "add_cross_attention": False,
    "is_causal": True,
    "alibi": False,
    "clip_qkv": None,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "logit_scale": 1.0,
    "logits_scaling": 1.0,
    "logits_scale": 1.0,
    "attention_multiplier": 1.0,
    "embedding_multiplier": 1.0,
    "residual_multiplier": 1.0,
    "query_pre_attn_scalar": None,
    "num_experts": None,
    "num_local_experts": None,
    "n_routed_experts": None,
    "moe_num_experts": None,
    "dual_chunk_attention_config": None,
    "use_mrope": False,
    "adapters": None,
}


def read_hf_config(folder: Path, eos_token_ids: Sequence[int] | None = None) -> tuple[ModelConfig, tuple[int, ...]]:
    """Reads the model and its end-of-text ids.

    Args:
      folder: holds config.json and perhaps generation_config.json.
      eos_token_ids: ids that end a text, in place of those of the folder.

    Returns:
      The configuration, and the ids that end a text: those of generation_config.json or else of config.json.

    Raises:
      CheckpointError: if a value is missing, of a wrong type, or asks for something not supported.
    """
    config = Fields(read_json(folder / "config.json"), str(folder / "config.json"))
    family = _family(config)
    _refuse_unsupported(config, family)
    num_heads, width = config.integer("num_attention_heads"), config.integer("hidden_size")
    num_kv_heads = num_heads
    if family in _DEFAULT_KV_HEADS and "num_key_value_heads" not in config.values:
        num_kv_heads = _DEFAULT_KV_HEADS[family]
    head_dim = width // max(num_heads, 1)
    if family in _DEFAULT_HEAD_DIM and "head_dim" not in config.values:
        head_dim = _DEFAULT_HEAD_DIM[family]
    head_dim = config.integer("head_dim", head_dim)
    if not 0 < head_dim <= MAX_HEAD_DIM:  # before as many divisors are computed
        raise CheckpointError(f"{config.where}: a head size of {head_dim} is not supported; 2 to {MAX_HEAD_DIM} are.")
    context_length = config.integer("max_position_embeddings", _DEFAULT_CONTEXT[family])
    rope = rope_settings(config, head_dim=head_dim, context_length=context_length)
    try:
        cfg = ModelConfig(
            family=family,
            vocab_size=config.integer("vocab_size"),
            width=width,
            num_layers=config.integer("num_hidden_layers"),
            num_heads=num_heads,
            num_kv_heads=config.integer("num_key_value_heads", num_kv_heads),
            head_dim=head_dim,
            mlp_width=config.integer("intermediate_size"),
            context_length=rope.context_length,
            norm_eps=config.number("rms_norm_eps", 1e-6),
            rope_theta=rope.theta,
            rope_divisors=rope.divisors,
            rope_scale=rope.scale,
            has_qkv_bias=family == "qwen2",
            has_qk_norm=family == "qwen3",
            is_tied=config.flag("tie_word_embeddings", False),
        )
    except CheckpointError:
        raise
    except (ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"{config.where}: {one_line(error)}") from None
    if eos_token_ids is None:
        return cfg, _eos_token_ids(folder, config, cfg.vocab_size)
    return cfg, given_ids(eos_token_ids, cfg.vocab_size)


def _family(config: Fields) -> str:
    architectures = config.items("architectures", None)
    model_type = config.text("model_type", None)
    if architectures is None and model_type in FAMILIES.values():
        return model_type
    name = architectures[0] if architectures else None
    if not isinstance(name, str) or name not in FAMILIES or len(architectures or ()) != 1:
        hint = "; its own code (auto_map) is never run" if "auto_map" in config else ""
        raise CheckpointError(
            f"{config.where}: architecture {architectures or model_type!r} is not supported; "
            f"{', '.join(FAMILIES)} are{hint}."
        )
    if model_type not in (None, FAMILIES[name]):
        raise CheckpointError(f"{config.where}: model_type {model_type!r} does not belong to {name}.")
    return FAMILIES[name]


def _refuse_unsupported(config: Fields, family: str) -> None:
    neutral = dict(_NEUTRAL)
    if family != "qwen2":  # transformers reads it for llama and qwen3; qwen2's biases are fixed
        neutral["attention_bias"] = False
    for key, value in neutral.items():
        found = config.values.get(key)
        says_none = found is None or (value is None and found in (0, [], {}))  # 0 experts are none
        if found != value and not says_none:
            raise CheckpointError(f"{config.where}: {key} = {str(found)[:80]} is not supported, only {value}.")
    for layer_type in config.items("layer_types", []):
        if layer_type != "full_attention":
            raise CheckpointError(f"{config.where}: layer_types has {layer_type!r}; only 'full_attention' may be.")


def _eos_token_ids(folder: Path, config: Fields, vocab_size: int) -> tuple[int, ...]:
    sources = [config]
    generation = folder / "generation_config.json"
    if generation.exists():
        sources.insert(0, Fields(read_json(generation), str(generation)))
    for source in sources:
        if "eos_token_id" not in source:
            continue
        ids = source.get("eos_token_id", (int, list), "an id or a list of ids")
        if ids := checked_ids(ids if isinstance(ids, list) else [ids], vocab_size, f"{source.where}: eos_token_id"):
            return ids
    raise CheckpointError(
        f"{config.where} and generation_config.json have no eos_token_id; add the id that ends a text, or give it with "
        f"{HOW_TO_GIVE}."
    )
