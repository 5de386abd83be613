"""Multiplies up to 128 rows with a weight of eight bits on Hopper GPUs: runs the kernel of `int8_hopper_program`.

A weight crosses shared memory in eight bits, where Triton's kernel (`kernels/int8_triton.py`) writes it back in sixteen for
more than 32 rows. Where the columns make too few programs for the GPU, the sum is split as well, as in `kernels/product.py`.

A row's sums have one order whatever the number of rows: it follows from `Tiles.parts`, which a weight's shape alone decides.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental.pallas import mosaic_gpu as plgpu

from jax_probe_mtp.kernels.int8_hopper_program import COLUMNS, Tiles, _product_kernel
from jax_probe_mtp.kernels.tiles import NUM_PROCESSORS

MAX_ROWS = 128  # the sums of more do not fit the registers
FEW_ROWS = 16  # up to so many, gate and up go by tiles twice as long: 31.6 microseconds instead of 34.1 in an 8B layer
MAX_PARTS = 8


def choose_tiles(num_summed: int, num_columns: int, *, num_weights: int = 1) -> Tiles | None:
    """Chooses tiles for weights [num_columns, num_summed]: nearly one program for each processor, where that is possible.

    Args:
      num_summed: D, numbers that a sum adds up.
      num_columns: I, columns of the product.
      num_weights: 2 for gate and up, whose sums cannot be split: the activation takes whole ones.

    Returns:
      None where no tile divides the weight evenly.
    """
    step = next((step for step in (128, 64) if num_summed % step == 0), None)
    if step is None or num_columns % COLUMNS:
        return None
    most_parts = MAX_PARTS if num_weights == 1 else 1
    several = [
        (num_columns // COLUMNS // warpgroups * parts, Tiles(warpgroups, 1, step, parts))
        for warpgroups in ((2, 3, 1) if num_weights == 1 else (2, 1))  # three have no registers for the sums of two
        for parts in range(1, most_parts + 1)
        if num_columns % (warpgroups * COLUMNS) == 0 and num_summed // step % parts == 0
    ]
    at_once = [(programs, tiles) for programs, tiles in several if programs <= NUM_PROCESSORS]
    if at_once:
        return max(at_once, key=lambda found: found[0])[1]  # the first of several with as many programs
    wide = Tiles(2, 2 // num_weights, step, 1)  # each program computes several tiles of columns, one behind the other
    return wide if num_columns % wide.columns == 0 else Tiles(1, 1, step, 1)


def fitting_rows(num_rows: int) -> int:
    """Rounds up to a multiple of 8, if it is above 8: of fewer rows, copies to shared memory add zeros themselves."""
    return num_rows if num_rows < 8 else _in_eights(num_rows)


def _in_eights(num_rows: int) -> int:
    return -(-num_rows // 8) * 8


def multiply(
    x_MD: jax.Array,
    values: Sequence[jax.Array],
    scales: Sequence[jax.Array],
    tiles: Tiles,
    out_dtype: jnp.dtype,
    interpret: Any,
) -> jax.Array:
    """Multiplies x with one weight, or with gate and up, of which it gives silu(x gate) (x up).

    Args:
      x_MD: M rows, bfloat16, at most `MAX_ROWS`, as many as fit (`fitting_rows`).
      values: of each weight, int8 [I, D].
      scales: of each weight, float32 [I].
      tiles: `choose_tiles`; static.
      out_dtype: of the result; static.
      interpret: `InterpretGPUParams` of JAX 0.11 run the kernel on any device: slow, for tests; static.

    Returns:
      Parts of the sums, [P, N, I], N rows of which the first M are meant; rounded once where `out_dtype` is short.
    """
    (M, D), I, num_weights = x_MD.shape, len(values[0]), len(values)
    N = _in_eights(M)
    if num_weights == 2 and N <= FEW_ROWS and D % (2 * tiles.step) == 0:
        tiles = tiles._replace(step=2 * tiles.step)
    num_units = I // tiles.columns * tiles.parts
    num_programs = min(num_units, NUM_PROCESSORS)
    num_slots = min(tiles.num_slots(N, num_weights), D // tiles.step // tiles.parts)
    scratch = {
        "x_smem": _tile((num_slots, N, tiles.step), jnp.bfloat16),
        "is_full": plgpu.Barrier(num_arrivals=1 + num_weights, num_barriers=num_slots),
        "is_free": plgpu.Barrier(num_arrivals=tiles.warpgroups, num_barriers=num_slots),
        "value_smems": [_tile((num_slots, tiles.columns, tiles.step), jnp.int8)] * num_weights,
    }
    if interpret:
        scratch["factor_smem"] = plgpu.SMEM((tiles.warpgroups, COLUMNS, tiles.step), jnp.bfloat16)
    return plgpu.kernel(
        functools.partial(
            _product_kernel, num_weights=num_weights, tiles=tiles, num_units=num_units, num_programs=num_programs
        ),
        out_type=jax.ShapeDtypeStruct((tiles.parts, N, I), out_dtype),
        scratch_types=scratch,
        grid=(num_programs,),
        grid_names=("program",),
        num_threads=tiles.warpgroups + 1,
        thread_name="warpgroup",
        kernel_name="int8_product",
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Warpgroup,
            unsafe_no_auto_barriers=True,  # they hold all warpgroups up, the one that loads as well
            approx_math=True,
        ),
        interpret=interpret or None,
    )(x_MD, *values, *scales)


def _tile(shape: tuple[int, ...], dtype: jnp.dtype) -> Any:
    """Says that tiles lie in shared memory as wgmma reads them."""
    bits = jnp.dtype(dtype).itemsize * 8
    swizzle = plgpu.find_swizzle(shape[-1] * bits)
    return plgpu.SMEM(
        shape,
        dtype,
        transforms=(plgpu.TilingTransform((8, swizzle * 8 // bits)), plgpu.SwizzleTransform(swizzle)),
    )
