import jax.numpy as jnp
import numpy as np

from jax_probe_mtp.decoding.verify import walk
from jax_probe_mtp.drafting import DynamicProbe, Probe
from jax_probe_mtp.drafting import probe as source
from jax_probe_mtp.drafting.candidates import NO_TOKEN, build_tree

ROOT = 7


NO_MASKS = jnp.zeros((1, 0, 4))


def asked(*masks):
    """One row's state after its masks proposed {token: probability} each, best first."""
    return source.ProbeState(
        masks_BMD=NO_MASKS,
        id_BMC=jnp.asarray([[list(mask) for mask in masks]], jnp.int32),
        score_BMC=jnp.log(jnp.asarray([[list(mask.values()) for mask in masks]], jnp.float32)),
    )


def nodes(tree):
    return list(zip(*(np.asarray(x)[0].tolist() for x in (tree.token_BN, tree.parent_BN, tree.depth_BN)), strict=True))


def tree_of(probe, *masks):
    root = jnp.asarray([ROOT])
    return nodes(build_tree(root, source.propose(root, asked(*masks), probe), probe.num_nodes))


def test_static_tree_hangs_each_depth_under_the_best_of_the_one_above():
    probe = Probe(widths=(2, 3, 1), prune=False)
    drawn = tree_of(probe, {1: 0.5, 2: 0.2, 3: 0.1}, {4: 0.4, 5: 0.3, 6: 0.2}, {8: 0.9, 9: 0.05, 1: 0.01})
    assert drawn == [(7, -1, 0), (1, 0, 1), (2, 0, 1), (4, 1, 2), (5, 1, 2), (6, 1, 2), (8, 3, 3)]


def test_pruning_replaces_a_child_equal_to_its_parent_by_the_next_best():
    probe = Probe(widths=(2, 2))
    # depth 1: the root's token 7 goes. depth 2: its parent is now 3, so 3 goes, and 7 may stay.
    drawn = tree_of(probe, {7: 0.5, 3: 0.2, 4: 0.1}, {7: 0.4, 3: 0.3, 5: 0.2})
    assert drawn == [(7, -1, 0), (3, 0, 1), (4, 0, 1), (7, 1, 2), (5, 1, 2)]
    kept = tree_of(Probe(widths=(2, 2), prune=False), {7: 0.5, 3: 0.2, 4: 0.1}, {7: 0.4, 3: 0.3, 5: 0.2})
    assert kept == [(7, -1, 0), (7, 0, 1), (3, 0, 1), (7, 1, 2), (3, 1, 2)]


def test_dynamic_tree_keeps_the_best_products():
    # BC 15, k = 2: 4 drafts from pools of 4 and 3. Depth-2 products: 0.5 * (0.6, 0.3, 0.02) = 0.30, 0.15, 0.01.
    probe = DynamicProbe(rows=15, num_masks=2, prune=False)
    drawn = tree_of(probe, {1: 0.5, 2: 0.2, 3: 0.1, 4: 0.05}, {5: 0.6, 6: 0.3, 8: 0.02, 9: 0.01})
    assert drawn == [(7, -1, 0), (1, 0, 1), (5, 1, 2), (2, 0, 1), (6, 1, 2)]


def test_dynamic_ties_go_to_the_smaller_depth_then_the_better_rank():
    # 1 -> 5 has the product 0.25 of 2 and 3; probabilities are powers of two, so the scores are equal to the bit.
    probe = DynamicProbe(rows=12, num_masks=2, prune=False)
    drawn = tree_of(probe, {1: 0.5, 2: 0.25, 3: 0.25}, {5: 0.5, 6: 0.25, 8: 0.125})
    assert drawn == [(7, -1, 0), (1, 0, 1), (2, 0, 1), (3, 0, 1)]


def test_dynamic_chain_to_full_depth():
    probe = DynamicProbe(rows=16, num_masks=3, prune=False)
    drawn = tree_of(probe, {1: 0.9, 2: 0.05, 3: 0.01}, {4: 0.9, 5: 0.05, 6: 0.01}, {8: 0.9, 9: 0.05, 2: 0.01})
    assert drawn == [(7, -1, 0), (1, 0, 1), (4, 1, 2), (8, 2, 3)]


def test_masks_that_were_not_asked_yet_draft_nothing():
    for probe in (Probe(widths=(3, 2)), DynamicProbe(rows=24, num_masks=2)):
        root = jnp.asarray([ROOT])
        state = source.start(jnp.zeros((1, probe.masks_per_node, 4)), probe)
        tree = build_tree(root, source.propose(root, state, probe), probe.num_nodes)
        assert np.asarray(tree.token_BN)[0].tolist() == [ROOT] + [NO_TOKEN] * (probe.num_nodes - 1)
        accepted = walk(tree, lambda node_B, depth: jnp.asarray([5]), max_depth=2)
        assert accepted.num_accepted_B.tolist() == [0]


def test_masks_propose_the_best_logits_with_their_probabilities():
    logits = jnp.asarray([[[0.0, 2.0, 1.0, 2.0], [3.0, 0.0, 1.0, 2.0]]])
    probe = DynamicProbe(rows=9, num_masks=2, prune=True)
    got = source.read_masks(logits, asked({}, {}), jnp.asarray([5]), None, probe)
    assert got.id_BMC.tolist() == [[[1, 3, 2], [0, 3, 2]]]  # equal logits: the lower id first
    row = np.exp([0.0, 2.0, 1.0, 2.0])
    np.testing.assert_allclose(np.exp(got.score_BMC[0, 0]), row[[1, 3, 2]] / row.sum(), rtol=1e-6)
