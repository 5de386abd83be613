"""The table of successors and the trees that it gives: by hand, and against dicts and a search with a heap."""

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from conftest import BASE
from support.drafting.tables import assert_same_dict, dicts
from support.drafting.trees import make_tree, nodes_of

from jax_probe_mtp.drafting import Recycle
from jax_probe_mtp.drafting.candidates import NO_TOKEN, Paths
from jax_probe_mtp.drafting.recycle import Table, empty_table, harvest
from jax_probe_mtp.drafting.shown import FinishedCall, Model, Text
from jax_probe_mtp.drafting.source import SourceState
from jax_probe_mtp.drafting.successors import NUM_SUCCESSORS, best_successors
from jax_probe_mtp.drafting.tree import build_tree
from jax_probe_mtp.model.logits import Logits
from jax_probe_mtp.model.sampling import Sampling

V, C = 48, NUM_SUCCESSORS
DECOY = 40  # V - C tokens before it: the successors that a table by hand leaves out


@jax.jit
def jit_harvest(table, token_BR, is_used_BR, logits_BRV):
    return harvest(table, token_BR, is_used_BR, *best_successors(Logits.of(logits_BRV), None))


def state_of(table, source):
    return SourceState(shared=table) if source.warm else SourceState(rows=table)


@functools.partial(jax.jit, static_argnames="source")
def jit_tree(table, root_B, source):
    text = Text(token_BT=root_B[:, None], root_position_B=jnp.zeros_like(root_B))
    return build_tree(root_B, source.propose(state_of(table, source), text), source.num_nodes)


def table_of(*by_hand):
    """Tables from {token: {successor: log-probability, best first}}; decoys that are never good follow to make eight."""
    table = empty_table(len(by_hand), V)
    id_YVC, score_YVC = np.array(table.id_YVC), np.array(table.score_YVC)
    for e, rows in enumerate(by_hand):
        for token, known in rows.items():
            decoys = range(DECOY, DECOY + C - len(known))
            id_YVC[e, token] = [*known, *decoys]
            score_YVC[e, token] = [*known.values(), *(-100.0 - rank for rank in range(len(decoys)))]
    return Table(id_YVC=jnp.asarray(id_YVC), score_YVC=jnp.asarray(score_YVC))


def tree_by_hand(known, root, size):
    """The tree of one root and its nodes that hold a token, which come first."""
    [nodes] = nodes_of(jit_tree(table_of(known), np.asarray([root]), Recycle(tree=size)))
    assert len(nodes) == size
    held = [node for node in nodes if node[0] != NO_TOKEN]
    assert nodes[: len(held)] == held
    return held


def test_a_token_keeps_the_eight_best_with_their_log_probabilities():
    logits = np.asarray(
        [[0.5, 2.0, 0.0, 2.0, 7.0, -1.0, 0.5, 3.0, 0.25, 0.5, 0.5]], np.float32
    )  # equal: lower id first
    table = empty_table(1, 11)
    [got] = dicts(jit_harvest(table, np.asarray([[5]]), np.asarray([[True]]), logits[None]))
    best = [4, 7, 1, 3, 0, 6, 9, 10]
    assert [child for child, _ in got.pop(5)] == best
    assert not got
    score_C = jit_harvest(table, np.asarray([[5]]), np.asarray([[True]]), logits[None]).score_YVC[0, 5]
    np.testing.assert_allclose(np.exp(score_C), np.exp(logits[0, best]) / np.exp(logits[0]).sum(), rtol=1e-5)


def logits_with_best(best_BR, size):
    """Logits whose best token is the one given, then come the tokens after it in turn."""
    distance_BRV = (np.arange(size) - np.asarray(best_BR)[..., None]) % size
    return -distance_BRV.astype(np.float32)


@pytest.mark.parametrize("is_warm", [False, True])
def test_of_a_token_that_is_there_twice_the_last_one_stays(is_warm):
    table = empty_table(1 if is_warm else 2, 16)
    token_BR = np.asarray([[4, 5, 4, 6], [5, 7, 8, 7]])
    is_used_BR = np.asarray([[True, True, True, False], [True, True, True, False]])
    table = jit_harvest(table, token_BR, is_used_BR, logits_with_best([[0, 1, 2, 3], [10, 11, 12, 13]], 16))
    best = [{token: known[0][0] for token, known in rows.items()} for rows in dicts(table)]
    cold = [{4: 2, 5: 1}, {5: 10, 7: 11, 8: 12}]  # the unused rows would have written 6 -> 3 and 7 -> 13
    assert best == ([cold[0] | cold[1]] if is_warm else cold)
    # A later call writes over what it has again, and leaves the rest.
    table = jit_harvest(table, token_BR[::-1], is_used_BR, logits_with_best([[1, 2, 3, 4], [11, 12, 13, 14]], 16))
    best = [{token: known[0][0] for token, known in rows.items()} for rows in dicts(table)]
    cold = [{4: 2, 5: 1, 7: 2, 8: 3}, {4: 13, 5: 12, 7: 11, 8: 12}]
    assert best == ([{4: 13, 5: 12, 7: 2, 8: 3}] if is_warm else [cold[0] | {5: 1}, cold[1]])


@pytest.mark.parametrize("is_warm", [False, True])
def test_random_calls_leave_what_dicts_hold(is_warm):
    rng = np.random.default_rng(0)
    B, R, size = 3, 9, 12
    table = empty_table(1 if is_warm else B, size)
    expected = [{} for _ in range(1 if is_warm else B)]
    for _ in range(6):
        token_BR, is_used_BR = rng.integers(0, size, (B, R)), rng.random((B, R)) < 0.5
        token_BR[~is_used_BR & (rng.random((B, R)) < 0.5)] = NO_TOKEN
        logits_BRV = rng.normal(size=(B, R, size)).astype(np.float32)
        table = jit_harvest(table, token_BR, is_used_BR, logits_BRV)
        for b, r in np.argwhere(is_used_BR):
            expected[b % len(expected)][int(token_BR[b, r])] = reference.successors(np.float64(logits_BRV[b, r]))[0]
    for got, rows in zip(dicts(table), expected, strict=True):
        assert_same_dict(got, rows)


def test_a_call_writes_what_active_rows_nodes_saw_over_the_temperature():
    """Row 0 is active, at temperature 0.5; row 1 was done before the call; row 2 is greedy."""
    token_BN = np.asarray([[4, 5, NO_TOKEN], [6, 7, 8], [5, 9, NO_TOKEN]])
    logits_BNV = np.random.default_rng(1).normal(size=(3, 3, 16)).astype(np.float32)
    tree = make_tree(token_BN, [[-1, 0, 0]] * 3, [[0, 1, 1]] * 3)
    draw = Sampling(
        temperature_B=jnp.asarray([0.5, 0.5, 0.0]),
        top_k_B=jnp.full(3, 2),  # the cuts and the noise are no part of the table
        top_p_B=jnp.full(3, 0.1),
        seed_B=jnp.zeros(3, jnp.uint32),
    )
    call = FinishedCall(
        model=Model({}, BASE),
        tree=tree,
        logits=Logits.of(jnp.asarray(logits_BNV)),
        num_masks=0,
        owner_BO=None,
        node_BP=jnp.zeros((3, 3), jnp.int32),
        num_accepted_B=jnp.zeros(3, jnp.int32),
        new_token_BP=jnp.zeros((3, 3), jnp.int32),
        num_new_B=jnp.asarray([1, 0, 1]),
        root_position_B=jnp.zeros(3, jnp.int32),
        sampling=draw,
    )
    got = Recycle(tree=3, warm=True).learn(SourceState(shared=empty_table(1, 16)), call).shared
    logits = np.float64(logits_BNV)
    expected = {4: logits[0, 0] / 0.5, 5: logits[2, 0], 9: logits[2, 1]}
    assert_same_dict(dicts(got)[0], {token: reference.successors(row)[0] for token, row in expected.items()})


def test_the_best_paths_are_kept_best_first():
    known = {0: {1: -1, 2: -2, 3: -4}, 1: {4: -1, 5: -3}, 4: {6: -1}}  # 2 and others are unknown: nothing follows
    # 1 (-1), then at -2 the shallower first: 2, 1 4; 1 4 6 (-3); at -4: 3, 1 5.
    tree = [(0, -1, 0), (1, 0, 1), (2, 0, 1), (4, 1, 2), (6, 3, 3), (3, 0, 1), (5, 1, 2)]
    for size in range(2, 8):
        assert tree_by_hand(known, 0, size) == tree[:size]


def test_ties_of_one_depth_go_to_the_better_parent_then_to_the_better_rank():
    known = {0: {2: -1, 1: -2}, 1: {3: -2, 4: -2}, 2: {9: -3, 8: -3}}
    tree = [(0, -1, 0), (2, 0, 1), (1, 0, 1), (9, 1, 2), (8, 1, 2), (3, 2, 2), (4, 2, 2)]
    assert tree_by_hand(known, 0, 7) == tree
    assert tree_by_hand(known, 0, 6) == tree[:6]


def test_a_token_may_follow_itself():
    # 1 (-1); 2, 1 1 (-2); 1 2, 1 1 1 (-3)
    tree = [(1, -1, 0), (1, 0, 1), (2, 0, 1), (1, 1, 2), (2, 1, 2), (1, 3, 3)]
    assert tree_by_hand({1: {1: -1, 2: -2}}, 1, 6) == tree


def test_an_unknown_root_drafts_nothing():
    assert tree_by_hand({1: {2: -1}}, 0, 12) == [(0, -1, 0)]


def test_a_tree_that_the_table_does_not_fill_is_padded():
    children = dict.fromkeys(range(1, 9), -1.0)
    assert tree_by_hand({0: children}, 0, 12) == [(0, -1, 0), *((token, 0, 1) for token in range(1, 9))]


def test_eight_children_of_one_node_fill_a_tree():
    """The widest that a depth can be: what is above it is one path."""
    children = dict.fromkeys(range(11, 19), -1.0)
    for above in range(4):
        known = {token: {token + 1: -0.5} for token in range(above)} | {above: children}
        path = [(token, token - 1, token) for token in range(above + 1)]
        assert tree_by_hand(known, 0, above + 9) == [*path, *((token, above, above + 1) for token in children)]


def test_no_path_is_longer_than_six():
    known = {token: {token + 1: -0.125} for token in range(30)}
    path = [(token, token - 1, token) for token in range(7)]
    # Then the first decoys of the root, of 1 and of 2: -100, -100.125, -100.25.
    assert tree_by_hand(known, 0, 10) == [*path, (DECOY, 0, 1), (DECOY, 1, 2), (DECOY, 2, 3)]
    assert tree_by_hand(known, 0, 5) == path[:5]


def random_table(E, unknown, seed):
    """Scores are few and exact in binary, so that ties are many and no sum is rounded."""
    rng = np.random.default_rng(seed)
    id_YVC = np.argsort(rng.random((E, V, V)), axis=-1)[..., :C].astype(np.int32)
    score_YVC = -np.sort(rng.integers(0, 24, (E, V, C)), axis=-1).astype(np.float32) / 8
    is_unknown_EV = rng.random((E, V)) < unknown
    id_YVC[is_unknown_EV], score_YVC[is_unknown_EV] = NO_TOKEN, -np.inf
    return Table(id_YVC=jnp.asarray(id_YVC), score_YVC=jnp.asarray(score_YVC))


@pytest.mark.parametrize("is_warm", [False, True])
@pytest.mark.parametrize(("size", "unknown"), [(2, 0.1), (5, 0.3), (12, 0.1), (60, 0.5)])
def test_random_tables_give_the_trees_of_a_search_with_a_heap(size, unknown, is_warm):
    B = 40
    table = random_table(1 if is_warm else B, unknown, seed=size)
    root_B = np.arange(B) % V
    cfg = Recycle(tree=size, warm=is_warm)
    tree = jit_tree(table, root_B, cfg)
    known, padded = dicts(table), 0
    for b, nodes in enumerate(nodes_of(tree)):
        expected, _ = reference.best_first_tree(
            root_B[b], known[b % len(known)], num_nodes=size, max_depth=cfg.max_depth
        )
        assert nodes[: len(expected)] == expected
        assert [token for token, _, _ in nodes[len(expected) :]] == [NO_TOKEN] * (size - len(expected))
        padded += len(expected) < size
        for i, (token, parent, depth) in enumerate(nodes[1:], start=1):  # padding too: the masks of a call need it
            assert 0 <= parent < i
            assert depth == nodes[parent][2] + 1
            above = nodes[parent][0]
            assert token == NO_TOKEN or token in [child for child, _ in known[b % len(known)][above]]
    assert 0 < padded < B


def test_the_static_tree_follows_its_80_paths():
    """Each path has a token of its own; what hangs elsewhere in the table is never to be seen."""
    paths = reference.STATIC80
    assert len(set(paths)) == 80
    assert [sum(len(path) == depth for path in paths) for depth in range(1, 7)] == [8, 21, 25, 15, 8, 3]
    number = {path: i for i, path in enumerate([(), *paths])}
    id_YVC = np.full((1, 100, C), 99, np.int32)
    for path, rank in itertools.product(number, range(C)):
        id_YVC[0, number[path], rank] = number.get((*path, rank), 99)
    table = Table(id_YVC=jnp.asarray(id_YVC), score_YVC=jnp.zeros((1, 100, C)))
    [nodes] = nodes_of(jit_tree(table, np.asarray([0]), Recycle(tree="static80")))
    assert nodes == [(0, -1, 0), *((number[path], number[path[:-1]], len(path)) for path in paths)]


def test_static_trees_stop_where_the_table_knows_nothing():
    table = random_table(40, 0.3, seed=7)
    root_B = np.arange(40) % V
    trees = nodes_of(jit_tree(table, root_B, Recycle(tree="static80")))
    assert trees == [reference.static80_tree(root, known) for root, known in zip(root_B, dicts(table), strict=True)]


def path_scores(known, nodes):
    """The log-probability of each node's path, going up; -inf of what holds no token."""
    scores = []
    for token, parent, _ in nodes:
        if parent == -1:
            scores.append(0.0)
        elif token == NO_TOKEN:
            scores.append(-np.inf)
        else:
            scores.append(scores[parent] + dict(known[nodes[parent][0]])[token])
    return scores


@pytest.mark.parametrize("tree", [12, "static80"])
def test_a_score_is_the_log_probability_of_the_path(tree):
    table = random_table(40, 0.3, seed=3)
    root_B = np.arange(40) % V
    got = jit_tree(table, root_B, Recycle(tree=tree))
    for nodes, known, score_N in zip(nodes_of(got), dicts(table), np.asarray(got.score_BN), strict=True):
        np.testing.assert_allclose(score_N, path_scores(known, nodes), rtol=1e-5)
    assert np.isfinite(got.score_BN).mean() > 0.3


def test_any_node_has_the_children_of_its_token():
    source, known = Recycle(), {0: {3: -1, 5: -2}, 3: {1: -0.5}}
    text = Text(token_BT=jnp.asarray([[0]]), root_position_B=jnp.asarray([0]))
    state = SourceState(rows=table_of(known))
    of_level = source.children(state, text, Paths(token_BWL=jnp.asarray([[[0, 3], [0, 9], [0, NO_TOKEN]]])))
    assert of_level.token_BWC[0, 0, :2].tolist() == [1, DECOY]
    np.testing.assert_allclose(of_level.feature_BWCf[0, 0, :2, 0], [-0.5, -100])
    assert np.all(of_level.token_BWC[0, 1:] == NO_TOKEN)  # 9 is unknown
