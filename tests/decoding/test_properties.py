"""Random trees, masks, walks, batches and vocabularies against slower definitions: few shapes, many drawn values."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import BASE
from hypothesis import given, settings
from hypothesis import strategies as st
from support.batches import batch_of

from jax_probe_mtp.decoding.batch import bucket
from jax_probe_mtp.decoding.block import block_can_attend, block_layout, block_positions, block_visible
from jax_probe_mtp.decoding.verify import walk
from jax_probe_mtp.drafting import Plain, top_k
from jax_probe_mtp.drafting.candidates import NO_TOKEN, Candidates, build_tree
from jax_probe_mtp.drafting.top_k import BLOCK
from jax_probe_mtp.drafting.tree import NO_PARENT, Tree, ancestors_or_self

several = functools.partial(settings, derandomize=True, deadline=None)

N, MAX_DEPTH, B = 8, 4, 2  # of every drawn tree and batch of them


@st.composite
def trees(draw, num_nodes=N):
    """The parent of each node, parents before their children; no node is deeper than `MAX_DEPTH`."""
    parent = [NO_PARENT]
    while len(parent) < num_nodes:
        parent.append(draw(st.sampled_from([node for node in range(len(parent)) if depth(parent, node) < MAX_DEPTH])))
    return parent


def path(parent, node):
    """The nodes from the root to `node`, both included."""
    return [] if node == NO_PARENT else [*path(parent, parent[node]), node]


def depth(parent, node):
    return len(path(parent, node)) - 1


def batch_of(strategy):
    return st.lists(strategy, min_size=B, max_size=B)


_ancestors = jax.jit(ancestors_or_self, static_argnames="max_depth")


@several(max_examples=150)
@given(batch_of(trees()))
def test_ancestors_are_what_walking_to_the_root_meets(parent_BN):
    expected = np.zeros((B, N, N), bool)
    for row, parent in enumerate(parent_BN):
        for node in range(N):
            expected[row, node, path(parent, node)] = True
    np.testing.assert_array_equal(_ancestors(np.int32(parent_BN), max_depth=MAX_DEPTH), expected)


P = 12  # candidates of a row
STEPS = [0.0, -0.25, -0.5, -1.0, -np.inf]  # few, and sums of them exact: equal scores everywhere


@st.composite
def proposals(draw):
    """Candidates of one row: (token, parent, depth, score) each, parents first, no score above the parent's."""
    parent_of_node = draw(trees(P + 1))
    steps = draw(st.lists(st.sampled_from(STEPS), min_size=P, max_size=P))
    tokens = draw(st.lists(st.integers(NO_TOKEN, 9), min_size=P, max_size=P))
    listed = []
    for node, token, step in zip(range(1, P + 1), tokens, steps, strict=True):
        parent = parent_of_node[node] - 1 if parent_of_node[node] else NO_PARENT  # candidate c would be node c + 1
        above = 0.0 if parent == NO_PARENT else listed[parent][3]
        listed.append((token, parent, depth(parent_of_node, node), above + step))
    return listed


def grown(root, listed, num_nodes):
    """The tree, one node at a time: the best candidate whose parent is in it, of equal ones the one listed first.

    No other can be better: what hangs under a candidate scores no more than it and comes later. All candidates together
    stay in their order.
    """
    has_all = num_nodes - 1 == len(listed)
    nodes, node_of = [(root, NO_PARENT, 0)], {NO_PARENT: 0}
    while len(nodes) < num_nodes:
        within_reach = [c for c, (_, parent, _, _) in enumerate(listed) if parent in node_of and c not in node_of]
        best = min(within_reach, key=lambda c: (0 if has_all else -listed[c][3], c))
        token, parent, _, _ = listed[best]
        node_of[best] = len(nodes)
        nodes.append((token, node_of[parent], nodes[node_of[parent]][2] + 1))
    return nodes


_build = jax.jit(build_tree, static_argnames="num_nodes")


@several(max_examples=250)
@given(batch_of(proposals()), st.sampled_from([2, 5, N, P + 1]))
def test_a_tree_is_the_best_candidates_with_all_that_is_above_them(listed_BP, num_nodes):
    token_BP, parent_BP, depth_BP, score_BP = (
        np.asarray([[each[field] for each in listed] for listed in listed_BP]) for field in range(4)
    )
    candidates = Candidates(
        token_BP=np.int32(token_BP),
        parent_BP=np.int32(parent_BP),
        depth_BP=np.int32(depth_BP),
        score_BP=np.float32(score_BP),
    )
    root_B = np.arange(100, 100 + B, dtype=np.int32)
    tree = _build(root_B, candidates, num_nodes=num_nodes)
    for row, listed in enumerate(listed_BP):
        got = [
            (int(tree.token_BN[row, i]), int(tree.parent_BN[row, i]), int(tree.depth_BN[row, i]))
            for i in range(num_nodes)
        ]
        assert got == grown(int(root_B[row]), listed, num_nodes)


CAPACITY, BEHIND = 5, 2  # slots of the committed prefix in front of the block, slots behind it


@functools.partial(jax.jit, static_argnames="num_masks")
def _block(parent_BN, depth_BN, length_B, num_masks):
    is_visible_BRR = block_visible(ancestors_or_self(parent_BN, max_depth=MAX_DEPTH), num_masks)
    num_slots = CAPACITY + is_visible_BRR.shape[1] + BEHIND
    can_attend_BRS = block_can_attend(is_visible_BRR, length_B, CAPACITY, num_slots)
    return is_visible_BRR, can_attend_BRS, block_positions(depth_BN, length_B, num_masks)


def block_rows(num_masks):
    """(owner, mask) of each row, mask 0 for the node itself: all nodes, then the masks of each."""
    return [(node, 0) for node in range(N)] + [(node, i + 1) for node in range(N) for i in range(num_masks)]


def rows_read(parent, row):
    """The rows of its block that a row reads: its owner's masks up to it, its owner, all that walking up meets."""
    node, mask = row
    read = [(node, i) for i in range(mask + 1)]
    while (node := parent[node]) != NO_PARENT:
        read.append((node, 0))
    return read


@several(max_examples=120)
@given(batch_of(trees()), batch_of(st.integers(0, CAPACITY)), st.integers(0, 3))
def test_a_row_of_a_block_reads_the_prefix_its_path_and_its_owners_masks(parent_BN, length_B, num_masks):
    depth_BN = [[depth(parent, node) for node in range(N)] for parent in parent_BN]
    block = _block(np.int32(parent_BN), np.int32(depth_BN), np.int32(length_B), num_masks)
    is_visible_BRR, can_attend_BRS, position_BR = map(np.asarray, block)
    rows = block_rows(num_masks)
    owner_R, index_R = block_layout(N, num_masks)
    assert list(zip(owner_R.tolist(), index_R.tolist(), strict=True)) == rows
    slot_of = {row: CAPACITY + i for i, row in enumerate(rows)}
    expected = np.zeros(can_attend_BRS.shape, bool)
    for b, parent in enumerate(parent_BN):
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
    return walk(tree, lambda node_B, depth: own_BND[row_B, node_B, depth], max_depth=MAX_DEPTH)


@several(max_examples=300)
@given(batch_of(drafted()))
def test_the_walk_accepts_what_plain_decoding_gives(drafted_B):
    own_BND = np.zeros((B, N, MAX_DEPTH + 1), np.int32)
    for b, (parent, token, next_after, at_other_depths) in enumerate(drafted_B):
        own_BND[b] = at_other_depths  # a draw depends on the position: a wrong depth gives another token
        for node in range(N):
            text = tuple(token[i] for i in path(parent, node))
            own_BND[b, node, depth(parent, node)] = next_after[text]
    tree = Tree(
        token_BN=np.int32([token for _, token, _, _ in drafted_B]),
        parent_BN=np.int32([parent for parent, *_ in drafted_B]),
        depth_BN=np.int32([[depth(parent, node) for node in range(N)] for parent, *_ in drafted_B]),
    )
    accepted = _walk(tree, own_BND)
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
    ask = functools.partial(
        make_request, dataclasses.replace(BASE, context_length=CONTEXT), Plain(), prompts, eos_token_ids=[2]
    )
    room = {"max_new_tokens": new, "capacity": capacity, "prompt_slots": prompt_slots, "rows": rows}
    if is_refused:
        with pytest.raises(ValueError, match=r"\A[^\n]+\.\Z"):
            ask(**room)
        return
    prompt_BT, request, decode_cfg = ask(**room)
    num_rows, num_columns = prompt_BT.shape
    assert num_rows == (rows or len(prompts))
    bucket = min(smallest_bucket(needed, (prompt_slots or 1) - 1), CONTEXT)
    assert decode_cfg.capacity == (bucket if capacity is None else capacity)
    assert num_columns == (prompt_slots or min(smallest_bucket(longest), decode_cfg.capacity + 1))
    assert longest <= num_columns <= decode_cfg.capacity + 1
    idle = num_rows - len(prompts)
    assert prompt_BT.tolist() == [prompt + [0] * (num_columns - len(prompt)) for prompt in prompts + [[]] * idle]
    assert request.prompt_length_B.tolist() == lengths + [1] * idle
    assert request.max_new_tokens_B.tolist() == [new] * len(prompts) + [0] * idle


V = 12 * BLOCK + 5
LEVELS = np.float32([-np.inf, np.finfo(np.float32).min, -0.0, 0.0, np.inf])  # -inf is less than the least number
SMALL = top_k.COUNTED_BLOCK
EDGES = [0, 1, SMALL - 1, SMALL, BLOCK - 1, BLOCK, 11 * BLOCK, 12 * BLOCK - 1, 12 * BLOCK, V - 1]


@st.composite
def plains(draw):
    """A vocabulary of few levels, with runs of one level over it: ties within blocks, across and behind them."""
    levels = st.sampled_from(draw(st.lists(st.sampled_from(LEVELS), min_size=2, max_size=3, unique_by=repr)))
    values = np.random.default_rng(draw(st.integers(0, 999))).choice(draw(st.lists(levels, min_size=1, max_size=2)), V)
    ids, lengths = st.sampled_from(EDGES) | st.integers(0, V - 1), st.sampled_from([1, 1, 2, 7, 200])
    for first, length, level in draw(st.lists(st.tuples(ids, lengths, levels), max_size=8)):
        values[first : first + length] = level
    return values


def best_by_sorting(values, k):
    """Two stable sorts: 0 before -0, as `jax.lax.top_k` has it, then by value; of equal ones the lower id first."""
    by_sign = np.argsort(np.signbit(values), kind="stable")
    return by_sign[np.argsort(-values[by_sign], kind="stable")][:k]


_BEST = {way: jax.jit(way, static_argnums=1) for way in (top_k._by_blocks, top_k._by_counting)}


@pytest.mark.parametrize("way", _BEST, ids=lambda way: way.__name__)
@several(max_examples=250)
@given(values_BV=batch_of(plains()), k=st.sampled_from([1, 5, 12]))
def test_the_best_k_are_those_of_a_stable_sort(way, values_BV, k):
    values_Bk, id_Bk = map(np.asarray, _BEST[way](np.stack(values_BV), k))
    for values, got, ids in zip(values_BV, values_Bk, id_Bk, strict=True):
        assert ids.tolist() == best_by_sorting(values, k).tolist()
        assert got.tobytes() == values[ids].tobytes()  # the sign of a zero too
