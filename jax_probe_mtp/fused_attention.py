"""Attention of a decode block as one GPU kernel (Pallas, Triton): it reads the tokens in use, not the capacity.

`layers.attention` reads every slot of the cache and writes the scores of all slots to memory. Here each program walks a
few tiles of slots with a running softmax, so that no score leaves the chip. The slots of one kv head, cut into tiles,
and which of 3 splits reads each, in turn:

    [ committed 0 .. length | free, never read .. start | the block's T rows | others ]
      tile   0  1  2  3  4                                   5  6
      split  0  1  2  0  1                                   2  0

Source: the running softmax of FlashAttention (arXiv:2205.14135), Algorithm 1; slots split as in Flash-Decoding.
"""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

HEAD_DIMS = (16, 32, 64, 128, 256)  # Triton's tiles are powers of two, the sides of its products at least 16
NUM_PROCESSORS = 132  # of an H100 or H200
MAX_SPLITS = 8  # each costs a float32 copy of the output, and in short texts has nothing to read
MIN_SCORE = float(jnp.finfo(jnp.float32).min)  # finite: the difference of two of them is 0, of two -inf it is NaN

Carry = tuple[jax.Array, jax.Array, jax.Array]  # sum of weights times values, sum of weights, score whose weight is 1


@dataclasses.dataclass(frozen=True)
class Tiles:
    """How the work is cut: it decides the speed, and the result by rounding alone.

    Attributes:
      row: rows of a program, of the G T that share a kv head; a power of two, at least 16.
      slot: cache slots of one step of a program; a power of two, at least 16.
      splits: programs that share the slots of the same rows.
      num_warps: warps of a program.
      num_stages: steps whose loads are in flight at once.
    """

    row: int
    slot: int
    splits: int
    num_warps: int
    num_stages: int


def is_supported(head_dim: int, dtype: jnp.dtype) -> bool:
    """Whether `block_attention` takes heads of this size and dtype."""
    return head_dim in HEAD_DIMS and jnp.dtype(dtype) in (jnp.bfloat16, jnp.float32)


def choose_tiles(q_shape: tuple[int, ...], capacity: int, dtype: jnp.dtype) -> Tiles:
    """Tiles for queries [B, T, K, G, h]: about one program for each processor of the GPU."""
    B, T, K, G, h = q_shape
    fits = jnp.dtype(dtype) == jnp.bfloat16 and h <= 128  # float32 products need registers, not the tensor cores
    row = min(max(pl.next_power_of_2(G * T), 16), 64 if fits else 16)
    slot = (128 if row == 16 else 64) if fits else 32
    num_programs, num_tiles = B * K * pl.cdiv(G * T, row), pl.cdiv(capacity, slot) + pl.cdiv(T, slot)
    splits = max(min(NUM_PROCESSORS // num_programs, num_tiles, MAX_SPLITS), 1)
    return Tiles(row=row, slot=slot, splits=splits, num_warps=4, num_stages=2)


def block_attention(
    q_BTKGh: jax.Array,
    k_BKSh: jax.Array,
    v_BKSh: jax.Array,
    length_B: jax.Array,
    is_visible_BTT: jax.Array,
    start: jax.Array | int,
    *,
    tiles: Tiles | None = None,
    interpret: bool = False,
) -> jax.Array:
    """What `layers.attention` computes for a decode block: each row reads the whole prefix and a part of the block.

    Products take their inputs unrounded and sum in float32; the softmax is float32, its weights rounded to v's dtype.

    Args:
      q_BTKGh: queries of T block rows, G for each of K kv heads, after rope.
      k_BKSh: keys: slots [0, length) committed, [start, start + T) the block's; no other slot is read.
      v_BKSh: values in the same slots.
      length_B: int32 [B], committed slots.
      is_visible_BTT: bool [B, T, T], True at [b, t, u] where row t may read row u of the block; each row reads itself.
      start: slot of the block's first row, for all batch rows or int32 [B]; not below `length`.
      tiles: how the work is cut; `choose_tiles` when left out; static.
      interpret: runs the kernel as JAX operations on any device: slow, for tests.

    Returns:
      [B, T, K, G, h] in the queries' dtype.

    Raises:
      ValueError: for a head size or dtype without a kernel, or slots that cannot hold the block.
    """
    B, T, K, G, h = q_BTKGh.shape
    S, R = k_BKSh.shape[2], G * T
    if not is_supported(h, q_BTKGh.dtype):
        raise ValueError(f"no kernel for heads of {h} {q_BTKGh.dtype}: use {HEAD_DIMS} of bfloat16 or float32.")
    if isinstance(start, int) and start + T > S:
        raise ValueError(f"{S} slots cannot hold {start} and a block of {T}: allocate {start + T}.")
    tiles = tiles or choose_tiles(q_BTKGh.shape, S - T, q_BTKGh.dtype)
    q_BKRh = q_BTKGh.transpose(0, 2, 3, 1, 4).reshape(B, K, R, h)
    is_visible_BRT = jnp.tile(is_visible_BTT.astype(jnp.int8), (1, G, 1))

    row_scalar = pl.BlockSpec((None,), lambda b, k, r, p: (b,))
    slots_spec = pl.BlockSpec((None, None, S, h), lambda b, k, r, p: (b, k, 0, 0))
    acc_spec = pl.BlockSpec((None, None, None, tiles.row, h), lambda b, k, r, p: (p, b, k, r, 0))
    row_spec = pl.BlockSpec((None, None, None, tiles.row), lambda b, k, r, p: (p, b, k, r))
    rows_PBKR = jax.ShapeDtypeStruct((tiles.splits, B, K, R), jnp.float32)
    acc_PBKRh, total_PBKR, top_PBKR = pl.pallas_call(
        functools.partial(_kernel, num_rows=R, tiles=tiles),
        grid=(B, K, pl.cdiv(R, tiles.row), tiles.splits),
        in_specs=[
            row_scalar,
            row_scalar,
            pl.BlockSpec((None, None, tiles.row, h), lambda b, k, r, p: (b, k, r, 0)),
            slots_spec,
            slots_spec,
            pl.BlockSpec((None, tiles.row, T), lambda b, k, r, p: (b, r, 0)),
        ],
        out_specs=[acc_spec, row_spec, row_spec],
        out_shape=[jax.ShapeDtypeStruct((*rows_PBKR.shape, h), jnp.float32), rows_PBKR, rows_PBKR],
        compiler_params=plgpu.CompilerParams(num_warps=tiles.num_warps, num_stages=tiles.num_stages),
        interpret=interpret,
    )(
        length_B.astype(jnp.int32),
        jnp.broadcast_to(jnp.asarray(start, jnp.int32), (B,)),
        q_BKRh,
        k_BKSh,
        v_BKSh,
        is_visible_BRT,
    )
    out_BKRh = _merge(acc_PBKRh, total_PBKR, top_PBKR).astype(q_BTKGh.dtype)
    return out_BKRh.reshape(B, K, G, T, h).transpose(0, 3, 1, 2, 4)


def _kernel(*refs: Any, num_rows: int, tiles: Tiles) -> None:
    """One split of one kv head's slots for r of its rows, s slots at a time."""
    length_ref, start_ref, q_ref, k_ref, v_ref, is_visible_ref, acc_ref, total_ref, top_ref = refs  # slots: all S
    length, block_start = length_ref[...], start_ref[...]
    split, h, T = pl.program_id(3), q_ref.shape[1], is_visible_ref.shape[1]
    is_row_r = pl.program_id(2) * tiles.row + jnp.arange(tiles.row) < num_rows
    q_rh = plgpu.load(q_ref, mask=is_row_r[:, None], other=0)
    precision = jax.lax.Precision.HIGHEST if q_rh.dtype == jnp.float32 else jax.lax.Precision.DEFAULT

    def attend(carry: Carry, start: jax.Array, can_attend_rs: jax.Array, is_read_s: jax.Array) -> Carry:
        acc_rh, total_r, top_r = carry
        slots = pl.ds(start, tiles.slot), slice(None)
        k_sh = plgpu.load(k_ref.at[slots], mask=is_read_s[:, None], other=0)
        v_sh = plgpu.load(v_ref.at[slots], mask=is_read_s[:, None], other=0)  # garbage times weight 0 could be NaN
        scores_rs = plgpu.dot(q_rh, k_sh, trans_b=True, precision=precision) * h**-0.5
        scores_rs = jnp.where(can_attend_rs, scores_rs, MIN_SCORE)
        new_top_r = jnp.maximum(top_r, scores_rs.max(axis=1))
        shrink_r = jnp.exp(top_r - new_top_r)
        # In a row that has met no true score yet, the hidden slots weigh exp(0); the first true score, met here or in
        # another split, shrinks that to exactly 0.
        weights_rs = jnp.exp(scores_rs - new_top_r[:, None])
        mixed_rh = plgpu.dot(weights_rs.astype(v_sh.dtype), v_sh, precision=precision)
        return acc_rh * shrink_r[:, None] + mixed_rh, total_r * shrink_r + weights_rs.sum(axis=1), new_top_r

    def prefix_step(i: jax.Array, carry: Carry) -> Carry:
        start = (split + i * tiles.splits) * tiles.slot
        is_read_s = start + jnp.arange(tiles.slot) < length
        return attend(carry, start, is_read_s[None, :], is_read_s)

    def block_step(i: jax.Array, carry: Carry) -> Carry:
        start = (first_block_tile + i * tiles.splits) * tiles.slot
        is_read_s = start + jnp.arange(tiles.slot) < T
        is_inside_rs = is_row_r[:, None] & is_read_s[None, :]
        is_visible_rs = plgpu.load(is_visible_ref.at[:, pl.ds(start, tiles.slot)], mask=is_inside_rs, other=0) != 0
        return attend(carry, block_start + start, is_visible_rs, is_read_s)

    num_prefix_tiles = pl.cdiv(length, tiles.slot)
    num_prefix_steps = pl.cdiv(jnp.maximum(num_prefix_tiles - split, 0), tiles.splits)
    first_block_tile = split + num_prefix_steps * tiles.splits - num_prefix_tiles  # the turns go on into the block
    num_block_steps = pl.cdiv(jnp.maximum(pl.cdiv(T, tiles.slot) - first_block_tile, 0), tiles.splits)

    zeros_r = jnp.zeros(tiles.row, jnp.float32)
    carry = jnp.zeros(q_rh.shape, jnp.float32), zeros_r, zeros_r + MIN_SCORE
    carry = jax.lax.fori_loop(0, num_prefix_steps, prefix_step, carry)
    acc_rh, total_r, top_r = jax.lax.fori_loop(0, num_block_steps, block_step, carry)
    plgpu.store(acc_ref, acc_rh, mask=is_row_r[:, None])
    plgpu.store(total_ref, total_r, mask=is_row_r)
    plgpu.store(top_ref, top_r, mask=is_row_r)


def _merge(acc_PBKRh: jax.Array, total_PBKR: jax.Array, top_PBKR: jax.Array) -> jax.Array:
    """Joins the P splits, float32 [B, K, R, h]; one that had nothing to read weighs nothing."""
    # A Python loop over the splits is elementwise work, one kernel for XLA; reductions over P would be several.
    splits = range(acc_PBKRh.shape[0])
    top_BKR = functools.reduce(jnp.maximum, [top_PBKR[p] for p in splits])
    weight_PBKR = [jnp.exp(top_PBKR[p] - top_BKR) for p in splits]
    total_BKR = functools.reduce(jnp.add, [weight_PBKR[p] * total_PBKR[p] for p in splits])
    acc_BKRh = functools.reduce(jnp.add, [weight_PBKR[p][..., None] * acc_PBKRh[p] for p in splits])
    return acc_BKRh / total_BKR[..., None]
