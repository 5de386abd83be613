"""Reads a Hugging Face config.json as our ModelConfig; refuses by name what it asks for and we do not compute."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.mapping.ends import HOW_TO_GIVE, checked_ids, given_ids
from checkpoints_convert.mapping.families import (
    BY_ARCHITECTURE,
    BY_MODEL_TYPE,
    Family,
    check_window,
    no_rope_layers,
    why_not,
)
from checkpoints_convert.mapping.fields import Fields, read_json
from checkpoints_convert.mapping.rope import MAX_HEAD_DIM, rope_settings
from jax_probe_mtp.errors import one_line
from jax_probe_mtp.model.config import ModelConfig

# Settings that change what a model computes, each with the one value under which it computes what we do; an absent
# setting has that value. Some belong to other families: a config that carries one is not the plain model it claims.
_NEUTRAL: dict[str, Any] = {
    "hidden_act": "silu",
    "mlp_bias": False,
    "quantization_config": None,
    "compression_config": None,
    "partial_rotary_factor": 1.0,
    "rotary_pct": 1.0,
    "rope_interleave": False,
    "rope_interleaved": False,
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
    num_kv_heads = _integer_or(config, "num_key_value_heads", family.num_kv_heads)
    head_dim = _integer_or(config, "head_dim", family.head_dim)
    if head_dim is None:
        head_dim = width // max(num_heads, 1)
    if not 0 < head_dim <= MAX_HEAD_DIM:  # before as many divisors are computed
        raise CheckpointError(f"{config.where}: a head size of {head_dim} is not supported; 2 to {MAX_HEAD_DIM} are.")
    context_length = config.integer("max_position_embeddings", family.context_length)
    rope = rope_settings(config, head_dim=head_dim, context_length=context_length, theta=family.rope_theta)
    _refuse_reached_window(config, family, rope.context_length)
    num_layers = config.integer("num_hidden_layers")
    try:
        cfg = ModelConfig(
            family=family.family,
            vocab_size=config.integer("vocab_size"),
            width=width,
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=num_heads if num_kv_heads is None else num_kv_heads,
            head_dim=head_dim,
            mlp_width=config.integer("intermediate_size"),
            context_length=rope.context_length,
            norm_eps=config.number("rms_norm_eps", 1e-6),
            rope_theta=rope.theta,
            rope_divisors=rope.divisors,
            rope_scale=rope.scale,
            no_rope_layers=_no_rope_layers(config, family, num_layers),
            has_qkv_bias=family.has_qkv_bias,
            has_qk_norm=family.has_qk_norm,
            is_tied=config.flag("tie_word_embeddings", family.is_tied),
        )
    except CheckpointError:
        raise
    except (ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"{config.where}: {one_line(error)}") from None
    if eos_token_ids is None:
        return cfg, _eos_token_ids(folder, config, cfg.vocab_size)
    return cfg, given_ids(eos_token_ids, cfg.vocab_size)


def _integer_or(config: Fields, key: str, default: int | None) -> Any:
    """Reads a number; where the key is missing `default` stands in, and null is None."""
    return config.integer(key, None if key in config.values else default)


def _family(config: Fields) -> Family:
    architectures = config.items("architectures", None)
    model_type = config.text("model_type", None)
    if architectures is None and model_type in BY_MODEL_TYPE:
        return BY_MODEL_TYPE[model_type]
    name = architectures[0] if architectures else None
    if not isinstance(name, str) or name not in BY_ARCHITECTURE or len(architectures or ()) != 1:
        hint = "; its own code (auto_map) is never run" if "auto_map" in config else ""
        raise CheckpointError(
            f"{config.where}: architecture {architectures or model_type!r} is not supported"
            f"{why_not(f'{architectures} {model_type}')}; {', '.join(BY_ARCHITECTURE)} are{hint}."
        )
    family = BY_ARCHITECTURE[name]
    if model_type not in (None, family.model_type):
        raise CheckpointError(f"{config.where}: model_type {model_type!r} does not belong to {name}.")
    return family


def _refuse_unsupported(config: Fields, family: Family) -> None:
    neutral = dict(_NEUTRAL)
    if not family.has_qkv_bias:  # transformers reads it for llama, qwen3 and smollm3; qwen2's biases are fixed
        neutral["attention_bias"] = False
    if not family.no_rope_interval:
        neutral["no_rope_layers"] = None
    for key, value in neutral.items():
        found = config.values.get(key)
        says_none = found is None or (value is None and found in (0, [], {}))  # 0 experts are none
        if found != value and not says_none:
            raise CheckpointError(f"{config.where}: {key} = {str(found)[:80]} is not supported, only {value}.")


def _refuse_reached_window(config: Fields, family: Family, context_length: int) -> None:
    layer_types = config.items("layer_types", [])
    for layer_type in layer_types:
        if layer_type not in ("full_attention", "sliding_attention"):
            raise CheckpointError(f"{config.where}: layer_types has {str(layer_type)[:80]!r}, which is not supported.")
    is_named = "sliding_attention" in layer_types
    if not (family.has_window or is_named or config.flag("use_sliding_window", False)):
        return
    window = _integer_or(config, "sliding_window", family.sliding_window)
    if window is None and is_named:
        raise CheckpointError(f"{config.where}: layer_types has 'sliding_attention', but sliding_window is missing.")
    way_out = f"to read texts of up to {window} tokens alone, set max_position_embeddings to that in a copy of the file"
    check_window(window, context_length, key="sliding_window", where=config.where, way_out=way_out)


def _no_rope_layers(config: Fields, family: Family, num_layers: int) -> tuple[int, ...]:
    """Reads SmolLM3's `no_rope_layers`, which holds 1 for a layer whose rows are turned, and 0 for one whose are not."""
    if not family.no_rope_interval:
        return ()
    interval = config.integer("no_rope_layer_interval", family.no_rope_interval)
    if interval < 1:
        raise CheckpointError(f"{config.where}: no_rope_layer_interval must be at least 1, got {interval}.")
    is_turned = config.items("no_rope_layers", None)
    if is_turned is None:
        return no_rope_layers(interval, num_layers)
    if len(is_turned) < num_layers or not all(type(each) is int and each in (0, 1) for each in is_turned):
        raise CheckpointError(
            f"{config.where}: no_rope_layers must hold 0 or 1 for each of {num_layers} layers, got {str(is_turned)[:80]}."
        )
    return tuple(i for i in range(num_layers) if not is_turned[i])


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
