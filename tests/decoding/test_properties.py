"""Blocks, walks and batches against slower definitions: few shapes, many drawn values."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import BASE
from hypothesis import given
from hypothesis import strategies as st
from support.decoding.batches import batch_of
from support.drafting.drawn_trees import MAX_DEPTH, NO_PARENT, B, N, depth, path, rows_of, several, trees
from support.drafting.trees import make_tree

from jax_probe_mtp.decoding.batch import bucket
from jax_probe_mtp.decoding.block import block_can_attend, block_positions, block_visible
from jax_probe_mtp.decoding.verify import follow, walk
from jax_probe_mtp.drafting import Plain
from jax_probe_mtp.drafting.candidates import NO_TOKEN
from jax_probe_mtp.drafting.tree import ancestors_or_self

CAPACITY, BEHIND = 5, 2  # slots of the committed prefix in front of the block, slots behind it


@functools.partial(jax.jit, static_argnames="num_masks")
def _block(parent_BN, depth_BN, length_B, num_masks, owner_BO):
    is_visible_BRR = block_visible(ancestors_or_self(parent_BN, max_depth=MAX_DEPTH), num_masks, owner_BO)
    num_slots = CAPACITY + is_visible_BRR.shape[1] + BEHIND
    can_attend_BRS = block_can_attend(is_visible_BRR, length_B, CAPACITY, num_slots)
    return is_visible_BRR, can_attend_BRS, block_positions(depth_BN, length_B, num_masks, owner_BO)


def block_rows(num_masks, owners):
    """(owner, mask) of each row, mask 0 for the node itself: all nodes, then the masks of each owner."""
    return [(node, 0) for node in range(N)] + [(node, i + 1) for node in owners for i in range(num_masks)]


def rows_read(parent, row):
    """The rows of its block that a row reads: its owner's masks up to it, its owner, all that walking up meets."""
    node, mask = row
    read = [(node, i) for i in range(mask + 1)]
    while (node := parent[node]) != NO_PARENT:
        read.append((node, 0))
    return read


def owners(count):
    return rows_of(st.permutations(range(N)).map(lambda nodes: nodes[:count]))


@several(max_examples=120)
@given(
    rows_of(trees()),
    rows_of(st.integers(0, CAPACITY)),
    st.integers(0, 3),
    st.none() | st.sampled_from([1, 3]).flatmap(owners),
)
def test_a_row_of_a_block_reads_the_prefix_its_path_and_its_owners_masks(parent_BN, length_B, num_masks, owner_BO):
    depth_BN = [[depth(parent, node) for node in range(N)] for parent in parent_BN]
    some = None if owner_BO is None else np.int32(owner_BO)
    block = _block(np.int32(parent_BN), np.int32(depth_BN), np.int32(length_B), num_masks, some)
    is_visible_BRR, can_attend_BRS, position_BR = map(np.asarray, block)
    expected = np.zeros(can_attend_BRS.shape, bool)
    for b, parent in enumerate(parent_BN):
        rows = block_rows(num_masks, range(N) if owner_BO is None else owner_BO[b])
        slot_of = {row: CAPACITY + i for i, row in enumerate(rows)}
        for r, row in enumerate(rows):
            expected[b, r, : length_B[b]] = True
            expected[b, r, [slot_of[read] for read in rows_read(parent, row)]] = True
        assert position_BR[b].tolist() == [length_B[b] + depth(parent, node) + mask for node, mask in rows]
    np.testing.assert_array_equal(can_attend_BRS, expected)
    assert not np.any(is_visible_BRR[:, :N, N:]), "a node reads a mask"
    assert np.all(np.diagonal(is_visible_BRR, axis1=1, axis2=2)), "a row does not read itself"


@st.composite
def drafted(draw):
    """A tree with its tokens, and what the model itself puts after each node: one text has one next token.

    There are so few tokens that siblings often hold the same, and many nodes draft nothing.
    """
    parent = draw(trees())
    token = draw(st.lists(st.integers(NO_TOKEN, 2), min_size=N, max_size=N))
    next_after = {}
    for node, drawn in enumerate(draw(st.lists(st.integers(0, 2), min_size=N, max_size=N))):
        next_after.setdefault(tuple(token[i] for i in path(parent, node)), drawn)
    at_other_depths = draw(st.integers(0, 2))
    return parent, token, next_after, at_other_depths


def walked(parent, token, next_after):
    """Nodes and tokens of the walk: over a dict of children, of equal siblings the one listed first."""
    child_of = {}
    for node in range(1, N):
        child_of.setdefault((parent[node], token[node]), node)
    nodes, tokens = [0], []
    while True:
        tokens.append(next_after[tuple(token[i] for i in path(parent, nodes[-1]))])
        if (nodes[-1], tokens[-1]) not in child_of:
            return nodes, tokens
        nodes.append(child_of[nodes[-1], tokens[-1]])


def plainly_decoded(token, next_after, count):
    """Plain decoding: the text alone decides, no tree."""
    text = token[:1]
    for _ in range(count):
        text.append(next_after[tuple(text)])
    return text[1:]


@jax.jit
def _walk(tree, own_BND):
    row_B = jnp.arange(B)
    return walk(tree, lambda node_B, depth, chosen_BD: own_BND[row_B, node_B, depth], max_depth=MAX_DEPTH)


_follow = jax.jit(functools.partial(follow, max_depth=MAX_DEPTH))


@several(max_examples=300)
@given(rows_of(drafted()))
def test_the_walk_accepts_what_plain_decoding_gives(drafted_B):
    own_BND = np.zeros((B, N, MAX_DEPTH + 1), np.int32)
    for b, (parent, token, next_after, at_other_depths) in enumerate(drafted_B):
        own_BND[b] = at_other_depths  # a draw depends on the position: a wrong depth gives another token
        for node in range(N):
            text = tuple(token[i] for i in path(parent, node))
            own_BND[b, node, depth(parent, node)] = next_after[text]
    tree = make_tree(
        [token for _, token, _, _ in drafted_B],
        [parent for parent, *_ in drafted_B],
        [[depth(parent, node) for node in range(N)] for parent, *_ in drafted_B],
    )
    accepted = _walk(tree, own_BND)
    places = [[depth(parent, node) for node in range(N)] for parent, *_ in drafted_B]
    own_BN = np.take_along_axis(own_BND, np.asarray(places)[..., None], axis=2)[..., 0]
    chex.assert_trees_all_equal(_follow(tree, own_BN), accepted)
    for b, (parent, token, next_after, _) in enumerate(drafted_B):
        nodes, tokens = walked(parent, token, next_after)
        count = int(accepted.num_accepted_B[b])
        assert count == len(nodes) - 1
        got_nodes, got_tokens = accepted.node_BP[b].tolist(), accepted.token_BP[b].tolist()
        assert got_nodes == nodes + nodes[-1:] * (MAX_DEPTH - count)
        assert got_tokens == tokens + tokens[-1:] * (MAX_DEPTH - count)
        assert got_tokens[: count + 1] == plainly_decoded(token, next_after, count + 1)  # at least one
        assert NO_TOKEN not in got_tokens


def smallest_bucket(*sizes):
    """The first of 64, 128, 256, ... that holds them all."""
    holds = 64
    while holds < max(sizes):
        holds *= 2
    return holds


@several(max_examples=300)
@given(
    st.one_of(st.integers(1, 2**21), st.builds(lambda n, i: max(1, 2**n + i), st.integers(0, 40), st.integers(-1, 1)))
)
def test_a_bucket_is_the_smallest_that_holds(size):
    assert bucket(size) == smallest_bucket(size)
    assert bucket(size) <= bucket(size + 1)


CONTEXT = 300  # no power of two: buckets may be larger than the context
EDGES_OF_SIZE = [near + i for near in (64, 128, 256, CONTEXT) for i in (-2, -1, 0, 1, 2)]
sizes = st.sampled_from(EDGES_OF_SIZE) | st.integers(0, CONTEXT + 1)
few = st.integers(1, 4) | sizes


@st.composite
def batches(draw):
    """Prompt lengths, new tokens, capacity, columns, rows: what is given is often just enough or just too little."""

    def none_or_near(*values):
        return draw(st.none() | sizes | st.builds(sum, st.tuples(st.sampled_from(values), st.integers(-1, 2))))

    lengths, new = draw(st.lists(few, min_size=1, max_size=3)), draw(few)
    capacity = none_or_near(max(lengths) + new)
    return lengths, new, capacity, none_or_near(max(lengths), capacity or 0), draw(st.none() | st.integers(0, 5))


@several(max_examples=600)
@given(batches())
def test_a_batch_is_laid_out_with_the_room_it_needs_or_refused(batch):
    lengths, new, capacity, prompt_slots, rows = batch
    longest, needed = max(lengths), max(lengths) + new - 1  # the last token has no slot: nothing reads it
    is_refused = (
        new < 1
        or 0 in lengths
        or longest + new > CONTEXT
        or (rows is not None and rows < len(lengths))
        or (capacity is not None and not needed <= capacity <= CONTEXT)
        or (prompt_slots is not None and not longest <= prompt_slots <= CONTEXT + 1)
        or (capacity is not None and prompt_slots is not None and prompt_slots > capacity + 1)
    )
    prompts = [[1 + i % 60 for i in range(length)] for length in lengths]
    cfg = dataclasses.replace(BASE, context_length=CONTEXT)
    ask = functools.partial(batch_of, cfg, Plain(), prompts, eos_token_ids=[2])
    room = {"max_new_tokens": new, "capacity": capacity, "prompt_slots": prompt_slots, "rows": rows}
    if is_refused:
        with pytest.raises(ValueError, match=r"\A[^\n]+\.\Z"):
            ask(**room)
        return
    laid_out = ask(**room)
    prompt_BT, request, capacity_given = laid_out.prompt_BT, laid_out.request, laid_out.config.capacity
    num_rows, num_columns = prompt_BT.shape
    assert num_rows == (rows or len(prompts))
    bucket = min(smallest_bucket(needed, (prompt_slots or 1) - 1), CONTEXT)
    assert capacity_given == (bucket if capacity is None else capacity)
    assert num_columns == (prompt_slots or min(smallest_bucket(longest), capacity_given + 1))
    assert longest <= num_columns <= capacity_given + 1
    idle = num_rows - len(prompts)
    assert prompt_BT.tolist() == [prompt + [0] * (num_columns - len(prompt)) for prompt in prompts + [[]] * idle]
    assert request.prompt_length_B.tolist() == lengths + [1] * idle
    assert request.max_new_tokens_B.tolist() == [new] * len(prompts) + [0] * idle
