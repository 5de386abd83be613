"""Reads Llama 3.1's scaling of the rotary frequencies, as divisors."""

import math
from typing import Any

from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.mapping.fields import Fields

MAX_HEAD_DIM = 65536  # half as many divisors are computed, or read


def rope_settings(config: Fields, *, head_dim: int, context_length: int) -> tuple[float, tuple[float, ...]]:
    """Reads what a Hugging Face config says of rope, as transformers 4 (`rope_theta`, `rope_scaling`) or 5
    (`rope_parameters`) wrote it.

    Args:
      config: config.json.
      head_dim: h.
      context_length: stands in for `original_max_position_embeddings` where that is left out.

    Returns:
      The base of the frequencies, and their h/2 divisors or none.

    Raises:
      CheckpointError: for a rope type other than "default" and "llama3".
    """
    scaling_key = "rope_scaling" if config.get("rope_scaling", dict, "an object", None) else "rope_parameters"
    values: dict[str, Any] = config.get(scaling_key, dict, "an object", {})
    scaling = Fields(values, f"{config.where}: {scaling_key}")
    if any(isinstance(value, dict) for value in values.values()):
        raise CheckpointError(f"{scaling.where} differs by layer ({', '.join(values)}), which is not supported.")
    theta = scaling.number("rope_theta", config.number("rope_theta", 10_000.0))
    if scaling.number("partial_rotary_factor", 1.0) != 1.0:
        raise CheckpointError(
            f"{scaling.where}: partial_rotary_factor must be 1, got {values['partial_rotary_factor']}."
        )
    rope_type = scaling.text("rope_type", scaling.text("type", "default"))
    if rope_type == "default":
        return theta, ()
    if rope_type != "llama3":
        raise CheckpointError(f"{scaling.where}: rope type {rope_type!r} is not supported; 'default' and 'llama3' are.")
    trained_length = config.integer(
        "original_max_position_embeddings", scaling.integer("original_max_position_embeddings", context_length)
    )
    divisors = llama3_divisors(
        theta,
        head_dim,
        factor=scaling.number("factor"),
        low_freq_factor=scaling.number("low_freq_factor"),
        high_freq_factor=scaling.number("high_freq_factor"),
        trained_length=trained_length,
    )
    return theta, divisors


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
    if not (theta > 0 and factor > 0 and 0 < low_freq_factor < high_freq_factor and trained_length > 0):
        raise CheckpointError(
            f"llama3 rope needs theta and factor > 0 and 0 < low_freq_factor < high_freq_factor, got theta {theta}, factor "
            f"{factor}, {low_freq_factor} and {high_freq_factor}, trained length {trained_length}."
        )
    divisors = []
    for i in range(0, head_dim, 2):
        wavelength = 2 * math.pi * theta ** (i / head_dim)
        blend = (trained_length / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor)
        blend = min(max(blend, 0.0), 1.0)  # 0: a long wave, divided by the whole factor; 1: a short one, left alone
        divisors.append(1 / ((1 - blend) / factor + blend))
    return tuple(divisors)
