"""Attends from a decode block in one GPU kernel (Pallas, Triton), which reads the tokens in use, not the capacity.

`layers.attention` reads every slot of the cache and writes the scores of all slots to memory. Here each program walks a
few tiles of slots with a running softmax, so that no score leaves the chip. The slots of one kv head are cut into tiles,
which the splits, here 3, read in turn:

    [ committed 0 .. length | free, never read .. start | the block's T rows | others ]
      tile   0  1  2  3  4                                   5  6
      split  0  1  2  0  1                                   2  0

The anchored kernel reads the block in another way: after its tiles each split reads a few positions of each row's tail, one
by one. Each row then sums in the order of absolute positions: tiles begin at fixed slots, and a tile in which a row reads
nothing leaves its sums as they are, to the bit.

Source: the running softmax of FlashAttention (arXiv:2205.14135), Algorithm 1; slots split as in Flash-Decoding.
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from jax_probe_mtp.kernels.tiles import MAX_TAIL_STEP, Tiles

NO_SLOT = -1
MIN_COLUMNS = 16  # of a matrix product
MIN_SCORE = float(jnp.finfo(jnp.float32).min)  # finite: the difference of two of them is 0, of two -inf it is NaN

Carry = tuple[jax.Array, jax.Array, jax.Array]  # sum of weights times values, sum of weights, score whose weight is 1


def _visible_kernel(
    length_ref: Any, start_ref: Any, q_ref: Any, k_ref: Any, v_ref: Any, is_visible_ref: Any, *out_refs: Any,
    num_rows: int, tiles: Tiles,
) -> None:  # fmt: skip
    """Reads one split of one kv head's slots for r rows, s slots at a time, and in the block those that each row may read."""
    length, block_start = length_ref[...], start_ref[...]
    split, T = pl.program_id(3), is_visible_ref.shape[1]
    is_row_r, q_rh = _queries(q_ref, num_rows, tiles)
    carry = _read_prefix(q_rh, k_ref, v_ref, length, split, lambda is_read_s, _: is_read_s[None, :], tiles)

    def block_step(i: jax.Array, carry: Carry) -> Carry:
        start = (first_block_tile + i * tiles.splits) * tiles.slot
        is_read_s = start + jnp.arange(tiles.slot) < T
        is_inside_rs = is_row_r[:, None] & is_read_s[None, :]
        is_visible_rs = plgpu.load(is_visible_ref.at[:, pl.ds(start, tiles.slot)], mask=is_inside_rs, other=0) != 0
        return _attend(q_rh, k_ref, v_ref, carry, block_start + start, is_visible_rs, is_read_s, tiles)

    # The turns of the splits go on from the prefix into the block.
    first_block_tile = split + _num_turns(length, split, tiles) * tiles.splits - _cdiv(length, tiles.slot)
    num_block_steps = _cdiv(jnp.maximum(pl.cdiv(T, tiles.slot) - first_block_tile, 0), tiles.splits)
    _write(jax.lax.fori_loop(0, num_block_steps, block_step, carry), is_row_r, *out_refs)


def _anchored_kernel(
    length_ref: Any, q_ref: Any, k_ref: Any, v_ref: Any, anchor_ref: Any, slot_ref: Any, *out_refs: Any,
    num_rows: int, tiles: Tiles,
) -> None:  # fmt: skip
    """Reads one split of the slots below each row's anchor, then the split's share of each row's tail."""
    is_row_r, q_rh = _queries(q_ref, num_rows, tiles)
    anchor_r1 = plgpu.load(anchor_ref, mask=is_row_r[:, None], other=0)
    q32_rh = q_rh.astype(jnp.float32)
    at_h = jnp.arange(q_ref.shape[1])[None, :]

    def is_below(is_read_s: jax.Array, slot_s: jax.Array) -> jax.Array:
        return is_read_s[None, :] & (slot_s[None, :] < anchor_r1)

    def load(j: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        slot_r1 = plgpu.load(slot_ref.at[:, pl.ds(j, 1)], mask=is_row_r[:, None], other=NO_SLOT)
        is_read_r1 = slot_r1 != NO_SLOT
        slots = jnp.maximum(slot_r1, 0), at_h
        k_rh, v_rh = (plgpu.load(ref.at[slots], mask=is_read_r1, other=0).astype(jnp.float32) for ref in (k_ref, v_ref))
        return is_read_r1, k_rh, v_rh

    def add(carry: Carry, is_read_r1: jax.Array, k_rh: jax.Array, v_rh: jax.Array) -> Carry:
        acc_rh, total_r, top_r = carry
        score_r1 = jnp.sum(q32_rh * k_rh, axis=1, keepdims=True) * q_ref.shape[1] ** -0.5
        score_r = jnp.max(jnp.where(is_read_r1, score_r1, MIN_SCORE), axis=1)
        new_top_r = jnp.maximum(top_r, score_r)
        shrink_r, weight_r = jnp.exp(top_r - new_top_r), jnp.exp(score_r - new_top_r)
        rounded_r = weight_r.astype(v_ref.dtype).astype(jnp.float32)
        total_r = total_r * shrink_r + (rounded_r if tiles.has_one_order else weight_r)
        return acc_rh * shrink_r[:, None] + rounded_r[:, None] * v_rh, total_r, new_top_r

    num_tails = slot_ref.shape[1] // tiles.splits
    first = pl.program_id(3) * num_tails
    # Loaded before the prefix, which hides how long it takes.
    loaded = [load(first + n) for n in range(min(num_tails, MAX_TAIL_STEP))]
    carry = _read_prefix(q_rh, k_ref, v_ref, length_ref[...], pl.program_id(3), is_below, tiles)
    for tail in loaded:
        carry = add(carry, *tail)
    carry = jax.lax.fori_loop(first + len(loaded), first + num_tails, lambda j, carry: add(carry, *load(j)), carry)
    _write(carry, is_row_r, *out_refs)


def _queries(q_ref: Any, num_rows: int, tiles: Tiles) -> tuple[jax.Array, jax.Array]:
    """Says which rows of the program exist, and loads their queries."""
    is_row_r = pl.program_id(2) * tiles.row + jnp.arange(tiles.row) < num_rows
    return is_row_r, plgpu.load(q_ref, mask=is_row_r[:, None], other=0)


def _num_turns(length: jax.Array, split: jax.Array, tiles: Tiles) -> jax.Array:
    """Counts the tiles of the prefix that a split reads."""
    return _cdiv(jnp.maximum(_cdiv(length, tiles.slot) - split, 0), tiles.splits)


def _cdiv(a: jax.Array, b: int) -> jax.Array:
    """Divides and rounds up, as `pl.cdiv` does, which makes `b` an int64 where JAX has 64-bit types."""
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
    """Reads the split's tiles of the prefix; `can_attend` gets, for a tile, which of its slots are committed, and the slots."""

    def step(i: jax.Array, carry: Carry) -> Carry:
        start = (split + i * tiles.splits) * tiles.slot
        slot_s = start + jnp.arange(tiles.slot)
        is_read_s = slot_s < length
        return _attend(q_rh, k_ref, v_ref, carry, start, can_attend(is_read_s, slot_s), is_read_s, tiles)

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
    tiles: Tiles,
) -> Carry:
    """Adds one tile of slots to the sums."""
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
    rounded_rs = weights_rs.astype(v_sh.dtype)
    mixed_rh = plgpu.dot(rounded_rs, v_sh, precision=precision)
    if tiles.has_one_order:
        ones_sc = jnp.ones((is_read_s.size, MIN_COLUMNS), v_sh.dtype)
        sum_r = plgpu.dot(rounded_rs, ones_sc, precision=precision).max(axis=1)  # of equal columns
    else:
        sum_r = weights_rs.sum(axis=1)
    return acc_rh * shrink_r[:, None] + mixed_rh, total_r * shrink_r + sum_r, new_top_r


def _write(carry: Carry, is_row_r: jax.Array, acc_ref: Any, total_ref: Any, top_ref: Any) -> None:
    """Stores the sums of the rows that exist, for `merge_splits`."""
    acc_rh, total_r, top_r = carry
    plgpu.store(acc_ref, acc_rh, mask=is_row_r[:, None])
    plgpu.store(total_ref, total_r, mask=is_row_r)
    plgpu.store(top_ref, top_r, mask=is_row_r)
