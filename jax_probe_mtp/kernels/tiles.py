"""Cuts the attention of a decode block into tiles, and says which heads the kernels take."""

import dataclasses

import jax.numpy as jnp
from jax.experimental import pallas as pl

WARP, WARPGROUP = 32, 128  # threads
NUM_PROCESSORS = 132  # of an H100 or H200
HEAD_DIMS = (16, 32, 64, 128, 256)  # Triton's tiles are powers of two, the sides of its products at least 16
MAX_SPLITS = 8  # each costs a float32 copy of the output, and in short texts has nothing to read
MAX_ROW = 64  # rows of a program
# Each row gathers a tail of its own: 10.7 microseconds at 30 rows of an 8B model's block, 16.7 where this is 64.
MAX_TAIL_ROW = 32
MAX_TAIL_STEP = 4  # positions of the tails that a program loads at a time


@dataclasses.dataclass(frozen=True)
class Tiles:
    """A way to cut the work: it decides the speed, and changes the result by rounding alone.

    Attributes:
      row: rows of a program, of the G T that share a kv head; a power of two, at least 16.
      slot: cache slots of one step of a program; a power of two, at least 16.
      splits: programs that share the slots of the same rows.
      num_warps: warps of a program.
      num_stages: steps whose loads are in flight at once.
      has_one_order: whether weights are summed as the matrix products sum, whose order does not change with `row`.
    """

    row: int
    slot: int
    splits: int
    num_warps: int
    num_stages: int
    has_one_order: bool = False


def is_supported(head_dim: int, dtype: jnp.dtype) -> bool:
    """Says whether the attention kernels take heads of this size and dtype."""
    return head_dim in HEAD_DIMS and jnp.dtype(dtype) in (jnp.bfloat16, jnp.float32)


def tiles_for_any_rows(q_shape: tuple[int, ...], dtype: jnp.dtype) -> Tiles:
    """Chooses tiles for queries [B, K, G, T, h] with which a row's sums have one order in every call.

    That order follows from the slots of a tile and the splits, which are the same for all shapes; `row` and the stages change
    no bit (on one H200, rows of 16, 32 and 64, one to four warps and two or three stages gave the same).
    """
    B, K, G, T, h = q_shape
    if jnp.dtype(dtype) == jnp.float32:  # as in `choose_tiles`
        return Tiles(row=16, slot=32, splits=MAX_SPLITS, num_warps=4, num_stages=2, has_one_order=True)
    blocks = [row for row in (64, 32) if B * K * pl.cdiv(G * T, row) * MAX_SPLITS > NUM_PROCESSORS and row // 2 < G * T]
    row = max(blocks, default=16)
    return Tiles(
        row=row,
        slot=64 if h <= 128 else 32,
        splits=MAX_SPLITS,
        num_warps=4,
        num_stages=3 if row == 16 else 2,
        has_one_order=True,
    )


def choose_tiles(q_shape: tuple[int, ...], capacity: int, dtype: jnp.dtype, max_row: int = MAX_ROW) -> Tiles:
    """Chooses tiles for queries [B, K, G, T, h]: about one program for each processor of the GPU."""
    B, K, G, T, h = q_shape
    fits = jnp.dtype(dtype) == jnp.bfloat16 and h <= 128  # float32 products need registers, not the tensor cores
    row = min(max(pl.next_power_of_2(G * T), 16), max_row if fits else 16)
    slot = (128 if row == 16 else 64) if fits else 32
    num_programs, num_tiles = B * K * pl.cdiv(G * T, row), pl.cdiv(capacity, slot) + pl.cdiv(T, slot)
    splits = max(min(NUM_PROCESSORS // num_programs, num_tiles, MAX_SPLITS), 1)
    return Tiles(row=row, slot=slot, splits=splits, num_warps=4, num_stages=2)
