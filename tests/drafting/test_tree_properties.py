"""Ancestors and trees against definitions that build one node at a time: few shapes, many drawn values."""

import jax
import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from support.drafting.drawn_trees import MAX_DEPTH, NO_PARENT, B, N, depth, path, rows_of, several, trees

from jax_probe_mtp.drafting.candidates import NO_TOKEN, Candidates
from jax_probe_mtp.drafting.tree import ancestors_or_self, build_tree

_ancestors = jax.jit(ancestors_or_self, static_argnames="max_depth")


@several(max_examples=150)
@given(rows_of(trees()))
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
    nodes, node_of = [(root, NO_PARENT, 0, 0.0, 0)], {NO_PARENT: 0}
    while len(nodes) < num_nodes:
        within_reach = [c for c, (_, parent, _, _) in enumerate(listed) if parent in node_of and c not in node_of]
        best = min(within_reach, key=lambda c: (0 if has_all else -listed[c][3], c))
        token, parent, _, score = listed[best]
        node_of[best] = len(nodes)
        nodes.append((token, node_of[parent], nodes[node_of[parent]][2] + 1, score, best))
    return nodes


_build = jax.jit(build_tree, static_argnames="num_nodes")


@several(max_examples=250)
@given(rows_of(proposals()), st.sampled_from([2, 5, N, P + 1]))
def test_a_tree_is_the_best_candidates_with_all_that_is_above_them(listed_BP, num_nodes):
    token_BP, parent_BP, depth_BP, score_BP = (
        np.asarray([[each[field] for each in listed] for listed in listed_BP]) for field in range(4)
    )
    candidates = Candidates(
        token_BP=np.int32(token_BP),
        parent_BP=np.int32(parent_BP),
        depth_BP=np.int32(depth_BP),
        score_BP=np.float32(score_BP),
        kind_BP=np.int32([range(P)] * B),  # which candidate became a node
    )
    root_B = np.arange(100, 100 + B, dtype=np.int32)
    tree = _build(root_B, candidates, num_nodes=num_nodes)
    for row, listed in enumerate(listed_BP):
        columns = (tree.token_BN, tree.parent_BN, tree.depth_BN, tree.score_BN, tree.kind_BN)
        got = list(zip(*(values[row].tolist() for values in columns), strict=True))
        assert got == grown(int(root_B[row]), listed, num_nodes)
