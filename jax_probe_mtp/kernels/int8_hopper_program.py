"""Multiplies rows with a weight of eight bits in one GPU kernel (Pallas, Mosaic GPU), with Hopper's own instructions.

A program computes 64 columns, or several times 64, for all rows. One of its warpgroups copies tiles of the rows and of the
weight into shared memory, several ahead; each of the others takes 64 columns of a tile, turns them into bfloat16 in its
registers and multiplies them there with all rows (wgmma, whose left factor may lie in registers):

    loads      | tile 0 | tile 1 | tile 2 | tile 3 | ...       until all slots are full, then as slots become free
    multiplies          | tile 0 | tile 1 | tile 2 | ...
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

MAX_SLOTS = 8  # tiles that are loaded ahead
COLUMNS = 64  # of a warpgroup's product
SHARED_BYTES = 225 * 1024  # of a program's tiles
LOADER_REGISTERS, ALL_REGISTERS = 40, 512  # for each thread of a warpgroup, and of all warpgroups of a processor


class Tiles(NamedTuple):
    """A way to cut the work: of these only `parts` changes the result, by rounding.

    Attributes:
      warpgroups: that multiply.
      blocks: of 64 columns that each computes of each weight.
      step: numbers of the summed axis in a tile.
      parts: programs that share the sums of the same columns.
    """

    warpgroups: int
    blocks: int
    step: int
    parts: int

    @property
    def columns(self) -> int:
        """Columns of each weight that a program computes at a time."""
        return self.warpgroups * self.blocks * COLUMNS

    def num_slots(self, num_rows: int, num_weights: int) -> int:
        """How many tiles fit shared memory."""
        tile_bytes = self.step * (2 * num_rows + num_weights * self.columns)
        return min(MAX_SLOTS, SHARED_BYTES // tile_bytes)


def _product_kernel(
    x_ref: Any,
    *refs: Any,
    x_smem: Any,
    is_full: Any,
    is_free: Any,
    value_smems: Sequence[Any],
    factor_smem: Any = None,
    num_weights: int,
    tiles: Tiles,
    num_units: int,
    num_programs: int,
) -> None:
    """Computes the program's units, one behind the other: some columns of one part of the sums, for all rows."""
    value_refs, scale_refs, (out_ref,) = (
        refs[:num_weights],
        refs[num_weights : 2 * num_weights],
        refs[2 * num_weights :],
    )
    num_slots, N, _ = x_smem.shape
    num_tiles = num_units // tiles.parts
    num_steps = x_ref.shape[1] // tiles.step // tiles.parts
    program, warpgroup = jax.lax.axis_index("program"), jax.lax.axis_index("warpgroup")
    num_mine = 1 if num_units == num_programs else (num_units - program + num_programs - 1) // num_programs

    def load(i: jax.Array, slot: jax.Array) -> None:
        """Begins to load the tile of the program's i-th step, its units' steps counted one behind the other."""
        unit = program + i // num_steps * num_programs
        summed = pl.ds((unit // num_tiles * num_steps + i % num_steps) * tiles.step, tiles.step)
        columns = pl.ds(unit % num_tiles * tiles.columns, tiles.columns)
        # Of fewer than 8 rows the others are behind the array, and read as zeros: the start hides this from checks.
        rows = slice(None) if x_ref.shape[0] == N else pl.ds(0 * program, N)
        plgpu.copy_gmem_to_smem(x_ref.at[rows, summed], x_smem.at[slot], is_full.at[slot])
        for value_ref, value_smem in zip(value_refs, value_smems, strict=True):
            plgpu.copy_gmem_to_smem(value_ref.at[columns, summed], value_smem.at[slot], is_full.at[slot])

    @pl.when(warpgroup == tiles.warpgroups)
    def _load_all() -> None:
        plgpu.set_max_registers(LOADER_REGISTERS, action="decrease")
        for slot in range(num_slots):
            load(jnp.int32(slot), jnp.int32(slot))

        def when_free(i: jax.Array) -> jax.Array:
            slot = jax.lax.rem(i, num_slots)
            plgpu.barrier_wait(is_free.at[slot])
            return slot

        _repeat(0, num_mine * num_steps - num_slots, lambda i: load(i + num_slots, when_free(i)))
        _repeat(num_mine * num_steps - num_slots, num_mine * num_steps, when_free)

    @pl.when(warpgroup < tiles.warpgroups)
    def _multiply_all() -> None:
        plgpu.set_max_registers(_registers(tiles.warpgroups), action="increase")
        blocks = [pl.ds((warpgroup * tiles.blocks + j) * COLUMNS, COLUMNS) for j in range(tiles.blocks)]

        def multiply(slot: jax.Array, sums: Sequence[Any]) -> None:
            x_sN = x_smem.at[slot].transpose((1, 0))
            places = [(value_smem, block) for value_smem in value_smems for block in blocks]
            for sum_cN, (value_smem, block) in zip(sums, places, strict=True):
                # Every int8 is a bfloat16, so nothing is rounded before the sums.
                factor = value_smem[slot, block, :].astype(jnp.bfloat16)
                if factor_smem is not None:  # interpreted, wgmma takes both factors from shared memory
                    factor_smem[warpgroup] = factor
                    factor = factor_smem.at[warpgroup]
                plgpu.wgmma(sum_cN, factor, x_sN)
            plgpu.wgmma_wait(0)

        def store(
            unit: jax.Array, columns: Sequence[Any], scales: Sequence[Sequence[jax.Array]], sums: Sequence[Any]
        ) -> None:
            for j, block in enumerate(columns):
                y = [
                    sum_cN[...] * jax.lax.broadcast_in_dim(scale_c, sum_cN.shape, (0,))
                    for sum_cN, scale_c in zip(sums[j :: tiles.blocks], scales[j], strict=True)
                ]
                y_cN = y[0] if num_weights == 1 else y[0] / (1 + jnp.exp(-y[0])) * y[1]
                # wgmma leaves a thread neighbouring rows of a column; stores want neighbouring columns of a row.
                y_cN = plgpu.layout_cast(y_cN.astype(out_ref.dtype), plgpu.Layout.WGMMA_TRANSPOSED)
                out_ref.at[unit // num_tiles, :, block].transpose((1, 0))[...] = y_cN

        def compute(u: jax.Array) -> None:
            unit = program + u * num_programs
            columns = [pl.ds(unit % num_tiles * tiles.columns + block.start, COLUMNS) for block in blocks]
            # Loaded before the sums, which hide how long it takes.
            scales = [[_scales(scale_ref, block) for scale_ref in scale_refs] for block in columns]

            def with_sums(*sums: Any) -> None:
                def step(i: jax.Array) -> None:
                    slot = jax.lax.rem(u * num_steps + i, num_slots)
                    plgpu.barrier_wait(is_full.at[slot])
                    multiply(slot, sums)
                    plgpu.barrier_arrive(is_free.at[slot])

                _repeat(0, num_steps, step)
                store(unit, columns, scales, sums)

            pl.run_scoped(with_sums, *[plgpu.ACC((COLUMNS, N), jnp.float32)] * (num_weights * tiles.blocks))

        _repeat(0, num_mine, compute)


def _repeat(start: Any, stop: Any, run: Callable[[jax.Array], Any]) -> None:
    def body(i: jax.Array, _: tuple[()]) -> tuple[()]:
        run(i)
        return ()

    jax.lax.fori_loop(start, stop, body, ())


def _scales(scale_ref: Any, columns: Any) -> jax.Array:
    """Loads the scales of 64 columns, each to the threads that hold sums of its column."""
    scale_c: jax.Array = plgpu.load(scale_ref.at[columns], (), layout=plgpu.Layout.WGMMA.reduce(1), optimized=False)
    return scale_c


def _registers(warpgroups: int) -> int:
    """How many a thread of a warpgroup that multiplies may have."""
    return min(240, (ALL_REGISTERS - LOADER_REGISTERS) // warpgroups // 8 * 8)
