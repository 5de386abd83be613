"""Attention of a decode block as one GPU kernel (Pallas, Triton): it reads the tokens in use, not the capacity.

`layers.attention` reads every slot of the cache and writes the scores of all slots to memory. Here each program walks a
few tiles of slots with a running softmax, so that no score leaves the chip. The slots of one kv head, cut into tiles,
and which of 3 splits reads each, in turn:

    [ committed 0 .. length | free, never read .. start | the block's T rows | others ]
      tile   0  1  2  3  4                                   5  6
      split  0  1  2  0  1                                   2  0

`anchored_attention` reads the block in another way: one split more reads each row's tail, position by position. The order of
a row's sums is then that of its absolute positions: tiles begin at fixed slots, and one that a row reads nothing of
leaves its sums as they are, to the bit.

Source: the running softmax of FlashAttention (arXiv:2205.14135), Algorithm 1; slots split as in Flash-Decoding.
"""

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from jax_probe_mtp.kernels.merge_splits import merge_splits
from jax_probe_mtp.kernels.product import NUM_PROCESSORS

HEAD_DIMS = (16, 32, 64, 128, 256)  # Triton's tiles are powers of two, the sides of its products at least 16
MAX_SPLITS = 8  # each costs a float32 copy of the output, and in short texts has nothing to read
MAX_ROW = 64  # rows of a program
MAX_TAIL_ROW = (
    32  # each has a tail of its own to gather: 10.7 microseconds at 30 rows of an 8B model's block, 16.7 with 64
)
NO_SLOT = -1
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


def choose_tiles(q_shape: tuple[int, ...], capacity: int, dtype: jnp.dtype, max_row: int = MAX_ROW) -> Tiles:
    """Tiles for queries [B, K, G, T, h]: about one program for each processor of the GPU."""
    B, K, G, T, h = q_shape
    fits = jnp.dtype(dtype) == jnp.bfloat16 and h <= 128  # float32 products need registers, not the tensor cores
    row = min(max(pl.next_power_of_2(G * T), 16), max_row if fits else 16)
    slot = (128 if row == 16 else 64) if fits else 32
    num_programs, num_tiles = B * K * pl.cdiv(G * T, row), pl.cdiv(capacity, slot) + pl.cdiv(T, slot)
    splits = max(min(NUM_PROCESSORS // num_programs, num_tiles, MAX_SPLITS), 1)
    return Tiles(row=row, slot=slot, splits=splits, num_warps=4, num_stages=2)


def block_attention(
    q_BKGTh: jax.Array,
    k_BKSh: jax.Array,
    v_BKSh: jax.Array,
    length_B: jax.Array,
    is_visible_BTT: jax.Array,
    start_B: jax.Array,
    *,
    tiles: Tiles | None = None,
    interpret: bool = False,
) -> jax.Array:
    """What `layers.attention` computes for a decode block: each row reads the whole prefix and a part of the block.

    Products take their inputs unrounded and sum in float32; the softmax is float32, its weights rounded to v's dtype.

    Args:
      q_BKGTh: queries of T block rows, G for each of K kv heads, after rope.
      k_BKSh: keys: slots [0, length) committed, [start, start + T) the block's; no other slot is read.
      v_BKSh: values in the same slots.
      length_B: int32 [B], committed slots.
      is_visible_BTT: bool [B, T, T], True at [b, t, u] where row t may read row u of the block; each row reads itself.
      start_B: int32 [B], slot of the block's first row; not below `length`, and `start + T` within S.
      tiles: how the work is cut; `choose_tiles` when left out; static.
      interpret: runs the kernel as JAX operations on any device: slow, for tests.

    Returns:
      [B, T, K, G, h] in the queries' dtype.

    Raises:
      ValueError: for a head size or dtype without a kernel.
    """
    G, T = q_BKGTh.shape[2:4]
    tiles = tiles or choose_tiles(q_BKGTh.shape, k_BKSh.shape[2] - T, q_BKGTh.dtype)
    is_visible_BRT = jnp.tile(is_visible_BTT.astype(jnp.int8), (1, G, 1))
    kernel, scalars = functools.partial(_visible_kernel, tiles=tiles), [length_B, start_B]
    return _call(kernel, tiles.splits, q_BKGTh, k_BKSh, v_BKSh, scalars, [is_visible_BRT], tiles, interpret)


def anchored_attention(
    q_BKGTh: jax.Array,
    k_BKSh: jax.Array,
    v_BKSh: jax.Array,
    length_B: jax.Array,
    anchor_BT: jax.Array,
    tail_slot_BTJ: jax.Array,
    is_tail_BTJ: jax.Array,
    *,
    tiles: Tiles | None = None,
    interpret: bool = False,
) -> jax.Array:
    """What `layers.anchored_attention` computes; its last three arguments, and else those of `block_attention`.

    No anchor is above `length`.
    """
    G, T = q_BKGTh.shape[2:4]
    tiles = tiles or choose_tiles(q_BKGTh.shape, k_BKSh.shape[2] - T, q_BKGTh.dtype, MAX_TAIL_ROW)
    slot_BTJ = jnp.where(is_tail_BTJ, tail_slot_BTJ, NO_SLOT)
    of_rows = [jnp.tile(array_BTJ, (1, G, 1)) for array_BTJ in (anchor_BT[..., None], slot_BTJ)]
    kernel, splits = functools.partial(_anchored_kernel, tiles=tiles), tiles.splits + 1  # the last reads the tails
    return _call(kernel, splits, q_BKGTh, k_BKSh, v_BKSh, [length_B], of_rows, tiles, interpret)


def _call(
    kernel: Callable[..., None],
    splits: int,
    q_BKGTh: jax.Array,
    k_BKSh: jax.Array,
    v_BKSh: jax.Array,
    scalars: Sequence[jax.Array],
    of_rows: Sequence[jax.Array],
    tiles: Tiles,
    interpret: bool,
) -> jax.Array:
    """Runs a kernel on int32 [B] scalars and on arrays [B, R, X] of what each of the R = G T rows reads."""
    B, K, G, T, h = q_BKGTh.shape
    S, R = k_BKSh.shape[2], G * T
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
    return merge_splits(acc_PBKRh.reshape(splits, B, K, G, T, h), total_PBKGT, top_PBKGT, q_BKGTh.dtype, interpret)


def _visible_kernel(
    length_ref: Any, start_ref: Any, q_ref: Any, k_ref: Any, v_ref: Any, is_visible_ref: Any, *out_refs: Any,
    num_rows: int, tiles: Tiles,
) -> None:  # fmt: skip
    """One split of one kv head's slots for r of its rows, s slots at a time; of the block what each row may read."""
    length, block_start = length_ref[...], start_ref[...]
    split, T = pl.program_id(3), is_visible_ref.shape[1]
    is_row_r, q_rh = _queries(q_ref, num_rows, tiles)
    carry = _read_prefix(q_rh, k_ref, v_ref, length, split, lambda is_read_s, _: is_read_s[None, :], tiles)

    def block_step(i: jax.Array, carry: Carry) -> Carry:
        start = (first_block_tile + i * tiles.splits) * tiles.slot
        is_read_s = start + jnp.arange(tiles.slot) < T
        is_inside_rs = is_row_r[:, None] & is_read_s[None, :]
        is_visible_rs = plgpu.load(is_visible_ref.at[:, pl.ds(start, tiles.slot)], mask=is_inside_rs, other=0) != 0
        return _attend(q_rh, k_ref, v_ref, carry, block_start + start, is_visible_rs, is_read_s)

    # The turns of the splits go on from the prefix into the block.
    first_block_tile = split + _num_turns(length, split, tiles) * tiles.splits - _cdiv(length, tiles.slot)
    num_block_steps = _cdiv(jnp.maximum(pl.cdiv(T, tiles.slot) - first_block_tile, 0), tiles.splits)
    _write(jax.lax.fori_loop(0, num_block_steps, block_step, carry), is_row_r, *out_refs)


def _anchored_kernel(
    length_ref: Any, q_ref: Any, k_ref: Any, v_ref: Any, anchor_ref: Any, slot_ref: Any, *out_refs: Any,
    num_rows: int, tiles: Tiles,
) -> None:  # fmt: skip
    """The same of slots below each row's anchor; the last split takes each row's tail, a position at a time."""
    is_row_r, q_rh = _queries(q_ref, num_rows, tiles)
    anchor_r1 = plgpu.load(anchor_ref, mask=is_row_r[:, None], other=0)

    def is_below(is_read_s: jax.Array, slot_s: jax.Array) -> jax.Array:
        return is_read_s[None, :] & (slot_s[None, :] < anchor_r1)

    is_tail_split = pl.program_id(3) == tiles.splits
    length = jnp.where(is_tail_split, 0, length_ref[...])
    carry = _read_prefix(q_rh, k_ref, v_ref, length, pl.program_id(3), is_below, tiles)
    q32_rh = q_rh.astype(jnp.float32)
    at_h = jnp.arange(q_ref.shape[1])[None, :]

    def tail_step(j: jax.Array, carry: Carry) -> Carry:
        acc_rh, total_r, top_r = carry
        slot_r1 = plgpu.load(slot_ref.at[:, pl.ds(j, 1)], mask=is_row_r[:, None], other=NO_SLOT)
        is_read_r1 = slot_r1 != NO_SLOT
        slots = jnp.maximum(slot_r1, 0), at_h
        k_rh, v_rh = (plgpu.load(ref.at[slots], mask=is_read_r1, other=0).astype(jnp.float32) for ref in (k_ref, v_ref))
        score_r1 = jnp.sum(q32_rh * k_rh, axis=1, keepdims=True) * q_ref.shape[1] ** -0.5
        score_r = jnp.max(jnp.where(is_read_r1, score_r1, MIN_SCORE), axis=1)
        new_top_r = jnp.maximum(top_r, score_r)
        shrink_r, weight_r = jnp.exp(top_r - new_top_r), jnp.exp(score_r - new_top_r)
        rounded_r1 = weight_r.astype(v_ref.dtype).astype(jnp.float32)[:, None]
        return acc_rh * shrink_r[:, None] + rounded_r1 * v_rh, total_r * shrink_r + weight_r, new_top_r

    num_tails = slot_ref.shape[1] * is_tail_split.astype(jnp.int32)
    _write(jax.lax.fori_loop(0, num_tails, tail_step, carry), is_row_r, *out_refs)


def _queries(q_ref: Any, num_rows: int, tiles: Tiles) -> tuple[jax.Array, jax.Array]:
    """Which rows of the program there are, and their queries."""
    is_row_r = pl.program_id(2) * tiles.row + jnp.arange(tiles.row) < num_rows
    return is_row_r, plgpu.load(q_ref, mask=is_row_r[:, None], other=0)


def _num_turns(length: jax.Array, split: jax.Array, tiles: Tiles) -> jax.Array:
    """Tiles of the prefix that a split reads."""
    return _cdiv(jnp.maximum(_cdiv(length, tiles.slot) - split, 0), tiles.splits)


def _cdiv(a: jax.Array, b: int) -> jax.Array:
    """`pl.cdiv`, which makes `b` an int64 where JAX has 64-bit types."""
    return jax.lax.div(a + (b - 1), jnp.asarray(b, a.dtype))


def _read_prefix(
    q_rh: jax.Array,
    k_ref: Any,
    v_ref: Any,
    length: jax.Array,
    split: jax.Array,
    can_attend: Callable[[jax.Array, jax.Array], jax.Array],
    tiles: Tiles,
) -> Carry:
    """The split's tiles of the committed slots; `can_attend` is asked with which of a tile's slots those are, and the slots."""

    def step(i: jax.Array, carry: Carry) -> Carry:
        start = (split + i * tiles.splits) * tiles.slot
        slot_s = start + jnp.arange(tiles.slot)
        is_read_s = slot_s < length
        return _attend(q_rh, k_ref, v_ref, carry, start, can_attend(is_read_s, slot_s), is_read_s)

    zeros_r = jnp.zeros(tiles.row, jnp.float32)
    carry = jnp.zeros(q_rh.shape, jnp.float32), zeros_r, zeros_r + MIN_SCORE
    return jax.lax.fori_loop(0, _num_turns(length, split, tiles), step, carry)


def _attend(
    q_rh: jax.Array,
    k_ref: Any,
    v_ref: Any,
    carry: Carry,
    start: jax.Array,
    can_attend_rs: jax.Array,
    is_read_s: jax.Array,
) -> Carry:
    """One tile of slots more."""
    acc_rh, total_r, top_r = carry
    precision = jax.lax.Precision.HIGHEST if q_rh.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    slots = pl.ds(start, is_read_s.size), slice(None)
    k_sh = plgpu.load(k_ref.at[slots], mask=is_read_s[:, None], other=0)
    v_sh = plgpu.load(v_ref.at[slots], mask=is_read_s[:, None], other=0)  # garbage times weight 0 could be NaN
    scores_rs = plgpu.dot(q_rh, k_sh, trans_b=True, precision=precision) * q_rh.shape[1] ** -0.5
    scores_rs = jnp.where(can_attend_rs, scores_rs, MIN_SCORE)
    new_top_r = jnp.maximum(top_r, scores_rs.max(axis=1))
    shrink_r = jnp.exp(top_r - new_top_r)
    # In a row that has met no true score yet, the hidden slots weigh exp(0); the first true score, met here or in
    # another split, shrinks that to exactly 0.
    weights_rs = jnp.exp(scores_rs - new_top_r[:, None])
    mixed_rh = plgpu.dot(weights_rs.astype(v_sh.dtype), v_sh, precision=precision)
    return acc_rh * shrink_r[:, None] + mixed_rh, total_r * shrink_r + weights_rs.sum(axis=1), new_top_r


def _write(carry: Carry, is_row_r: jax.Array, acc_ref: Any, total_ref: Any, top_ref: Any) -> None:
    acc_rh, total_r, top_r = carry
    plgpu.store(acc_ref, acc_rh, mask=is_row_r[:, None])
    plgpu.store(total_ref, total_r, mask=is_row_r)
    plgpu.store(top_ref, top_r, mask=is_row_r)
