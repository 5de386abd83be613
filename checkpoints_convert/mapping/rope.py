"""Reads how a checkpoint scales its rotary frequencies: as divisors of them, and a factor of their cosines and sines."""

import math
from typing import Any, NamedTuple

from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.mapping.fields import Fields

MAX_HEAD_DIM = 65536  # half as many divisors are computed, or read

_TYPE = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
_TRAINED = "original_max_position_embeddings"
# What each type of scaling reads; another key might change what is computed.
_KEYS: dict[str, set[str]] = {
    "default": set(),
    "linear": {"factor"},
    "dynamic": {"factor", _TRAINED},
    "llama3": {"factor", "low_freq_factor", "high_freq_factor", _TRAINED},
    "yarn": {
        "factor",
        _TRAINED,
        "attention_factor",
        "attn_factor",
        "beta_fast",
        "beta_slow",
        "mscale",
        "mscale_all_dim",
        "truncate",
    },
}
_NEUTRAL: dict[str, tuple[Any, ...]] = {"finetuned": (True, False), "extrapolation_factor": (1,)}
_WHY_NOT = {
    "longrope": "its frequencies change where a text becomes long, and keys that are in the cache would have to be turned anew",
}


class Rope(NamedTuple):
    """How rows are turned by their positions.

    Attributes:
      theta: base of the frequencies.
      divisors: h/2 numbers that divide them, or none.
      scale: what cosines and sines are multiplied by.
      context_length: positions that the model can take.
    """

    theta: float
    divisors: tuple[float, ...]
    scale: float
    context_length: int


def rope_settings(config: Fields, *, head_dim: int, context_length: int, theta: float) -> Rope:
    """Reads what a Hugging Face config says of rope, as transformers 4 (`rope_theta`, `rope_scaling`) or 5
    (`rope_parameters`) wrote it.

    Args:
      config: config.json.
      head_dim: h.
      context_length: `max_position_embeddings`; stands in for `original_max_position_embeddings` where that is left out.
      theta: stands in for `rope_theta`.

    Returns:
      What it comes to. "dynamic" is none: up to `max_position_embeddings` transformers leaves the frequencies as they are, and
      no text here is longer.

    Raises:
      CheckpointError: for another type or key than those above, and for values that make no sense.
    """
    scaling_key = "rope_scaling" if config.get("rope_scaling", dict, "an object", None) else "rope_parameters"
    values: dict[str, Any] = config.get(scaling_key, dict, "an object", {})
    scaling = Fields(values, f"{config.where}: {scaling_key}")
    if any(isinstance(value, dict) for value in values.values()):
        raise CheckpointError(f"{scaling.where} differs by layer ({', '.join(values)}), which is not supported.")
    theta = scaling.number("rope_theta", config.number("rope_theta", theta))
    if scaling.number("partial_rotary_factor", 1.0) != 1.0:
        raise CheckpointError(
            f"{scaling.where}: partial_rotary_factor must be 1, got {values['partial_rotary_factor']}."
        )
    rope_type = _type_of(scaling)
    trained_length = config.integer(_TRAINED, scaling.integer(_TRAINED, context_length))
    divisors: tuple[float, ...] = ()
    scale = 1.0
    if rope_type in ("linear", "dynamic", "yarn"):
        factor = _factor(scaling)
    if rope_type == "linear":
        divisors = linear_divisors(factor, head_dim)
    elif rope_type == "llama3":
        divisors = llama3_divisors(
            theta,
            head_dim,
            factor=scaling.number("factor"),
            low_freq_factor=scaling.number("low_freq_factor"),
            high_freq_factor=scaling.number("high_freq_factor"),
            trained_length=trained_length,
        )
    elif rope_type == "yarn":
        divisors = yarn_divisors(
            theta,
            head_dim,
            factor=factor,
            beta_fast=scaling.number("beta_fast", None) or 32.0,
            beta_slow=scaling.number("beta_slow", None) or 1.0,
            trained_length=trained_length,
            truncates=scaling.flag("truncate", True),
            where=scaling.where,
        )
        scale = _yarn_scale(scaling, factor)
        if _TRAINED in values or _TRAINED in config:
            context_length = longest_context(context_length, factor, trained_length, scaling.where)
    return Rope(theta, divisors, scale, context_length)


def _type_of(scaling: Fields) -> str:
    """Gives the type of a scaling block, of which nothing is left unread.

    Raises:
      CheckpointError: if it has no type, two, one that is not supported, or a key that its type does not read.
    """
    names = {str(scaling.text(key)) for key in ("rope_type", "type") if scaling.values.get(key) is not None}
    if len(names) > 1:
        raise CheckpointError(
            f"{scaling.where}: rope_type and type differ ({', '.join(sorted(names))}); leave one out."
        )
    rope_type = names.pop() if names else "default"
    if rope_type not in _KEYS:
        why = f": {_WHY_NOT[rope_type]}" if rope_type in _WHY_NOT else ""
        raise CheckpointError(
            f"{scaling.where}: rope type {rope_type!r} is not supported{why}; {', '.join(map(repr, _KEYS))} are."
        )
    for key, value in scaling.values.items():
        if key in _TYPE | _KEYS[rope_type] or value is None or value in _NEUTRAL.get(key, ()):
            continue
        if rope_type == "default" and (key == "factor" and value == 1):
            continue
        says = f"{key} = {str(value)[:80]} is not read for rope type {rope_type!r}, and may change what is computed"
        raise CheckpointError(f"{scaling.where}: {says}; give the type that it belongs to, or leave it out.")
    return rope_type


def _factor(scaling: Fields) -> float:
    factor = scaling.number("factor")
    if factor < 1:
        raise CheckpointError(f"{scaling.where}: factor must be at least 1, got {factor:g}.")
    return float(factor)


def longest_context(context_length: int, factor: float, trained_length: int, where: str) -> int:
    """Gives the positions that a model can take whose frequencies were made for `factor` times as many as it was trained on."""
    longest = factor * trained_length
    if not 0 < longest < 2**31:
        raise CheckpointError(f"{where}: {factor:g} times {trained_length} positions is no length of a context.")
    return max(context_length, round(longest))


def linear_divisors(factor: float, head_dim: int) -> tuple[float, ...]:
    """Gives what divides each rotary frequency where all are divided alike; nothing for a factor of 1."""
    return () if factor == 1 else (factor,) * (head_dim // 2)


def yarn_divisors(
    theta: float,
    head_dim: int,
    *,
    factor: float,
    beta_fast: float,
    beta_slow: float,
    trained_length: float,
    truncates: bool,
    where: str,
) -> tuple[float, ...]:
    """Gives what divides each rotary frequency under YaRN: 1 for those that turn often over the trained length, `factor` for
    those that hardly turn, and a blend by the pair's number in between.

    Args:
      theta: base of the frequencies.
      head_dim: h.
      factor: of the positions.
      beta_fast, beta_slow: turns over the trained length from which on a frequency stays, and up to which it is divided.
      trained_length: positions that the model was trained on.
      truncates: True rounds the pairs' numbers between which is blended outwards, to whole ones.
      where: for messages.

    Source: YaRN (arXiv:2309.00071), section 3.2; transformers' `_compute_yarn_parameters` for the rounding.
    """
    if not (theta > 1 and 0 < beta_slow <= beta_fast and trained_length > 0):
        raise CheckpointError(
            f"{where}: yarn needs a theta above 1, 0 < beta_slow <= beta_fast and a trained length above 0, got theta "
            f"{theta:g}, {beta_slow:g}, {beta_fast:g} and {trained_length}."
        )

    def pair_that_turns(times: float) -> float:
        return head_dim * math.log(trained_length / (times * 2 * math.pi)) / (2 * math.log(theta))

    first, last = pair_that_turns(beta_fast), pair_that_turns(beta_slow)
    if truncates:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, head_dim - 1)
    if first == last:
        last += 0.001  # as there, so that nothing is divided by 0
    divisors = []
    for pair in range(head_dim // 2):
        blend = min(max((pair - first) / (last - first), 0.0), 1.0)  # 0: stays; 1: takes the whole factor
        divisors.append(1 / (blend / factor + (1 - blend)))
    return tuple(divisors)


def _yarn_scale(scaling: Fields, factor: float) -> float:
    """Reads what cosines and sines are multiplied by: `attention_factor`, or what the paper takes for the factor.

    `attn_factor` multiplies the latter, as in vLLM, SGLang and llama.cpp; transformers does not read it.
    """
    given, times = scaling.number("attention_factor", None), scaling.number("attn_factor", None)
    scale = given
    if given is None:
        scale = yarn_scale(factor)
        mscale, of_all = scaling.number("mscale", None), scaling.number("mscale_all_dim", None)
        if mscale and of_all:
            scale = yarn_scale(factor, mscale) / yarn_scale(factor, of_all)
        scale *= 1.0 if times is None else times
    elif times not in (None, 1):
        raise CheckpointError(
            f"{scaling.where} has attention_factor {given:g} and attn_factor {times:g}; leave one out."
        )
    if not 0 < scale < math.inf:
        raise CheckpointError(
            f"{scaling.where}: its factors make {scale:g} of the rotary embedding's scale, not above 0."
        )
    return float(scale)


def yarn_scale(factor: float, times: float = 1.0) -> float:
    """Gives what cosines and sines are multiplied by under YaRN (arXiv:2309.00071, section 3.4)."""
    return 0.1 * times * math.log(factor) + 1.0


def llama3_divisors(
    theta: float,
    head_dim: int,
    *,
    factor: float,
    low_freq_factor: float,
    high_freq_factor: float,
    trained_length: int,
) -> tuple[float, ...]:
    """Gives what divides each rotary frequency: 1 for short waves, `factor` for long ones, and a blend in between.

    The divisor is continuous in the frequency, so computing it in float64 where others use float32 moves it by rounding
    only, on either side of the two bounds.

    Source: `apply_scaling` in meta-llama/llama-models `models/llama3/model.py`.
    """
    if not (theta > 0 and factor >= 1 and 0 < low_freq_factor < high_freq_factor and trained_length > 0):
        raise CheckpointError(
            f"llama3 rope needs theta > 0, factor >= 1 and 0 < low_freq_factor < high_freq_factor, got theta {theta}, factor "
            f"{factor}, {low_freq_factor} and {high_freq_factor}, trained length {trained_length}."
        )
    divisors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (i / head_dim)
        blend = (trained_length / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor)
        blend = min(max(blend, 0.0), 1.0)  # 0: a long wave, divided by the whole factor; 1: a short one, left alone
        divisors.append(1 / ((1 - blend) / factor + blend))
    return tuple(divisors)
