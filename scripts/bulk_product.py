"""A candidate for `fused_product.py` on Hopper GPUs (Pallas, Mosaic GPU): a weight that comes in bulk copies.

One group of warps does nothing but start the copies of the next tiles, some stages ahead; the other multiplies what has
come. The rows are the left factor, of which Hopper takes 64 at least: they are padded, and so is the result, where what is
behind the true rows means nothing. `bench_products.py` times it beside the kernels in use.
"""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from jax_probe_mtp.fused_product import MAX_PARTS, NUM_PROCESSORS

ROWS = 64
SHARED_BYTES = 232448  # that a program may use on Hopper
MAX_STAGES = 8


class Tiles(NamedTuple):
    """How the work is cut.

    Attributes:
      columns: of each weight, for a program; a multiple of 64, at most 256.
      parts: programs that share the sums of the same columns.
      stages: steps whose tiles have room at a time.
      lag: steps whose products may still run when the next one's begin; below `stages`.
      cluster: programs of neighbouring columns that get the rows from the same copy.
      step: rows of the weight that come in one copy, a multiple of 64.
    """

    columns: int
    parts: int
    stages: int
    lag: int = 1
    cluster: int = 1
    step: int = 64


def choose_tiles(num_summed: int, num_columns: int, *, num_weights: int = 1) -> Tiles | None:
    """Tiles that make the most programs which run at once; None where none divide the weight.

    Among equals 128 columns: narrower ones read the rows more often, wider ones leave more parts to be summed.
    """
    found, best = None, (False, 0)
    for columns in (128, 192, 256, 64):
        stages = most_stages(columns, num_weights)
        if num_summed % 64 or num_columns % columns or columns * num_weights > 256:
            continue
        room = min(NUM_PROCESSORS * columns // num_columns, MAX_PARTS) if num_weights == 1 else 1
        parts = max((p for p in range(1, room + 1) if num_summed // 64 % p == 0), default=1)
        num_programs = num_columns // columns * parts
        rank = num_programs <= NUM_PROCESSORS, num_programs
        if rank > best:
            found, best = Tiles(columns, parts, stages), rank
    return found


def most_stages(columns: int, num_weights: int, step: int = 64) -> int:
    """Stages that fit the shared memory beside the result."""
    tile_bytes = 2 * step * (ROWS + num_weights * columns)
    result_bytes = ROWS * columns * (4 if num_weights == 1 else 2)
    return min((SHARED_BYTES - 1024 - result_bytes) // tile_bytes, MAX_STAGES)


def simulator() -> Any:
    """What `interpret` takes to run a kernel in JAX's own simulation of a GPU: slow, for tests."""
    if hasattr(plgpu, "InterpretGPUParams"):
        return plgpu.InterpretGPUParams()
    from jax._src.pallas.mosaic_gpu.interpret.params import InterpretGPUParams  # jax 0.10: there, but not in public

    return InterpretGPUParams()


@functools.partial(jax.jit, static_argnames=("tiles", "interpret"))  # or each product of a program is lowered anew
def product_parts(x_MD: jax.Array, weight_DI: jax.Array, *, tiles: Tiles, interpret: Any = None) -> jax.Array:
    """x [64, D] times the weight, both bfloat16, as parts float32 [P, 64, I] of the sums."""
    return _product(x_MD, weight_DI, 1, tiles, interpret)


@functools.partial(jax.jit, static_argnames=("tiles", "interpret"))
def gated_product(x_MD: jax.Array, gate_up_D2F: jax.Array, *, tiles: Tiles, interpret: Any = None) -> jax.Array:
    """silu(x gate) (x up), bfloat16 [64, F], of x [64, D]; `tiles.parts` is 1."""
    return _product(x_MD, gate_up_D2F.reshape(len(gate_up_D2F), -1), 2, tiles, interpret)[0]


def _product(x_MD: jax.Array, weight_DI: jax.Array, num_weights: int, tiles: Tiles, interpret: Any) -> jax.Array:
    D, c, P = len(weight_DI), tiles.columns, tiles.parts
    I = weight_DI.shape[1] // num_weights
    assert x_MD.shape == (ROWS, D), f"pad the rows to {ROWS}: {x_MD.shape}"
    assert D % (P * tiles.step) == I % (c * tiles.cluster) == 0, f"{tiles} do not fit {weight_DI.shape}"
    assert P == 1 or num_weights == 1, "the activation takes whole sums"
    out_dtype = jnp.float32 if num_weights == 1 else jnp.bfloat16
    scratch = plgpu.SMEM((ROWS, c), out_dtype, transforms=_swizzled(out_dtype, c))
    run = plgpu.kernel(
        functools.partial(_kernel, num_steps=D // P // tiles.step, num_weights=num_weights, tiles=tiles),
        out_type=jax.ShapeDtypeStruct((P, ROWS, I), out_dtype),
        grid=(I // c // tiles.cluster, P),
        grid_names=("columns", "part"),
        cluster=(tiles.cluster,),
        cluster_names=("neighbour",),
        num_threads=2,
        thread_name="warps",
        scratch_types={"result_ref": scratch},
        **({"interpret": interpret} if interpret is not None else {}),
    )
    parts: jax.Array = run(x_MD, weight_DI)
    return parts


def _kernel(
    x_ref: Any, weight_ref: Any, out_ref: Any, result_ref: Any, *, num_steps: int, num_weights: int, tiles: Tiles
) -> None:
    """All rows times the program's c columns of each weight, s of the summed axis at a time."""
    column = jax.lax.axis_index("columns") * tiles.cluster + jax.lax.axis_index("neighbour")
    part = jax.lax.axis_index("part")
    first, c = part * num_steps, tiles.columns
    tiles_a_weight = weight_ref.shape[1] // num_weights // c

    def multiply(_: Any, x_ms: Any, *refs: Any) -> Any:
        *weights, sums = refs
        for weight_sc, sum_mc in zip(weights, sums, strict=True):
            plgpu.wgmma(sum_mc, x_ms, weight_sc)
        plgpu.wgmma_wait(tiles.lag * num_weights)
        return sums

    def with_sums(run_pipeline: Callable[[Any], Any]) -> None:
        def run(*sums: Any) -> None:
            total = [sum_mc[...] for sum_mc in run_pipeline(sums)]
            result = total[0] if num_weights == 1 else total[0] * jax.nn.sigmoid(total[0]) * total[1]
            result_ref[...] = result.astype(out_ref.dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(result_ref, out_ref.at[part, :, pl.ds(column * c, c)])
            plgpu.wait_smem_to_gmem(0)

        pl.run_scoped(run, *[plgpu.ACC((ROWS, c), jnp.float32)] * num_weights)

    def spec(shape: tuple[int, int], place: Callable[[Any], tuple[Any, Any]], **shared: Any) -> plgpu.BlockSpec:
        return plgpu.BlockSpec(
            shape,
            place,
            transforms=_swizzled(jnp.bfloat16, c),  # both factors alike
            memory_space=plgpu.SMEM,
            delay_release=tiles.lag,
            **shared,
        )

    weight_specs = [
        spec((tiles.step, c), functools.partial(lambda n, i: (first + i, n * tiles_a_weight + column), n))
        for n in range(num_weights)
    ]
    shared = {"collective_axes": ("neighbour",)} if tiles.cluster > 1 else {}
    plgpu.emit_pipeline_warp_specialized(
        multiply,
        grid=(num_steps,),
        memory_registers=40,
        in_specs=[spec((ROWS, tiles.step), lambda i: (0, first + i), **shared), *weight_specs],
        wg_axis="warps",
        num_compute_wgs=1,
        max_concurrent_steps=tiles.stages,
        compute_context=with_sums,
    )(x_ref, *[weight_ref] * num_weights)


def _swizzled(dtype: Any, columns: int) -> tuple[Any, Any]:
    """Tiles whose rows are 128 bytes, or all columns, as the matrix units read them without conflicts."""
    size = jnp.dtype(dtype).itemsize
    row_bytes = min(columns * size, 128)
    return plgpu.TilingTransform((8, row_bytes // size)), plgpu.SwizzleTransform(row_bytes)
