"""Multiplies few rows with a weight in GPU kernels (Pallas, Triton): the time goes into reading the weight once.

Each program walks down its columns of the weight, with the loads of the next tiles in flight, and multiplies each tile with
all rows. Where the columns make too few programs for the GPU, the sum is split as well:

                           columns 0 .. 127   columns 128 .. 255
    weight rows 0 .. D/2   program 0, 0       program 1, 0         -> part 0 of the sums
    weight rows D/2 .. D   program 0, 1       program 1, 1         -> part 1

A row's sums have one order, which the weight's shape alone decides, whatever the number of rows: many go through
in blocks. XLA's products are faster then, but have another order for another number of rows.

Float32 is multiplied number by number: the GPU's matrix units would round it to fewer bits.

The kernel that reads the result adds the parts up on the way (`add_norm`, `split_qkv`); XLA makes a kernel of its own for
that, and another one for an activation.
"""

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from jax_probe_mtp.kernels.tiles import NUM_PROCESSORS

MAX_ROWS = 64  # of more, XLA's products are faster
SMALL = 2**20  # numbers of a bfloat16 weight, of which XLA splits the sum and starts a second kernel (SmolLM2's shapes)
MAX_SMALL_ROWS = 128  # with such weights
MAX_PARTS = 8
LARGE = 2**23  # numbers of a float32 weight, which XLA reads faster for one row, and multiplies faster with many
MAX_LARGE_ROWS = 32
_BLOCKS = {"bfloat16": MAX_ROWS, "float32": 32}  # rows of a program: of more, float32 sums fill its registers
_STEPS = {"bfloat16": 64, "float32": 32}
_COLUMNS = {"bfloat16": (128, 64, 32), "float32": (128, 64, 32, 16)}


class Tiles(NamedTuple):
    """A way to cut the work: it decides the speed, and changes the result by rounding alone.

    Attributes:
      columns: of the weight, for a program; a power of two, at least 16.
      parts: programs that share the sums of the same columns.
      num_warps: warps of a program.
      num_stages: tiles that are loaded ahead, one less than this many.
      step: rows of the weight that a program reads at a time.
    """

    columns: int
    parts: int
    num_warps: int
    num_stages: int
    step: int = 64


def choose_tiles(
    num_summed: int, num_columns: int, *, num_weights: int = 1, dtype: jnp.dtype = jnp.bfloat16
) -> Tiles | None:
    """Chooses tiles for weights [num_summed, num_columns]: wide ones, where they still make a program for most processors.

    Args:
      num_summed: rows of a weight.
      num_columns: columns of a weight.
      num_weights: 2 for gate and up, whose sums cannot be split: the activation takes whole ones.
      dtype: of the weights, bfloat16 or float32.

    Returns:
      None where no tile divides the weight evenly, and for other dtypes.
    """
    found, name = None, jnp.dtype(dtype).name
    if name not in _STEPS:
        return None
    step = _STEPS[name]
    for columns in _COLUMNS[name]:
        if num_summed % step or num_columns % columns:
            continue
        num_tiles = num_columns // columns
        room = min(NUM_PROCESSORS // num_tiles, MAX_PARTS) if num_weights == 1 else 1
        parts = max((p for p in range(1, room + 1) if num_summed // step % p == 0), default=1)
        num_programs = num_tiles * parts
        if name == "float32":
            num_stages, enough = 4 if columns * num_weights >= 128 else 5, 0.55
        else:
            num_stages, enough = 4 if num_programs > 100 or num_weights == 2 else 6, 0.6 if num_weights == 1 else 2 / 3
        found = Tiles(columns, parts, 8 if columns * num_weights == 256 else 4, num_stages, step)
        # Of 5,120 columns, 80 programs of wide tiles read twice as fast as 160 of narrow ones. (Of gate and up none was timed.)
        if num_programs >= enough * NUM_PROCESSORS:
            break
    return found


def is_supported(num_rows: int, x_dtype: jnp.dtype, *weights: jax.Array) -> bool:
    """Says whether the kernels take these weights, each [D, I], and are the fastest for so many rows."""
    least, most, largest = 1, MAX_ROWS, max(math.prod(weight.shape) for weight in weights)
    if x_dtype == jnp.float32 and largest > LARGE:
        least, most = 2, MAX_LARGE_ROWS
    elif x_dtype == jnp.bfloat16 and largest <= SMALL:
        most = MAX_SMALL_ROWS
    return (
        least <= num_rows <= most
        and all(weight.dtype == x_dtype for weight in weights)
        and all(choose_tiles(*weight.shape, dtype=x_dtype) is not None for weight in weights)
    )


def product_parts(
    x_MD: jax.Array, weight_DI: jax.Array, *, tiles: Tiles | None = None, interpret: bool = False
) -> jax.Array:
    """Multiplies x with the weight, and gives P parts of the sums.

    Args:
      x_MD: M rows, bfloat16 or float32.
      weight_DI: in x's dtype.
      tiles: how the work is cut; `choose_tiles` when left out; static.
      interpret: runs the kernel as JAX operations on any device: slow, for tests.

    Returns:
      float32 [P, M, I]; their sum is the product, not rounded yet.
    """
    tiles = tiles or choose_tiles(*weight_DI.shape, dtype=x_MD.dtype)
    assert tiles is not None, f"no tiles for {weight_DI.shape}: ask is_supported first"
    block = pl.BlockSpec((weight_DI.shape[0] // tiles.parts, tiles.columns), lambda i, p, r: (p, i))
    return _call(x_MD, [weight_DI], block, tiles, jnp.float32, interpret)


def head_product(
    x_MD: jax.Array, head_VD: jax.Array, *, tiles: Tiles | None = None, interpret: bool = False
) -> jax.Array:
    """Multiplies x with the rows of a table, such as the head; float32 [M, V], never rounded on the way.

    Args:
      x_MD: M rows, bfloat16 or float32.
      head_VD: in x's dtype; `choose_tiles(D, V)` has tiles for it.
      tiles, interpret: as in `product_parts`.
    """
    V, D = head_VD.shape
    tiles = tiles or choose_tiles(D, V, dtype=x_MD.dtype)
    assert tiles is not None, f"no tiles for {head_VD.shape}: ask choose_tiles first"
    tiles = tiles._replace(parts=1)  # the vocabulary makes programs enough
    block = pl.BlockSpec((tiles.columns, D), lambda i, p, r: (i, 0))
    return _call(x_MD, [head_VD], block, tiles, jnp.float32, interpret, are_rows=True)[0]


def gated_product(
    x_MD: jax.Array, gate_DF: jax.Array, up_DF: jax.Array, *, tiles: Tiles | None = None, interpret: bool = False
) -> jax.Array:
    """Computes silu(x gate) (x up), [M, F] in x's dtype, rounded once. Takes the arguments of `product_parts`."""
    tiles = tiles or choose_tiles(*gate_DF.shape, num_weights=2, dtype=x_MD.dtype)
    assert tiles is not None, f"no tiles for {gate_DF.shape}: ask is_supported first"
    block = pl.BlockSpec((gate_DF.shape[0], tiles.columns), lambda i, p, r: (0, i))
    return _call(x_MD, [gate_DF, up_DF], block, tiles, x_MD.dtype, interpret)[0]


def _call(
    x_MD: jax.Array,
    weights: Sequence[jax.Array],
    block: pl.BlockSpec,
    tiles: Tiles,
    out_dtype: jnp.dtype,
    interpret: bool,
    are_rows: bool = False,
) -> jax.Array:
    """Runs the kernel; `are_rows` says that a weight is [I, D]."""
    M, D = x_MD.shape
    I = weights[0].shape[0 if are_rows else 1]
    m = min(max(pl.next_power_of_2(M), 16), _BLOCKS[x_MD.dtype.name])
    return pl.pallas_call(
        functools.partial(_product_kernel, num_rows=M, are_rows=are_rows, step=tiles.step),
        grid=(I // tiles.columns, tiles.parts, pl.cdiv(M, m)),  # blocks of rows last: they share a tile of the weight
        in_specs=[pl.BlockSpec((m, D // tiles.parts), lambda i, p, r: (r, p)), *[block] * len(weights)],
        out_specs=pl.BlockSpec((None, m, tiles.columns), lambda i, p, r: (p, r, i)),
        out_shape=jax.ShapeDtypeStruct((tiles.parts, M, I), out_dtype),
        compiler_params=plgpu.CompilerParams(num_warps=tiles.num_warps, num_stages=tiles.num_stages),
        interpret=interpret,
    )(x_MD, *weights)


def _product_kernel(x_ref: Any, *refs: Any, num_rows: int, are_rows: bool, step: int) -> None:
    """Multiplies m rows with the program's c columns, s of the summed axis at a time."""
    *weight_refs, out_ref = refs
    m, num_summed = x_ref.shape
    assert num_summed % step == 0, f"tiles of {step} rows do not divide {num_summed}: ask choose_tiles"
    is_row_m1 = (pl.program_id(2) * m + jnp.arange(m) < num_rows)[:, None]
    # The GPU's matrix units take 64 rows and 8 columns at least: the weight is their left factor.
    is_left = weight_refs[0].dtype == jnp.bfloat16

    def multiply(tile: jax.Array, x_ms: jax.Array) -> jax.Array:
        if is_left:
            return plgpu.dot(tile, x_ms, trans_a=not are_rows, trans_b=True, precision="default")
        return plgpu.dot(x_ms, tile, trans_b=are_rows, precision="highest")

    def add(i: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        summed = pl.ds(i * step, step)
        x_ms = plgpu.load(x_ref.at[:, summed], mask=is_row_m1, other=0)
        tiles = [
            plgpu.load(ref.at[(slice(None), summed) if are_rows else (summed, slice(None))]) for ref in weight_refs
        ]
        return tuple(total + multiply(tile, x_ms) for total, tile in zip(sums, tiles, strict=True))

    c = out_ref.shape[1]
    zeros = jnp.zeros((c, m) if is_left else (m, c), jnp.float32)
    sums = jax.lax.fori_loop(0, num_summed // step, add, (zeros,) * len(weight_refs))
    out = sums[0] if len(sums) == 1 else sums[0] * jax.nn.sigmoid(sums[0]) * sums[1]
    plgpu.store(out_ref, (out.T if is_left else out).astype(out_ref.dtype), mask=is_row_m1)
