"""Computes the attention of a decode block on the GPU: runs a kernel of `attention_program`, then merges its splits."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from jax_probe_mtp.kernels.attention_program import NO_SLOT, _anchored_kernel, _visible_kernel
from jax_probe_mtp.kernels.merge_splits import merge_splits
from jax_probe_mtp.kernels.tiles import HEAD_DIMS, MAX_TAIL_ROW, Tiles, choose_tiles, is_supported


def block_attention(
    q_BKGTh: jax.Array,
    k_BKSh: jax.Array,
    v_BKSh: jax.Array,
    length_B: jax.Array,
    is_visible_BTT: jax.Array,
    start_B: jax.Array,
    *,
    num_out: int = 0,
    tiles: Tiles | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Computes `layers.attention` for a decode block: each row reads the whole prefix and a part of the block.

    Products take their inputs unrounded and sum in float32; the softmax is float32, its weights rounded to v's dtype.

    Args:
      q_BKGTh: queries of T block rows, G for each of K kv heads, after rope.
      k_BKSh: keys: slots [0, length) committed, [start, start + T) the block's; no other slot is read.
      v_BKSh: values in the same slots.
      length_B: int32 [B], committed slots.
      is_visible_BTT: bool [B, T, T], True at [b, t, u] where row t may read row u of the block; each row reads itself.
      start_B: int32 [B], slot of the block's first row; not below `length`, and `start + T` within S.
      num_out: N, rows of the result, B T when left out; static.
      tiles: how the work is cut; `choose_tiles` when left out; static.
      interpret: runs the kernel as JAX operations on any device: slow, for tests.

    Returns:
      [N, K, G, h] in the queries' dtype: the T rows of each batch row one behind the other; those behind the first B T hold
      anything.

    Raises:
      ValueError: for a head size or dtype without a kernel.
    """
    G, T = q_BKGTh.shape[2:4]
    tiles = tiles or choose_tiles(q_BKGTh.shape, k_BKSh.shape[2] - T, q_BKGTh.dtype)
    is_visible_BRT = jnp.tile(is_visible_BTT.astype(jnp.int8), (1, G, 1))
    kernel, scalars = functools.partial(_visible_kernel, tiles=tiles), [length_B, start_B]
    return _call(kernel, q_BKGTh, k_BKSh, v_BKSh, scalars, [is_visible_BRT], tiles, num_out, interpret)


def anchored_attention(
    q_BKGTh: jax.Array,
    k_BKSh: jax.Array,
    v_BKSh: jax.Array,
    length_B: jax.Array,
    anchor_BT: jax.Array,
    tail_slot_BTJ: jax.Array,
    is_tail_BTJ: jax.Array,
    *,
    num_out: int = 0,
    tiles: Tiles | None = None,
    interpret: bool = False,
) -> jax.Array:
    """Computes `layers.anchored_attention`: takes its last three arguments, and otherwise those of `block_attention`.

    Each anchor is at most `length`.
    """
    G, T = q_BKGTh.shape[2:4]
    tiles = tiles or choose_tiles(q_BKGTh.shape, k_BKSh.shape[2] - T, q_BKGTh.dtype, MAX_TAIL_ROW)
    slot_BTJ = jnp.where(is_tail_BTJ, tail_slot_BTJ, NO_SLOT)
    over = -slot_BTJ.shape[2] % tiles.splits
    slot_BTJ = jnp.pad(slot_BTJ, ((0, 0), (0, 0), (0, over)), constant_values=NO_SLOT)
    of_rows = [jnp.tile(array_BTJ, (1, G, 1)) for array_BTJ in (anchor_BT[..., None], slot_BTJ)]
    kernel = functools.partial(_anchored_kernel, tiles=tiles)
    return _call(kernel, q_BKGTh, k_BKSh, v_BKSh, [length_B], of_rows, tiles, num_out, interpret)


def _call(
    kernel: Callable[..., None],
    q_BKGTh: jax.Array,
    k_BKSh: jax.Array,
    v_BKSh: jax.Array,
    scalars: Sequence[jax.Array],
    of_rows: Sequence[jax.Array],
    tiles: Tiles,
    num_out: int,
    interpret: bool,
) -> jax.Array:
    """Runs a kernel on int32 [B] scalars and on arrays [B, R, X], which say what each of the R = G T rows reads."""
    B, K, G, T, h = q_BKGTh.shape
    S, R, splits = k_BKSh.shape[2], G * T, tiles.splits
    if not is_supported(h, q_BKGTh.dtype):
        raise ValueError(f"no kernel for heads of {h} {q_BKGTh.dtype}: use {HEAD_DIMS} of bfloat16 or float32.")
    scalar = pl.BlockSpec((None,), lambda b, k, r, p: (b,))
    slots = pl.BlockSpec((None, None, S, h), lambda b, k, r, p: (b, k, 0, 0))
    acc_spec = pl.BlockSpec((None, None, None, tiles.row, h), lambda b, k, r, p: (p, b, k, r, 0))
    row_spec = pl.BlockSpec((None, None, None, tiles.row), lambda b, k, r, p: (p, b, k, r))
    of_rows_PBKR = jax.ShapeDtypeStruct((splits, B, K, R), jnp.float32)
    acc_PBKRh, total_PBKR, top_PBKR = pl.pallas_call(
        functools.partial(kernel, num_rows=R),
        grid=(B, K, pl.cdiv(R, tiles.row), splits),
        in_specs=[
            *[scalar] * len(scalars),
            pl.BlockSpec((None, None, tiles.row, h), lambda b, k, r, p: (b, k, r, 0)),
            slots,
            slots,
            *[pl.BlockSpec((None, tiles.row, array.shape[2]), lambda b, k, r, p: (b, r, 0)) for array in of_rows],
        ],
        out_specs=[acc_spec, row_spec, row_spec],
        out_shape=[jax.ShapeDtypeStruct((splits, B, K, R, h), jnp.float32), of_rows_PBKR, of_rows_PBKR],
        compiler_params=plgpu.CompilerParams(num_warps=tiles.num_warps, num_stages=tiles.num_stages),
        interpret=interpret,
    )(*[array.astype(jnp.int32) for array in scalars], q_BKGTh.reshape(B, K, R, h), k_BKSh, v_BKSh, *of_rows)
    total_PBKGT, top_PBKGT = (rows_PBKR.reshape(splits, B, K, G, T) for rows_PBKR in (total_PBKR, top_PBKR))
    acc_PBKGTh = acc_PBKRh.reshape(splits, B, K, G, T, h)
    return merge_splits(acc_PBKGTh, total_PBKGT, top_PBKGT, q_BKGTh.dtype, num_out or B * T, interpret)
