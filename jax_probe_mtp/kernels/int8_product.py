"""Multiplies few rows with a weight of eight bits by the kernels made for the GPU at hand: Hopper's own, or Triton's."""

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import jax
import jax.numpy as jnp

from jax_probe_mtp.kernels import int8_triton

HOPPER = ("H100", "H200", "H800", "H20", "GH200")

Weight = tuple[jax.Array, jax.Array]  # value int8 [I, D] and scale float32 [I]: `model.params.Int8`


def is_supported(num_rows: int, x_dtype: jnp.dtype, *values: jax.Array) -> bool:
    """Says whether the kernels take weights of these values, each [I, D], and are the fastest for so many rows."""
    return num_rows <= _kernels().MAX_ROWS and x_dtype == jnp.bfloat16 and all(map(has_tiles, values))


def has_tiles(value: jax.Array) -> bool:
    """Says whether the kernels take a weight of this value, [I, D]."""
    return _kernels().choose_tiles(value.shape[1], value.shape[0]) is not None


def fitting_rows(num_rows: int) -> int:
    """Says how many rows the kernels want for so many: the rest hold anything, and where they are missing, zeros are added."""
    rows: int = _kernels().fitting_rows(num_rows)
    return rows


def product_parts(
    x_MD: jax.Array, weight: Weight, *, kernels: ModuleType | None = None, tiles: Any = None, interpret: Any = False
) -> jax.Array:
    """Multiplies x with the weight value * scale, and gives P parts of the sums.

    Args:
      x_MD: M rows, bfloat16; more than the kernels take at a time go through in blocks.
      weight: value and scale.
      kernels: `int8_hopper` or `int8_triton`; those for the GPU at hand when left out, interpreted Triton's; static.
      tiles: how the work is cut; `kernels.choose_tiles` when left out; static.
      interpret: as for `kernels.multiply`; static.

    Returns:
      float32 [P, N, I], N rows of which the first M are meant; their sum is the product, not rounded yet.
    """
    return _multiply(x_MD, [weight], jnp.float32, kernels, tiles, interpret)


def gated_product(
    x_MD: jax.Array,
    gate: Weight,
    up: Weight,
    *,
    kernels: ModuleType | None = None,
    tiles: Any = None,
    interpret: Any = False,
) -> jax.Array:
    """Computes silu(x gate) (x up), [N, F] in x's dtype, rounded once. Takes what `product_parts` takes."""
    return _multiply(x_MD, [gate, up], x_MD.dtype, kernels, tiles, interpret)[0]


def _multiply(
    x_MD: jax.Array,
    weights: Sequence[Weight],
    out_dtype: jnp.dtype,
    kernels: ModuleType | None,
    tiles: Any,
    interpret: Any,
) -> jax.Array:
    kernels = kernels or (int8_triton if interpret else _kernels())
    values, scales = zip(*weights, strict=True)
    I, D = values[0].shape
    if len(x_MD) > kernels.MAX_ROWS:
        blocks = [x_MD[start : start + kernels.MAX_ROWS] for start in range(0, len(x_MD), kernels.MAX_ROWS)]
        each = [_multiply(x, weights, out_dtype, kernels, tiles, interpret)[:, : len(x)] for x in blocks]
        return jnp.concatenate(each, axis=1)
    missing = kernels.fitting_rows(len(x_MD)) - len(x_MD)
    if missing:
        x_MD = jnp.pad(x_MD, ((0, missing), (0, 0)))
    tiles = tiles or kernels.choose_tiles(D, I, num_weights=len(weights))
    assert tiles is not None, f"no tiles for {values[0].shape}: ask is_supported first"
    parts: jax.Array = kernels.multiply(x_MD, values, scales, tiles, out_dtype, interpret)
    return parts


def _kernels() -> ModuleType:
    """Gives the module of kernels for the devices that a program is traced for."""
    device = jax.sharding.get_abstract_mesh().abstract_device or jax.devices()[0]
    # JAX 0.12 refuses Hopper's loads of scales, which fill no whole sectors of memory.
    if jax.__version_info__ >= (0, 12) or not any(name in device.device_kind.split() for name in HOPPER):
        return int8_triton
    from jax_probe_mtp.kernels import int8_hopper  # here: what it imports takes 0.3 s, which others need not wait for

    return int8_hopper
