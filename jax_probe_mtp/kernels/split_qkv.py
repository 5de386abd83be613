"""Splits the product into queries, keys and values in one GPU kernel (Pallas, Triton): sums, biases, norms, rope, cache.

XLA makes three kernels for this, and each adds the product's parts up anew.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

ROWS = 8  # of a program


def split_qkv(
    parts_PBUKnh: jax.Array,
    bias_Knh: jax.Array | None,
    norms: tuple[jax.Array, jax.Array] | None,
    rope: tuple[jax.Array, jax.Array],
    k_BKSh: jax.Array,
    v_BKSh: jax.Array,
    start_B: jax.Array,
    *,
    eps: float,
    has_one_order: bool = False,
    interpret: bool = False,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Adds the parts of the product up, and puts each head where attention reads it.

    Args:
      parts_PBUKnh: P parts of q, k and v of T rows, the first of U: for each of K kv heads G queries, a key and a value; any
        dtype.
      bias_Knh: added to them, where the model has one.
      norms: weights [h] of the norms of queries and of keys, where the model has them.
      rope: cosines and sines, float32 [B, T, h/2].
      k_BKSh: the cache's keys; slots [start, start + T) are written in place, where the array is donated.
      v_BKSh: the same for values.
      start_B: int32 [B].
      eps: of the norms; static.
      has_one_order: sums for the norms in one order, whatever T is; static.
      interpret: runs the kernel as JAX operations on any device: slow, for tests.

    Returns:
      Queries [B, K, G, T, h] after rope, in the cache's dtype, and the cache's keys and values.
    """
    P, B, _, K, n, h = parts_PBUKnh.shape
    T, S, G = rope[0].shape[1], k_BKSh.shape[2], n - 2
    # How many numbers a program holds decides the order in which it sums them for the norms.
    rows = ROWS if has_one_order and norms is not None else min(ROWS, pl.next_power_of_2(T))
    angles = pl.BlockSpec((None, rows, h // 2), lambda b, t, k, i: (b, t, 0))
    slots = pl.BlockSpec((None, None, S, h), lambda b, t, k, i: (b, k, 0, 0))
    weights, blocks = [], []
    if bias_Knh is not None:
        weights.append(bias_Knh)
        blocks.append(pl.BlockSpec((None, None, h), lambda b, t, k, i: (k, i, 0)))
    if norms is not None:
        weights.append(jnp.stack(norms))
        blocks.append(pl.BlockSpec((None, h), lambda b, t, k, i: (jnp.minimum(i // G, 1), 0)))
    return pl.pallas_call(
        functools.partial(
            _qkv_kernel, num_rows=T, num_queries=G, has_bias=bias_Knh is not None, has_norm=norms is not None, eps=eps
        ),
        grid=(B, pl.cdiv(T, rows), K, n),
        in_specs=[
            pl.BlockSpec((None,), lambda b, t, k, i: (b,)),
            pl.BlockSpec((P, None, rows, None, None, h), lambda b, t, k, i: (0, b, t, k, i, 0)),
            angles,
            angles,
            *blocks,
            slots,
            slots,
        ],
        out_specs=(
            pl.BlockSpec((None, None, None, rows, h), lambda b, t, k, i: (b, k, jnp.minimum(i, G - 1), t, 0)),
            slots,
            slots,
        ),
        out_shape=(
            jax.ShapeDtypeStruct((B, K, G, T, h), k_BKSh.dtype),
            jax.ShapeDtypeStruct(k_BKSh.shape, k_BKSh.dtype),
            jax.ShapeDtypeStruct(v_BKSh.shape, v_BKSh.dtype),
        ),
        input_output_aliases={4 + len(weights): 1, 5 + len(weights): 2},
        compiler_params=plgpu.CompilerParams(num_warps=2, num_stages=1),
        interpret=interpret,
    )(start_B.astype(jnp.int32), parts_PBUKnh, *rope, *weights, k_BKSh, v_BKSh)


def _qkv_kernel(
    start_ref: Any,
    parts_ref: Any,
    cos_ref: Any,
    sin_ref: Any,
    *refs: Any,
    num_rows: int,
    num_queries: int,
    has_bias: bool,
    has_norm: bool,
    eps: float,
) -> None:
    """Makes r rows of one head: a query, the key or the value of a kv head."""
    *weight_refs, _, _, q_ref, k_ref, v_ref = refs
    weights = iter(weight_refs)
    head, first_row = pl.program_id(3), pl.program_id(1) * q_ref.shape[0]
    c = cos_ref.shape[1]
    halves = pl.ds(0, c), pl.ds(c, c)  # rope turns each number of the first half with one of the second
    is_row_r1 = (first_row + jnp.arange(q_ref.shape[0]) < num_rows)[:, None]

    def load(ref: Any) -> jax.Array:
        return plgpu.load(ref, mask=is_row_r1, other=0).astype(jnp.float32)

    parts = [jnp.int32(p) for p in range(parts_ref.shape[0])]  # interpreted loads know no Python ints
    x = [functools.reduce(jnp.add, [load(parts_ref.at[p, :, half]) for p in parts]) for half in halves]
    if has_bias:
        bias_ref = next(weights)
        x = [x_rc + bias_ref[half].astype(jnp.float32)[None] for x_rc, half in zip(x, halves, strict=True)]
    if has_norm:
        norm_ref = next(weights)
        mean_r = sum(jnp.sum(x_rc * x_rc, axis=1) for x_rc in x) / (2 * c)
        scale_r1 = jax.lax.rsqrt(mean_r + eps)[:, None]
        normed = [
            x_rc * scale_r1 * norm_ref[half].astype(jnp.float32)[None] for x_rc, half in zip(x, halves, strict=True)
        ]
        x = [jnp.where(head <= num_queries, n_rc, x_rc) for n_rc, x_rc in zip(normed, x, strict=True)]
    is_value = head == num_queries + 1  # not turned
    cos_rc, sin_rc = jnp.where(is_value, 1, load(cos_ref)), jnp.where(is_value, 0, load(sin_ref))
    turned = x[0] * cos_rc - x[1] * sin_rc, x[1] * cos_rc + x[0] * sin_rc
    slots = pl.ds(start_ref[...] + first_row, q_ref.shape[0])
    for half, y_rc in zip(halves, turned, strict=True):
        y_rc = y_rc.astype(q_ref.dtype)
        plgpu.store(q_ref.at[:, half], y_rc, mask=is_row_r1 & (head < num_queries))
        plgpu.store(k_ref.at[slots, half], y_rc, mask=is_row_r1 & (head == num_queries))
        plgpu.store(v_ref.at[slots, half], y_rc, mask=is_row_r1 & is_value)
