import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
from conftest import BASE
from support.drafting.trees import make_tree, nodes_of

from jax_probe_mtp.decoding.verify import walk
from jax_probe_mtp.drafting import DynamicProbe, Probe
from jax_probe_mtp.drafting.candidates import NO_PARENT, NO_TOKEN, Paths
from jax_probe_mtp.drafting.mask_probe import ProbeRows
from jax_probe_mtp.drafting.shown import FinishedCall, Model, Prompts, Text
from jax_probe_mtp.drafting.source import SourceState
from jax_probe_mtp.drafting.tree import build_tree
from jax_probe_mtp.model.logits import Logits

ROOT = 7
TEXT = Text(token_BT=jnp.asarray([[ROOT]]), root_position_B=jnp.asarray([0]))


def asked(*masks):
    """One row's state after its masks proposed {token: probability} each, best first."""
    rows = ProbeRows(
        masks_BMD=jnp.zeros((1, len(masks), 4)),
        ema_B=jnp.zeros(1),
        id_BMC=jnp.asarray([[list(mask) for mask in masks]], jnp.int32),
        score_BMC=jnp.log(jnp.asarray([[list(mask.values()) for mask in masks]], jnp.float32)),
    )
    return SourceState(rows=rows)


def tree_of(probe, *masks):
    candidates = probe.propose(asked(*masks), TEXT)
    return nodes_of(build_tree(TEXT.root_B, candidates, probe.num_nodes))[0]


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
    small = dataclasses.replace(BASE, width=4)
    model = Model({"embed": jnp.ones((61, 4))}, small)
    prompts = Prompts(token_BT=TEXT.token_BT, length_B=jnp.asarray([1]), seed_B=jnp.zeros(1, jnp.uint32), capacity=8)
    for probe in (Probe(widths=(3, 2)), DynamicProbe(rows=24, num_masks=2)):
        tree = build_tree(TEXT.root_B, probe.propose(probe.start(model, prompts, ()), TEXT), probe.num_nodes)
        assert np.asarray(tree.token_BN)[0].tolist() == [ROOT] + [NO_TOKEN] * (probe.num_nodes - 1)
        accepted = walk(tree, lambda node_B, depth, chosen_BD: jnp.asarray([5]), max_depth=2)
        assert accepted.num_accepted_B.tolist() == [0]


def after_call(probe, masks, mask_logits_BMV, owner_BO=None):
    """What the probe knows after a call of a root alone."""
    B = mask_logits_BMV.shape[0]
    call = FinishedCall(
        model=Model({"embed": jnp.ones((4, 4))}, BASE),
        tree=make_tree([[ROOT]] * B, [[NO_PARENT]] * B, [[0]] * B),
        logits=Logits.of(jnp.concatenate([jnp.zeros((B, 1, 4)), mask_logits_BMV], axis=1)),
        num_masks=probe.num_masks,
        owner_BO=owner_BO,
        node_BP=jnp.zeros((B, 3), jnp.int32),
        num_accepted_B=jnp.zeros(B, jnp.int32),
        new_token_BP=jnp.zeros((B, 3), jnp.int32),
        num_new_B=jnp.ones(B, jnp.int32),
        root_position_B=jnp.full(B, 5),
        sampling=None,
    )
    return probe.learn(masks, call).rows


def test_masks_propose_the_best_logits_with_their_probabilities():
    logits = jnp.asarray([[[0.0, 2.0, 1.0, 2.0], [3.0, 0.0, 1.0, 2.0]]])
    probe = DynamicProbe(rows=9, num_masks=2, prune=True)
    got = after_call(probe, asked({}, {}), logits)
    assert got.id_BMC.tolist() == [[[1, 3, 2], [0, 3, 2]]]  # equal logits: the lower id first
    row = np.exp([0.0, 2.0, 1.0, 2.0])
    np.testing.assert_allclose(np.exp(got.score_BMC[0, 0]), row[[1, 3, 2]] / row.sum(), rtol=1e-6)


def test_a_row_that_ends_at_a_node_without_masks_has_no_proposals():
    logits = jnp.asarray([[[0.0, 2.0, 1.0, 2.0]]])
    for owner, is_known in ((0, True), (1, False)):
        got = after_call(Probe(widths=(2,)), asked({}), logits, jnp.asarray([[owner]]))
        assert np.all((np.asarray(got.id_BMC) != NO_TOKEN) == is_known)
        assert np.all(np.isfinite(got.score_BMC) == is_known)


def path_scores(probe, masks):
    """Each candidate's path by going up: the product of its own probability and of the best ones above it, unless pruned."""
    above_token, above, scores = ROOT, 1.0, []
    for mask, size in zip(masks, probe.pool_sizes, strict=True):
        left = [(token, p) for token, p in mask.items() if not (probe.prune and token == above_token)][:size]
        scores += [above * p for _, p in left]
        above_token, above = left[0][0], above * left[0][1]
    return np.log(scores)


@pytest.mark.parametrize("prune", [True, False])
@pytest.mark.parametrize(
    "probe", [Probe(widths=(2, 3, 1)), DynamicProbe(rows=16, num_masks=3)], ids=["static", "dynamic"]
)
def test_a_score_is_the_log_probability_of_the_path(probe, prune):
    probe = dataclasses.replace(probe, prune=prune)
    masks = ({ROOT: 0.5, 1: 0.2, 2: 0.1, 3: 0.1}, {4: 0.4, 1: 0.3, 6: 0.2, 3: 0.05}, {8: 0.6, 4: 0.2, 2: 0.1, 1: 0.1})
    got = probe.propose(asked(*masks), TEXT)
    np.testing.assert_allclose(got.score_BP[0], path_scores(probe, masks), rtol=1e-5)
    assert not np.any(got.kind_BP)
    assert probe.kinds == ("probe",)


def test_any_node_has_the_children_that_the_mask_of_its_depth_proposed():
    probe = Probe(widths=(2, 2))
    state = asked({7: 0.5, 3: 0.25, 4: 0.125}, {7: 0.4, 3: 0.3, 5: 0.2})
    of_root = probe.children(state, TEXT, Paths(token_BWL=jnp.asarray([[[7]]])))
    assert of_root.token_BWC.tolist() == [[[3, 4]]]  # the root's own token is pruned
    np.testing.assert_allclose(np.exp(of_root.feature_BWCf), [[[[0.25], [0.125]]]], rtol=1e-6)
    below = probe.children(state, TEXT, Paths(token_BWL=jnp.asarray([[[7, 3], [7, 9]]])))
    assert below.token_BWC.tolist() == [[[7, 5], [7, 3]]]
    assert probe.children(state, TEXT, Paths(token_BWL=jnp.asarray([[[7, 3, 7]]]))) is None  # deeper than its masks
