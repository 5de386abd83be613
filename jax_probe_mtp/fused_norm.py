"""The norm of a single row as one GPU kernel (Pallas, Triton): XLA makes one of many rows' norms, and two of one row's."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu


def norm_row(
    x_D: jax.Array, weight_D: jax.Array, *, eps: float, interpret: bool = False
) -> tuple[jax.Array, jax.Array]:
    """`layers.rms_norm` of one row, and a copy of the row itself.

    Args:
      x_D: the row.
      weight_D: the norm's weight, in x's dtype.
      eps: added to the mean square; static.
      interpret: runs the kernel as JAX operations on any device: slow, for tests.

    Returns:
      x, and its norm: [D] each, in x's dtype.
    """
    size = pl.next_power_of_2(x_D.size)
    return pl.pallas_call(
        functools.partial(_kernel, num_values=x_D.size, eps=eps),
        grid=(1,),
        in_specs=[pl.BlockSpec((size,), lambda i: (0,))] * 2,
        out_specs=(pl.BlockSpec((size,), lambda i: (0,)),) * 2,
        out_shape=(jax.ShapeDtypeStruct(x_D.shape, x_D.dtype),) * 2,
        compiler_params=plgpu.CompilerParams(num_warps=8, num_stages=1),
        interpret=interpret,
    )(x_D, weight_D)


def _kernel(x_ref: Any, weight_ref: Any, copy_ref: Any, out_ref: Any, *, num_values: int, eps: float) -> None:
    is_value = jnp.arange(x_ref.shape[0]) < num_values
    x = plgpu.load(x_ref, mask=is_value, other=0)
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.sum(x32 * x32) / num_values + eps)
    weight = plgpu.load(weight_ref, mask=is_value, other=0)
    plgpu.store(copy_ref, x, mask=is_value)
    plgpu.store(out_ref, weight * normed.astype(x.dtype), mask=is_value)
