"""How the arrays of programs lie on a mesh of devices, and the program of a function there: one `jax.shard_map`."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jax_probe_mtp.decoding.loop import Prefix
from jax_probe_mtp.decoding.request import Request
from jax_probe_mtp.decoding.state import DecodeState
from jax_probe_mtp.drafting.source import SourceState
from jax_probe_mtp.model.config import DATA, TENSOR

Function = Callable[..., Any]
Program = jax.stages.Compiled

# How what a program takes and gives lies on a mesh: rows over `DATA`, kv heads over `TENSOR`.
ROWS, EVERYWHERE = P(DATA), P()
REQUEST: Any = Request(
    **dict[str, Any](
        prompt_length_B=ROWS,
        max_new_tokens_B=ROWS,
        eos_E=EVERYWHERE,
        sampling=ROWS,
        max_accept=EVERYWHERE,
        penalties=ROWS,
    )
)
STATE: Any = DecodeState(
    **dict[str, Any](
        token_BT=ROWS,
        length_B=ROWS,
        is_done_B=ROWS,
        cache=P(DATA, TENSOR),
        source=SourceState(rows=ROWS, shared=EVERYWHERE),
        calls_B=ROWS,
        accepted_by_depth_BX=ROWS,
        accepted_by_kind_BZ=ROWS,
        logprob_BT=ROWS,
        top_BTC=ROWS,
    )
)
PREFIX: Any = Prefix(**dict[str, Any](k=P(DATA, TENSOR), v=P(DATA, TENSOR), hidden_1TD=ROWS, length=ROWS))


def results_of(program: Program) -> Any:
    """Gives the shapes of what a program gives, and how it lies on a mesh, for programs that take it."""
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        program.out_info,
        program.output_shardings,
    )


def on_mesh(function: functools.partial[Any], mesh: Mesh, in_specs: Any, out_specs: Any) -> Function:
    """Gives `jax.shard_map` of a function, whose border no array without elements crosses.

    XLA (jaxlib 0.11.2) makes constants of them, and its pass "shardy-xla" crashes at a constant without elements:
    docs/upstream/empty_constant.md. Plain decoding has such an array, its accepted drafts by depth. Nor may a function make
    such constants itself.
    """

    def run(*args: Any) -> Any:
        of_args, of_results = _shapes(args), list[tuple[int, ...]]()

        def inside(*args: Any) -> Any:
            results = function(*_emptied(args, of_args))
            of_results[:] = _shapes(results)
            return _filled(results)

        sharded = jax.shard_map(inside, mesh=mesh, in_specs=in_specs, out_specs=out_specs, check_vma=False)
        return _emptied(sharded(*_filled(args)), of_results)

    run.__name__ = function.func.__name__
    return run


def _shapes(tree: Any) -> list[tuple[int, ...]]:
    return [leaf.shape for leaf in jax.tree.leaves(tree)]


def _filled(tree: Any) -> Any:
    """Gives arrays without elements one along each empty axis."""
    return jax.tree.map(lambda x: x if x.size else jnp.zeros([size or 1 for size in x.shape], x.dtype), tree)


def _emptied(tree: Any, shapes: list[tuple[int, ...]]) -> Any:
    """Takes those elements away again; `shapes` are of before, of all or of a device's part."""

    def leaf(x: jax.Array, shape: tuple[int, ...]) -> jax.Array:
        return x if all(shape) else x[tuple(slice(None) if size else slice(0) for size in shape)]

    leaves, tree_def = jax.tree.flatten(tree)
    return jax.tree.unflatten(tree_def, map(leaf, leaves, shapes))
