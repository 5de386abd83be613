"""Reads the fields of a GGUF file as our ModelConfig; refuses by name a field of the model that we do not know."""

from collections.abc import Sequence
from typing import Any

import numpy as np

from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.gguf.ends import read_ends
from checkpoints_convert.gguf.header import GGUFFields
from checkpoints_convert.gguf.reader import GGUFSource
from checkpoints_convert.mapping.ends import given_ids
from checkpoints_convert.mapping.families import BY_GGUF, check_window, no_rope_layers, why_not
from checkpoints_convert.mapping.fields import shortest_float
from checkpoints_convert.mapping.names import GGUF_HEAD, GGUF_ROPE_DIVISORS
from checkpoints_convert.mapping.rope import (
    MAX_HEAD_DIM,
    Rope,
    linear_divisors,
    longest_context,
    yarn_divisors,
    yarn_scale,
)
from jax_probe_mtp.errors import one_line
from jax_probe_mtp.model.config import ModelConfig

# Fields that we read, or that change nothing.
_KNOWN = {
    "block_count",
    "context_length",
    "embedding_length",
    "feed_forward_length",
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "attention.layer_norm_rms_epsilon",
    "rope.freq_base",
    "rope.dimension_count",
    "rope.scaling.original_context_length",
    "rope.scaling.finetuned",
    "rope.scaling.type",
    "rope.scaling.factor",
    "rope.scaling.attn_factor",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
    "rope.scale_linear",
    "attention.sliding_window",
    "vocab_size",
    "tensor_data_layout",
}

_MISTRAL_V01 = (4096, 14336, 8, 10_000.0)  # D, F, K and theta; from v0.2 on without a window, and theta is 1,000,000

# Fields that change what is computed, each with the values under which it does not.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "expert_count": (0,),
    "expert_used_count": (0,),
    "attention.causal": (True,),
    "attention.scale": (0.0,),
    "rope.scaling.yarn_log_multiplier": (0.0,),
    "rope.scaling.yarn_ext_factor": (1.0,),
    "rope.scaling.yarn_attn_factor": (1.0,),
    "logit_scale": (0.0, 1.0),
    "residual_scale": (0.0, 1.0),
    "embedding_scale": (0.0, 1.0),
}


def read_gguf_config(
    fields: dict[str, Any], source: GGUFSource, where: str, eos_token_ids: Sequence[int] | None = None
) -> tuple[ModelConfig, tuple[int, ...]]:
    """Reads the model and its end-of-text ids.

    Args:
      fields: the file's fields.
      source: its tensors; the vocabulary's size, rope divisors and a tied head are known by them.
      where: the file, for messages.
      eos_token_ids: ids that end a text, in place of those of the file.

    Returns:
      The configuration, and the ids that end a text, at least one.

    Raises:
      CheckpointError: if a value is missing, of a wrong type, or asks for something not supported.
    """
    top = GGUFFields(fields, where)
    name = top.text("general.architecture")
    if name not in BY_GGUF:
        raise CheckpointError(
            f"{where}: architecture {name!r} is not supported{why_not(name)}; {', '.join(BY_GGUF)} are."
        )
    family = BY_GGUF[name]
    if top.text("general.type", "model") != "model":
        raise CheckpointError(f"{where}: general.type is {fields['general.type']!r}; only a whole 'model' can be read.")
    if top.integer("split.count", 1) > 1:
        raise CheckpointError(f"{where} is one part of {fields['split.count']}; join them (llama-gguf-split --merge).")
    prefix = name + "."
    model = GGUFFields({key.removeprefix(prefix): fields[key] for key in fields if key.startswith(prefix)}, where)
    for key, value in model.values.items():
        if key not in _KNOWN and value not in _NEUTRAL.get(key, ()):
            raise CheckpointError(f"{where}: {name}.{key} = {str(value)[:80]} is not supported.")
    width, num_heads = model.integer("embedding_length"), model.integer("attention.head_count")
    head_dim = model.integer("attention.key_length", width // max(num_heads, 1))
    for key in ("attention.value_length", "rope.dimension_count"):
        if model.integer(key, head_dim) != head_dim:
            raise CheckpointError(f"{where}: {name}.{key} = {model.values[key]} must equal the head size {head_dim}.")
    rope = _rope(model, source, head_dim)
    _refuse_reached_window(model, width, rope)
    num_layers = model.integer("block_count")
    embed = source.tensors.get("token_embd.weight")
    if embed is None:
        raise CheckpointError(f"{where}: tensor 'token_embd.weight' is missing; fetch the file again.")
    try:
        cfg = ModelConfig(
            family=family.family,
            vocab_size=embed.shape[0],
            width=width,
            num_layers=num_layers,
            num_heads=num_heads,
            num_kv_heads=model.integer("attention.head_count_kv", num_heads),
            head_dim=head_dim,
            mlp_width=model.integer("feed_forward_length"),
            context_length=rope.context_length,
            norm_eps=shortest_float(model.number("attention.layer_norm_rms_epsilon")),
            rope_theta=rope.theta,
            rope_divisors=rope.divisors,
            rope_scale=rope.scale,
            no_rope_layers=no_rope_layers(family.no_rope_interval, num_layers),  # llama.cpp fixes it, no field says it
            has_qkv_bias=family.has_qkv_bias,
            has_qk_norm=family.has_qk_norm,
            is_tied=GGUF_HEAD not in source.tensors,
        )
    except CheckpointError:
        raise
    except (ValueError, ZeroDivisionError) as error:
        raise CheckpointError(f"{where}: {one_line(error)}") from None
    if eos_token_ids is None:
        return cfg, read_ends(top, cfg.vocab_size)
    return cfg, given_ids(eos_token_ids, cfg.vocab_size)


def _refuse_reached_window(model: GGUFFields, width: int, rope: Rope) -> None:
    """Refuses a window that a file names, and that of Mistral 7B v0.1, whose files do not name it: by its sizes."""
    way_out = "to read shorter texts alone, set context_length to that in a copy (gguf-set-metadata)"
    window, key = model.integer("attention.sliding_window", 0), "attention.sliding_window"
    sizes = (width, model.integer("feed_forward_length"), model.integer("attention.head_count_kv", 0), rope.theta)
    if not window and sizes == _MISTRAL_V01:
        window, key = 4096, "the window of Mistral 7B v0.1, which this model has the sizes of,"
    check_window(window or None, rope.context_length, key=key, where=model.where, way_out=way_out)


def _rope(model: GGUFFields, source: GGUFSource, head_dim: int) -> Rope:
    """Reads rope's scaling as llama.cpp does: without a type a factor is a linear one, and a factor of 0 is none."""
    theta, context_length = shortest_float(model.number("rope.freq_base", 10_000.0)), model.integer("context_length")
    factor = model.number("rope.scaling.factor", model.number("rope.scale_linear", None))
    rope_type = model.text("rope.scaling.type", "linear" if factor else "none")
    if rope_type not in ("none", "linear", "yarn"):
        says = f"rope.scaling.type = {rope_type!r:.80} is not supported; none, linear and yarn are"
        raise CheckpointError(f"{model.where}: {says}.")
    if rope_type == "none" and factor not in (None, 0, 1):
        raise CheckpointError(f"{model.where}: rope.scaling.type is none, but its factor {factor:g}; leave one out.")
    if rope_type != "none" and factor is None:
        raise CheckpointError(f"{model.where}: rope.scaling.type is {rope_type}, but rope.scaling.factor is missing.")
    factor = shortest_float(factor or 1.0)
    if factor < 1:
        raise CheckpointError(f"{model.where}: rope.scaling.factor must be at least 1, got {factor:g}.")
    scale, divisors = shortest_float(model.number("rope.scaling.attn_factor", 1.0)), _rope_divisors(source)
    if not 0 < scale < np.inf:
        raise CheckpointError(f"{model.where}: rope.scaling.attn_factor must be above 0, got {scale:g}.")
    if divisors and factor != 1:
        raise CheckpointError(f"{model.where} has {GGUF_ROPE_DIVISORS} and a rope.scaling.factor; one of them may be.")
    if rope_type == "linear":
        divisors = divisors or linear_divisors(factor, head_dim)
    elif rope_type == "yarn":
        trained_length = model.integer("rope.scaling.original_context_length", context_length)
        divisors = divisors or yarn_divisors(
            theta,
            head_dim,
            factor=factor,
            beta_fast=model.number("rope.scaling.yarn_beta_fast", 32.0),
            beta_slow=model.number("rope.scaling.yarn_beta_slow", 1.0),
            trained_length=trained_length,
            truncates=True,
            where=model.where,
        )
        scale *= yarn_scale(factor)
        if "rope.scaling.original_context_length" in model:
            context_length = longest_context(context_length, factor, trained_length, model.where)
    return Rope(theta, divisors, scale, context_length)


def _rope_divisors(source: GGUFSource) -> tuple[float, ...]:
    """Reads `rope_freqs.weight`, where a Llama 3.1 file has it: it holds the divisors of the frequencies, not frequencies."""
    info = source.tensors.get(GGUF_ROPE_DIVISORS)
    if info is None:
        return ()
    if info.dtype != "F32" or len(info.shape) != 1 or info.shape[0] > MAX_HEAD_DIM // 2:
        raise CheckpointError(
            f"{info.file}: {GGUF_ROPE_DIVISORS} must be a vector of F32, h/2 long, got {info.dtype} of "
            f"{list(info.shape)}."
        )
    divisors = source.read(GGUF_ROPE_DIVISORS, 0, info.shape[0])
    if not (np.isfinite(divisors) & (divisors > 0)).all():
        raise CheckpointError(f"{info.file}: {GGUF_ROPE_DIVISORS} holds a divisor that is not above 0.")
    return tuple(divisors.tolist())
