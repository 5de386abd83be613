"""Multiplies up to 32 rows with a weight of eight bits in GPU kernels (Pallas, Triton): half the bytes of `kernels/product.py`.

A weight is a whole number from -127 to 127 for each of its numbers, and what one is worth for each column of the product:
`model.params.Int8`.

The work is cut as there. What differs follows from the bytes: the weight lies [I, D], so that a thread reads neighbouring
numbers of the summed axis, which the matrix units want side by side; it is the right factor; and rows go by 16 or 32. This was
the fastest of the ways that were timed, and for 64 rows none was faster than with bfloat16 weights (docs/quantization.md).

A row's sums have one order whatever the number of rows: it follows from `Tiles.parts`, which a weight's shape alone decides.
"""

import functools
import itertools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from jax_probe_mtp.kernels.tiles import NUM_PROCESSORS

MAX_ROWS = 32
MAX_PARTS = 8


class Tiles(NamedTuple):
    """A way to cut the work: it decides the speed, and changes the result by rounding alone.

    Attributes:
      columns: of the product, for a program; a power of two, at least 16.
      parts: programs that share the sums of the same columns.
      step: numbers of the summed axis that a program reads at a time; a power of two, at least 32.
      num_warps: warps of a program.
      num_stages: tiles that are loaded ahead, one less than this many.
    """

    columns: int
    parts: int
    step: int
    num_warps: int
    num_stages: int


def choose_tiles(num_summed: int, num_columns: int, *, num_weights: int = 1) -> Tiles | None:
    """Chooses tiles for weights [num_columns, num_summed]: small programs, several for each processor.

    Args:
      num_summed: D, numbers that a sum adds up.
      num_columns: I, columns of the product.
      num_weights: 2 for gate and up, whose sums cannot be split: the activation takes whole ones.

    Returns:
      None where no tile divides the weight evenly.
    """
    for columns, step in itertools.product((64, 32), (256, 128, 64) if num_weights == 2 else (128, 64)):
        if num_summed % step or num_columns % columns:
            continue
        num_tiles = num_columns // columns
        room = min(6 * NUM_PROCESSORS // num_tiles, MAX_PARTS) if num_weights == 1 else 1
        parts = max((p for p in range(1, room + 1) if num_summed // step % p == 0), default=1)
        return Tiles(columns, parts, step, num_warps=4, num_stages=3)
    return None


def fitting_rows(num_rows: int) -> int:
    """Gives the number itself: any number of rows fits."""
    return num_rows


def multiply(
    x_MD: jax.Array,
    values: Sequence[jax.Array],
    scales: Sequence[jax.Array],
    tiles: Tiles,
    out_dtype: jnp.dtype,
    interpret: bool,
) -> jax.Array:
    """Multiplies x with one weight, or with gate and up, of which it gives silu(x gate) (x up).

    Args:
      x_MD: M rows, bfloat16, at most `MAX_ROWS`.
      values: of each weight, int8 [I, D].
      scales: of each weight, float32 [I].
      tiles: `choose_tiles`; static.
      out_dtype: of the result; static.
      interpret: runs the kernel as JAX operations on any device: slow, for tests; static.

    Returns:
      Parts of the sums, [P, M, I]; rounded once where `out_dtype` is short.
    """
    (M, D), I = x_MD.shape, len(values[0])
    m = 16 if M <= 16 else 32
    of_weight = pl.BlockSpec((tiles.columns, D // tiles.parts), lambda i, p: (i, p))
    of_scale = pl.BlockSpec((tiles.columns,), lambda i, p: (i,))
    return pl.pallas_call(
        functools.partial(_product_kernel, num_rows=M, step=tiles.step),
        grid=(I // tiles.columns, tiles.parts),
        in_specs=[
            pl.BlockSpec((m, D // tiles.parts), lambda i, p: (0, p)),
            *[of_weight] * len(values),
            *[of_scale] * len(scales),
        ],
        out_specs=pl.BlockSpec((None, m, tiles.columns), lambda i, p: (p, 0, i)),
        out_shape=jax.ShapeDtypeStruct((tiles.parts, M, I), out_dtype),
        compiler_params=plgpu.CompilerParams(num_warps=tiles.num_warps, num_stages=tiles.num_stages),
        interpret=interpret,
    )(x_MD, *values, *scales)


def _product_kernel(x_ref: Any, *refs: Any, num_rows: int, step: int) -> None:
    """Multiplies all m rows with the program's c columns, s of the summed axis at a time."""
    *weight_refs, out_ref = refs
    value_refs, scale_refs = weight_refs[: len(weight_refs) // 2], weight_refs[len(weight_refs) // 2 :]
    m, num_summed = x_ref.shape
    is_row_m1 = (jnp.arange(m) < num_rows)[:, None]

    def add(i: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        summed = pl.ds(i * step, step)
        x_ms = plgpu.load(x_ref.at[:, summed], mask=is_row_m1, other=0)
        # Every int8 is a bfloat16, so nothing is rounded before the sums.
        products = [
            plgpu.dot(x_ms, plgpu.load(ref.at[:, summed]).astype(jnp.bfloat16), trans_b=True, precision="default")
            for ref in value_refs
        ]
        return tuple(sum_mc + product_mc for sum_mc, product_mc in zip(sums, products, strict=True))

    zeros_mc = jnp.zeros((m, out_ref.shape[1]), jnp.float32)
    sums = jax.lax.fori_loop(0, num_summed // step, add, (zeros_mc,) * len(value_refs))
    sums = tuple(sum_mc * plgpu.load(ref)[None] for sum_mc, ref in zip(sums, scale_refs, strict=True))
    out_mc = sums[0] if len(sums) == 1 else sums[0] * jax.nn.sigmoid(sums[0]) * sums[1]
    plgpu.store(out_ref, out_mc.astype(out_ref.dtype), mask=is_row_m1)
