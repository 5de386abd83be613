"""Adds to the residual stream and norms it in one GPU kernel (Pallas, Triton), between one half of a layer and the next."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu


def add_norm(
    x_MD: jax.Array, parts_PND: jax.Array, weight_D: jax.Array, *, eps: float, interpret: bool = False, num_out: int = 0
) -> tuple[jax.Array, jax.Array]:
    """Adds the parts to x, and norms the sum as `layers.rms_norm` does.

    Args:
      x_MD: the residual stream of M rows.
      parts_PND: P parts of what is added to it; any dtype; the first M of N rows are.
      weight_D: the norm's weight, in x's dtype.
      eps: added to the mean square; static.
      interpret: runs the kernel as JAX operations on any device: slow, for tests.
      num_out: rows of the norm's array, M when left out; those behind the first M hold anything; static.

    Returns:
      The sum [M, D] and its norm, in x's dtype; the sum is rounded before it is normed.
    """
    P, (M, D) = len(parts_PND), x_MD.shape
    size = pl.next_power_of_2(D)
    row = pl.BlockSpec((None, size), lambda m: (m, 0))
    return pl.pallas_call(
        functools.partial(_norm_kernel, num_values=D, eps=eps),
        grid=(M,),
        in_specs=[row, pl.BlockSpec((P, None, size), lambda m: (0, m, 0)), pl.BlockSpec((size,), lambda m: (0,))],
        out_specs=(row, row),
        out_shape=tuple(jax.ShapeDtypeStruct((rows, D), x_MD.dtype) for rows in (M, num_out or M)),
        compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=1),
        interpret=interpret,
    )(x_MD, parts_PND, weight_D)


def _norm_kernel(
    x_ref: Any, parts_ref: Any, weight_ref: Any, sum_ref: Any, out_ref: Any, *, num_values: int, eps: float
) -> None:
    is_value = jnp.arange(x_ref.shape[0]) < num_values
    parts = [jnp.int32(p) for p in range(parts_ref.shape[0])]  # interpreted loads know no Python ints
    # All loads first: one waits for memory no longer than many.
    weight, x = (plgpu.load(ref, mask=is_value, other=0) for ref in (weight_ref, x_ref))
    added = [plgpu.load(parts_ref.at[p, :], mask=is_value, other=0) for p in parts]
    x = functools.reduce(jnp.add, [part.astype(jnp.float32) for part in (x, *added)]).astype(x.dtype)
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.sum(x32 * x32) / num_values + eps)
    plgpu.store(sum_ref, x, mask=is_value)
    plgpu.store(out_ref, weight * normed.astype(x.dtype), mask=is_value)
