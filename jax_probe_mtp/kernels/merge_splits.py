"""Merges the splits of attention in one GPU kernel (Pallas, Triton), where XLA makes two."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu


def merge_splits(
    acc_PBKGTh: jax.Array,
    total_PBKGT: jax.Array,
    top_PBKGT: jax.Array,
    dtype: jnp.dtype,
    num_out: int,
    interpret: bool,
) -> jax.Array:
    """Merges the softmax of P splits into that of all slots; a split that had nothing to read weighs nothing.

    Args:
      acc_PBKGTh: float32, sums of weights times values.
      total_PBKGT: float32, sums of weights.
      top_PBKGT: float32, the score whose weight is 1.
      dtype: of the result; static.
      num_out: N, rows of the result, at least B T; static.
      interpret: runs the kernel as JAX operations on any device: slow, for tests; static.

    Returns:
      [N, K, G, h], laid out as the output projection reads it; rows behind the first B T hold anything.
    """
    P, B, K, G, T, h = acc_PBKGTh.shape
    g = pl.next_power_of_2(G)
    of_row = pl.BlockSpec((P, None, None, g, None), lambda b, t, k: (0, b, k, 0, t))
    return pl.pallas_call(
        functools.partial(_merge_kernel, num_queries=G),
        grid=(B, T, K),
        in_specs=[pl.BlockSpec((P, None, None, g, None, h), lambda b, t, k: (0, b, k, 0, t, 0)), of_row, of_row],
        out_specs=pl.BlockSpec((None, None, g, h), lambda b, t, k: (b * T + t, k, 0, 0)),
        out_shape=jax.ShapeDtypeStruct((num_out, K, G, h), dtype),
        compiler_params=plgpu.CompilerParams(num_warps=1, num_stages=1),
        interpret=interpret,
    )(acc_PBKGTh, total_PBKGT, top_PBKGT)


def _merge_kernel(acc_ref: Any, total_ref: Any, top_ref: Any, out_ref: Any, *, num_queries: int) -> None:
    """Merges the G queries of one row and kv head."""
    splits = [jnp.int32(p) for p in range(acc_ref.shape[0])]  # interpreted loads know no Python ints
    is_query_g = jnp.arange(out_ref.shape[0]) < num_queries
    tops = [plgpu.load(top_ref.at[p, :], mask=is_query_g, other=0) for p in splits]
    top_g = functools.reduce(jnp.maximum, tops)
    acc_gh, total_g = jnp.zeros(out_ref.shape, jnp.float32), jnp.zeros(is_query_g.shape, jnp.float32)
    for p, split_top_g in zip(splits, tops, strict=True):
        weight_g = jnp.exp(split_top_g - top_g)
        total_g += weight_g * plgpu.load(total_ref.at[p, :], mask=is_query_g, other=1)
        acc_gh += weight_g[:, None] * plgpu.load(acc_ref.at[p, :, :], mask=is_query_g[:, None], other=0)
    plgpu.store(out_ref, (acc_gh / total_g[:, None]).astype(out_ref.dtype), mask=is_query_g[:, None])
