"""Sources that only the interface knows: masks behind chosen nodes, and two sources asked in turn for one tree."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from conftest import BASE
from support.decoding.batches import batch_of
from support.decoding.calls import run_by_calls

from jax_probe_mtp.decoding.trace import trace
from jax_probe_mtp.drafting import (
    NO_PARENT,
    NO_TOKEN,
    Candidates,
    DraftSource,
    DynamicProbe,
    Probe,
    Recycle,
    SourceState,
    check_source,
)
from jax_probe_mtp.drafting.candidates import Paths

PROMPTS = [[7], [5, 9, 2, 44, 17, 3, 3], [60, 1, 33, 8], [12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23]]
SEEDS = [11, 2**32 - 1, 0, 5]
NEW_TOKENS = 17
DRAWS = {"greedy": {}, "drawn": {"temperature": 1.0, "top_k": 40, "top_p": 0.95}}


class FewOwners:
    """Lets the root and its best child alone own masks."""

    @property
    def num_owners(self):
        return 2

    def owners(self, state, tree):
        best_child_B = jnp.argmax(tree.parent_BN == 0, axis=1)  # the tree lists it first
        return jnp.stack([jnp.zeros_like(best_child_B), best_child_B], axis=1).astype(jnp.int32)


@dataclasses.dataclass(frozen=True)
class FewMasks(FewOwners, Probe):
    pass


@dataclasses.dataclass(frozen=True)
class FewMasksDynamic(FewOwners, DynamicProbe):
    pass


def root_and_best_child(nodes):
    return {0, *[i for i, (_, parent, _) in enumerate(nodes) if parent == 0][:1]}


MASKS = {"prune": True, "mask_init": "mean", "mask_offset": 5.0}
FEW = {
    "static": (FewMasks(widths=(7, 3)), MASKS | {"tree": (7, 3), "num_masks": 2, "block_complexity": None}),
    "dynamic": (
        FewMasksDynamic(rows=30, num_masks=2),
        MASKS | {"tree": "dynamic", "num_masks": 2, "block_complexity": 30},
    ),
}


def drafts(nodes):
    return [node for node in nodes if node[0] != NO_TOKEN]


@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("case", FEW)
def test_a_row_that_ends_at_a_node_without_masks_drafts_nothing_next(tiny, case, draw):
    source, settings = FEW[case]
    assert source.num_rows == source.num_nodes + 2 * 2 < 3 * source.num_nodes
    tokens, trees, accepted = run_by_calls(tiny, PROMPTS, source, NEW_TOKENS, SEEDS, **DRAWS[draw])
    for row, prompt in enumerate(PROMPTS):
        row_draw = {"max_new_tokens": NEW_TOKENS, "seed": SEEDS[row]} | DRAWS[draw]
        plain, gap = reference.plain_decode(tiny.reference, prompt, **row_draw)
        assert gap > 1e-3, "choose another model or prompt: rounding could decide this one"
        expected = reference.probe_decode(tiny.reference, prompt, settings, owners=root_and_best_child, **row_draw)
        assert tokens[row] == expected[0] == plain
        assert list(map(drafts, trees[row])) == list(map(drafts, expected[1]))
        assert accepted[row] == expected[2]
    assert sum(map(sum, accepted)) > 0, "no draft was ever right"
    assert any(len(drafts(nodes)) == 1 for calls in trees for nodes in calls), "no row ended at a node without masks"


@dataclasses.dataclass(frozen=True)
class Merged(DraftSource):
    """Asks a table and masks level by level: each node's children are the best of both, one node for one token.

    Attributes:
      width: nodes of a level; the best of them are followed.
      depth: levels.
    """

    width: int = 6
    depth: int = 2

    @property
    def table(self):
        return Recycle(tree=8)

    @property
    def probe(self):
        return Probe(widths=(4,) * self.depth)

    @property
    def num_candidates(self):
        return self.width * self.depth

    @property
    def max_depth(self):
        return self.depth

    @property
    def num_masks(self):
        return self.probe.num_masks

    @property
    def kinds(self):
        return ("probe", "recycle")

    def start(self, model, prompts, shared):
        return SourceState(
            rows={name: getattr(self, name).start(model, prompts, ()).rows for name in ("table", "probe")}
        )

    def of(self, state, name):
        return SourceState(rows=state.rows[name])

    def read(self, state, chunk):
        table = self.table.read(self.of(state, "table"), chunk)
        return state.replace(rows=state.rows | {"table": table.rows})

    def masks(self, state):
        return self.probe.masks(self.of(state, "probe"))

    def learn(self, state, call):
        return state.replace(
            rows={name: getattr(self, name).learn(self.of(state, name), call).rows for name in ("table", "probe")}
        )

    def propose(self, state, text):
        B, W = text.root_B.size, self.width
        paths = Paths(token_BWL=text.root_B[:, None, None])
        index_BW, score_BW = jnp.full((B, 1), NO_PARENT), jnp.zeros((B, 1))
        levels = []
        for depth in range(1, self.depth + 1):
            answers = [getattr(self, name).children(self.of(state, name), text, paths) for name in ("probe", "table")]
            token_BWC = jnp.concatenate([answer.token_BWC for answer in answers], axis=2)
            step_BWC = jnp.concatenate([answer.feature_BWCf[..., 0] for answer in answers], axis=2)
            kind_C = np.repeat([0, 1], [answer.token_BWC.shape[2] for answer in answers])
            # One node for one token: of two that are the same the one listed first, the mask's, stays.
            is_same_BWCC = token_BWC[..., :, None] == token_BWC[..., None, :]
            is_again_BWC = jnp.any(is_same_BWCC & np.tri(kind_C.size, k=-1, dtype=bool), axis=3)
            step_BWC = jnp.where(is_again_BWC | (token_BWC == NO_TOKEN), -jnp.inf, step_BWC)
            path_BX = (score_BW[..., None] + step_BWC).reshape(B, -1)
            score_BW, best_BW = jax.lax.top_k(path_BX, W)
            above_BW = best_BW // kind_C.size
            token_BW = jnp.take_along_axis(token_BWC.reshape(B, -1), best_BW, axis=1)
            token_BW = jnp.where(jnp.isneginf(score_BW), NO_TOKEN, token_BW)
            levels.append(
                Candidates(
                    token_BP=token_BW,
                    parent_BP=jnp.take_along_axis(index_BW, above_BW, axis=1).astype(jnp.int32),
                    depth_BP=jnp.full((B, W), depth, jnp.int32),
                    score_BP=score_BW,
                    kind_BP=jnp.asarray(kind_C, jnp.int32)[best_BW % kind_C.size],
                )
            )
            above_BWL = jnp.take_along_axis(paths.token_BWL, above_BW[..., None], axis=1)
            paths = Paths(token_BWL=jnp.concatenate([above_BWL, token_BW[..., None]], axis=2))
            index_BW = jnp.broadcast_to((depth - 1) * W + jnp.arange(W), (B, W))
        return jax.tree.map(lambda *parts: jnp.concatenate(parts, axis=1), *levels)


def test_a_merged_source_keeps_the_contract():
    check_source(Merged(), BASE)


@pytest.mark.parametrize("draw", DRAWS)
def test_two_sources_in_one_tree_give_plain_decodings_tokens(tiny, draw):
    source = Merged()
    settings = {"max_new_tokens": NEW_TOKENS} | DRAWS[draw]
    tokens, trees, accepted = run_by_calls(tiny, PROMPTS, source, NEW_TOKENS, SEEDS, **DRAWS[draw])
    for row, prompt in enumerate(PROMPTS):
        plain, gap = reference.plain_decode(tiny.reference, prompt, seed=SEEDS[row], **settings)
        assert gap > 1e-3, "choose another model or prompt: rounding could decide this one"
        assert tokens[row] == plain
        for nodes in trees[row]:
            under = [(parent, token) for token, parent, _ in drafts(nodes)]
            assert len(set(under)) == len(under), "one token is two nodes under one parent"

    batch = batch_of(tiny.cfg, source, PROMPTS, eos_token_ids=[], seeds=SEEDS, capacity=64, **settings)
    by_kind_B2 = np.zeros((len(PROMPTS), 2), int)
    for number, traced in enumerate(trace(tiny.params, batch, tiny.cfg, source)):
        walk, tree = jax.device_get((traced.call.accepted, traced.call.tree))
        for row in np.flatnonzero(~np.asarray(traced.before.is_done_B)) if number else ():
            kinds = tree.kind_BN[row, walk.node_BP[row, 1 : walk.num_accepted_B[row] + 1]]
            by_kind_B2[row] += np.bincount(kinds, minlength=2)
    last = jax.device_get(traced.after)
    assert last.accepted_by_kind_BZ.tolist() == by_kind_B2.tolist()
    assert np.all(last.accepted_by_kind_BZ.sum(axis=0) > 0), "drafts of one kind alone were accepted"
    assert last.accepted_by_kind_BZ.sum(axis=1).tolist() == last.accepted_by_depth_BX.sum(axis=1).tolist()
    assert [sum(counts) for counts in accepted] == by_kind_B2.sum(axis=1).tolist()
