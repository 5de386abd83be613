"""Grows the tree of a merged draft in one GPU kernel (Pallas, Triton), where XLA makes twenty kernels for each depth.

One program a row. It keeps the N - 1 best paths found so far; only those of them that are as deep as the last pass may have
children among the best, so each pass asks the tables for these alone, a few at a time, and drops at once what is worse than
the worst that is kept. `grow.py` is the plain way, which gives the same tree.

A path's rank is one whole number, the smaller the better: its cost, its depth, its parent's place among those of its depth,
its token's place among its siblings, in this order.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from jax_probe_mtp.drafting.candidates import NO_PARENT, NO_TOKEN
from jax_probe_mtp.drafting.merged.acceptance import COST, MOST
from jax_probe_mtp.drafting.merged.facts import FIRST_WEIGHT, MASK_CANDIDATES, NUM_WEIGHTS, Facts, chosen
from jax_probe_mtp.drafting.merged.kernel_paths import Paths, in_order, places, put
from jax_probe_mtp.drafting.merged.kernel_tables import COLUMNS, MASK, facts_of, lists_of
from jax_probe_mtp.drafting.merged.keys import CONTEXT
from jax_probe_mtp.drafting.merged.memory import Memory, unpack

NODES = 16  # asked at a time
NUM_WARPS = 8
_TOKEN_BITS, _NODE_BITS, _DEPTH_BITS, _COST_BITS = 6, 8, 3, 13
_COST_SHIFT = _TOKEN_BITS + _NODE_BITS + _DEPTH_BITS
_NEVER = 1 << (_COST_SHIFT + _COST_BITS)
assert COLUMNS <= 1 << _TOKEN_BITS


class Drafts(NamedTuple):
    """The best N - 1 paths, best first, int32 [B, N - 1] each.

    Attributes:
      token_BP: the last token of each, `NO_TOKEN` where there are fewer.
      parent_BP: place of the path that it extends, `NO_PARENT` for one of a single token.
      depth_BP: its tokens, 1 or more.
      cost_BP: in 64ths of a nat.
      note_BP: `Facts.pack`.
    """

    token_BP: jax.Array
    parent_BP: jax.Array
    depth_BP: jax.Array
    cost_BP: jax.Array
    note_BP: jax.Array


def is_supported(memory: Memory) -> bool:
    """Says whether `grow_in_kernel` takes tables of these sizes: it counts their numbers in 32 bits."""
    return all(table.size <= np.iinfo(np.int32).max for table in (memory.token_YSE, memory.pair_YSE, memory.ngram_YnSE))


def grow_in_kernel(
    memory: Memory,
    whole_YF: jax.Array,
    recent_BL: jax.Array,
    mask_BC: jax.Array | None,
    *,
    sources: frozenset[str],
    num_drafts: int,
    max_depth: int,
    interpret: bool = False,
) -> Drafts:
    """Finds the best N - 1 paths: `grow.grow` says what it takes.

    Args:
      interpret: runs the kernel as JAX operations on any device: slow, for tests.
    """
    B = recent_BL.shape[0]
    W = pl.next_power_of_2(max(num_drafts, NODES))
    A = pl.next_power_of_2(max_depth * W)
    fields = len(Paths._fields)
    sizes = [
        *[W] * len(Drafts._fields),
        *[A + 1] * fields,  # the arena
        *[W * COLUMNS + 1] * fields,  # children
        (max_depth + 1) * CONTEXT * W,
        *[A + 1] * 2,
    ]

    def row(size: int) -> pl.BlockSpec:
        return pl.BlockSpec((None, size), lambda b: (b, 0))

    tables = (memory.token_YSE, memory.pair_YSE, memory.ngram_YnSE)
    results = pl.pallas_call(
        functools.partial(
            _grow_kernel,
            table_sizes=[table.shape[-2] for table in tables],
            num_tables=whole_YF.shape[0],
            sources=sources,
            has_mask=mask_BC is not None,
            num_drafts=num_drafts,
            max_depth=max_depth,
            width=W,
            barrier=(lambda: None) if interpret else plgpu.debug_barrier,
        ),
        grid=(B,),
        in_specs=[*[pl.BlockSpec(memory_space=pl.ANY)] * 5, row(CONTEXT), row(MASK_CANDIDATES)],
        out_specs=[row(size) for size in sizes],
        out_shape=[jax.ShapeDtypeStruct((B, size), jnp.int32) for size in sizes],
        compiler_params=plgpu.CompilerParams(num_warps=NUM_WARPS, num_stages=1),
        interpret=interpret,
    )(
        *(table.reshape(-1) for table in (*tables, whole_YF)),
        jnp.asarray(COST),
        recent_BL,
        jnp.full((B, MASK_CANDIDATES), NO_TOKEN, jnp.int32) if mask_BC is None else mask_BC,
    )
    return Drafts(*(values[:, :num_drafts] for values in results[: len(Drafts._fields)]))


def _grow_kernel(
    token_ref: Any,
    pair_ref: Any,
    ngram_ref: Any,
    weight_ref: Any,
    cost_ref: Any,
    recent_ref: Any,
    mask_ref: Any,
    *refs: Any,
    table_sizes: Sequence[int],
    num_tables: int,
    sources: frozenset[str],
    has_mask: bool,
    num_drafts: int,
    max_depth: int,
    width: int,
    barrier: Callable[[], None],
) -> None:
    out, arena, children = refs[:5], Paths(*refs[5:9]), Paths(*refs[9:13])
    context_ref, order_key_ref, order_from_ref = refs[13:]
    y = jax.lax.rem(pl.program_id(0), num_tables)
    W, A, shape = width, arena.key.shape[0] - 1, (NODES, COLUMNS)
    place_A, place_W = jnp.arange(A, dtype=jnp.int32), jnp.arange(W, dtype=jnp.int32)
    number_NC = jnp.broadcast_to(jnp.arange(NODES, dtype=jnp.int32)[:, None], shape)
    column_NC = jnp.broadcast_to(jnp.arange(COLUMNS, dtype=jnp.int32)[None], shape)

    def context_at(depth: Any, i: int, node_X: jax.Array) -> Any:
        return context_ref.at[(depth * CONTEXT + i) * W + node_X]

    def ask(first: Any, num_nodes: Any, depth: Any, limit: Any, count: Any) -> Any:
        """Lists the children of up to 16 nodes of one depth that are better than `limit`; gives how many are listed."""
        node_NC = first + number_NC
        is_node_NC = node_NC < num_nodes
        tokens = [plgpu.load(context_at(depth, i, node_NC), mask=is_node_NC, other=NO_TOKEN) for i in range(CONTEXT)]
        lists = lists_of((token_ref, pair_ref, ngram_ref), table_sizes, y, tokens, sources)
        token_NC = jnp.full(shape, NO_TOKEN, jnp.int32)
        for listed in lists:
            token_NC = jnp.where(listed.has(column_NC), listed.load_column(column_NC), token_NC)
        if has_mask:
            is_mask_NC = (column_NC >= MASK) & (column_NC < MASK + MASK_CANDIDATES) & (node_NC == 0) & (depth == 0)
            of_mask_NC = plgpu.load(mask_ref.at[jnp.where(is_mask_NC, column_NC - MASK, 0)])
            token_NC = jnp.where(is_mask_NC, unpack(of_mask_NC)[0], token_NC)
        note_NC, is_first_NC, place_NC = facts_of(lists, mask_ref if has_mask else None, token_NC, column_NC, depth)
        total_NC = jnp.zeros(shape, jnp.int32)
        for group, weight_NC in chosen(Facts.unpack(note_NC)).items():
            at_NC = y * NUM_WEIGHTS + FIRST_WEIGHT[group] + weight_NC
            total_NC += plgpu.load(weight_ref.at[at_NC], mask=is_first_NC, other=0)
        step_NC = plgpu.load(cost_ref.at[jnp.clip(total_NC, -MOST, MOST) + MOST])
        parent_NC = jnp.where(depth == 0, NO_PARENT, (depth - 1) * W + node_NC)
        is_below_NC = is_node_NC & (parent_NC != NO_PARENT)
        above_NC = plgpu.load(arena.key.at[jnp.maximum(parent_NC, 0)], mask=is_below_NC, other=0) >> _COST_SHIFT
        key_NC = (((above_NC + step_NC) << _DEPTH_BITS) | depth) << _NODE_BITS
        key_NC = ((key_NC | node_NC) << _TOKEN_BITS) | place_NC
        is_listed_NC = is_first_NC & (key_NC < limit)
        at_NC, total = places(is_listed_NC, count)
        for ref, value_NC in zip(children, (key_NC, token_NC, parent_NC, note_NC), strict=True):
            put(ref, at_NC, value_NC, is_listed_NC)
        return total

    def keep(depth: Any, limit: Any, count: Any) -> tuple[Any, Any]:
        """Puts the children that are among the best N - 1 of all into the arena; gives how many, and the new limit."""
        num_blocks = jax.lax.div(count + A - 1, A)

        def keys(i: Any) -> tuple[jax.Array, jax.Array]:
            at_A = i * A + place_A
            return at_A, plgpu.load(children.key.at[at_A], mask=at_A < count, other=_NEVER)

        kept_A, first_A = plgpu.load(arena.key.at[place_A]), keys(0)[1]

        def num_below(bound: Any) -> Any:
            def add(i: Any, number: Any) -> Any:
                return number + jnp.sum((keys(i)[1] < bound).astype(jnp.int32))

            number = jnp.sum((kept_A < bound).astype(jnp.int32) + (first_A < bound).astype(jnp.int32))
            return jax.lax.fori_loop(1, num_blocks, add, number)

        def halve(between: tuple[Any, Any]) -> tuple[Any, Any]:
            low, high = between
            middle = (low + high) >> 1
            number = num_below(middle)
            return jnp.where(number > num_drafts, low, middle), jnp.where(number < num_drafts, high, middle)

        # Keys differ, so that there is a number below which are as many as are wanted: `low` and `high` meet there.
        low = jnp.where(num_below(limit) > num_drafts, 0, limit)
        limit, _ = jax.lax.while_loop(lambda between: between[1] - between[0] > 1, halve, (low, limit))

        def choose(i: Any, number: Any) -> Any:
            at_A, key_A = keys(i)
            to_A, total = places(key_A < limit, number)
            put(order_key_ref, to_A, key_A, key_A < limit)
            put(order_from_ref, to_A, at_A, key_A < limit)
            return total

        number = jax.lax.fori_loop(0, num_blocks, choose, jnp.int32(0))
        barrier()
        key_W, to_W, from_W = in_order(order_key_ref, order_from_ref, number, place_W, _NEVER)
        is_new_W = place_W < number
        token_W, parent_W, note_W = (
            plgpu.load(ref.at[from_W], mask=is_new_W, other=0)
            for ref in (children.token, children.parent, children.note)
        )
        for ref, value_W in zip(arena, (key_W, token_W, parent_W, note_W), strict=True):
            put(ref, depth * W + to_W, value_W, is_new_W)
        node_W = jnp.where(depth == 0, 0, parent_W - (depth - 1) * W)
        older = [plgpu.load(context_at(depth, i, node_W), mask=is_new_W, other=NO_TOKEN) for i in range(1, CONTEXT)]
        for i, value_W in enumerate((*older, token_W)):
            plgpu.store(context_at(depth + 1, i, to_W), value_W)
        barrier()
        return number, limit

    def go_on(carry: tuple[Any, Any, Any]) -> tuple[Any, Any, Any]:
        depth, num_nodes, limit = carry

        def ask_some(i: Any, count: Any) -> Any:
            return ask(i * NODES, num_nodes, depth, limit, count)

        count = jax.lax.fori_loop(0, jax.lax.div(num_nodes + NODES - 1, NODES), ask_some, jnp.int32(0))
        barrier()
        return depth + 1, *keep(depth, limit, count)

    # No path is known; the root is the one node of depth 0.
    plgpu.store(arena.key.at[place_A], jnp.full_like(place_A, _NEVER))
    for i in range(CONTEXT):
        plgpu.store(context_at(0, i, place_W), plgpu.load(recent_ref.at[jnp.full_like(place_W, i)]))
    barrier()
    first = (jnp.int32(0), jnp.int32(1), jnp.int32(_NEVER))
    _, _, limit = jax.lax.while_loop(lambda carry: (carry[0] < max_depth) & (carry[1] > 0), go_on, first)

    _write_best(out, arena, (order_key_ref, order_from_ref), limit, place_W, barrier)


def _write_best(
    out: Sequence[Any],
    arena: Paths,
    order: tuple[Any, Any],
    limit: Any,
    place_W: jax.Array,
    barrier: Callable[[], None],
) -> None:
    """Writes `Drafts` in order: of all paths that were kept at some time those below the last limit."""
    order_key_ref, order_from_ref = order
    place_A = jnp.arange(arena.key.shape[0] - 1, dtype=jnp.int32)
    key_A = plgpu.load(arena.key.at[place_A])
    to_A, number = places(key_A < limit, jnp.int32(0))
    put(order_key_ref, to_A, key_A, key_A < limit)
    put(order_from_ref, to_A, place_A, key_A < limit)
    barrier()
    key_W, to_W, from_W = in_order(order_key_ref, order_from_ref, number, place_W, _NEVER)
    is_there_W = place_W < number
    barrier()
    put(order_from_ref, from_W, to_W, is_there_W)  # from here on: where a path of the arena went
    barrier()
    parent_W = plgpu.load(arena.parent.at[from_W], mask=is_there_W, other=NO_PARENT)
    is_below_W = parent_W != NO_PARENT
    depth_W = 1 + ((key_W >> (_TOKEN_BITS + _NODE_BITS)) & ((1 << _DEPTH_BITS) - 1))
    drafts = Drafts(
        token_BP=plgpu.load(arena.token.at[from_W], mask=is_there_W, other=NO_TOKEN),
        parent_BP=plgpu.load(order_from_ref.at[jnp.where(is_below_W, parent_W, 0)], mask=is_below_W, other=NO_PARENT),
        depth_BP=jnp.where(is_there_W, depth_W, 1),
        cost_BP=jnp.where(is_there_W, key_W >> _COST_SHIFT, 0),
        note_BP=plgpu.load(arena.note.at[from_W], mask=is_there_W, other=0),
    )
    for ref, value_W in zip(out, drafts, strict=True):
        plgpu.store(ref.at[to_W], value_W)
