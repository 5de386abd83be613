"""The contract of draft sources: all of ours keep it, and each way to break it is told in one line."""

import dataclasses

import jax
import jax.numpy as jnp
import pytest
from conftest import BASE

from jax_probe_mtp.drafting import (
    NO_TOKEN,
    DraftSource,
    DynamicProbe,
    Merged,
    Ngram,
    Plain,
    Probe,
    Recycle,
    SourceState,
    chain,
    check_source,
)
from jax_probe_mtp.drafting.candidates import Children


@pytest.mark.parametrize(
    "source",
    [
        Plain(),
        Probe(widths=(4,)),
        Probe(widths=(3, 2)),
        Probe(widths=(3, 2), mask_init="sample", prune=False),
        Probe(widths=(2,), mask_init="last_k", mask_ema=0.5),
        DynamicProbe(rows=24, num_masks=2),
        Ngram(num_drafts=4, max_ngram=3),
        Recycle(tree=7),
        Recycle(tree=7, warm=True),
        Recycle(tree="static80"),
        Merged(rows=16),
        Merged(rows=9, mask_owners=0, without="pairs"),
        Merged(rows=12, mask_owners=1, depth=2, warm=True),
    ],
    ids=str,
)
def test_our_sources_keep_it(source):
    check_source(source, BASE)


@dataclasses.dataclass(frozen=True)
class Fixed(DraftSource):
    """Two children of the root and one below; every way to break the contract is a change of it."""

    @property
    def num_candidates(self):
        return 3

    @property
    def max_depth(self):
        return 2

    def propose(self, state, text):
        first = chain(jnp.stack([text.root_B, text.root_B, text.root_B], axis=1))
        return first.replace(
            parent_BP=jnp.full_like(first.parent_BP, -1).at[:, 2].set(0),
            depth_BP=jnp.ones_like(first.depth_BP).at[:, 2].set(2),
            score_BP=jnp.broadcast_to(jnp.log(jnp.asarray([0.5, 0.25, 0.125])), first.score_BP.shape),
        )


def with_candidates(change):
    """The source whose candidates are changed."""

    class Broken(Fixed):
        def propose(self, state, text):
            return change(super().propose(state, text), text)

    return Broken()


def with_state(rows, *, learn=None, shared=(), propose=None, **attributes):
    """The source whose state is made, changed and read so."""

    class Broken(Fixed):
        def init_shared(self, cfg):
            return shared

        def start(self, model, prompts, shared):
            return SourceState(rows=rows(prompts), shared=shared)

        def learn(self, state, call):
            return state if learn is None else learn(state, call)

        def propose(self, state, text):
            candidates = super().propose(state, text)
            return candidates if propose is None else propose(candidates, state)

    for name, value in attributes.items():
        setattr(Broken, name, value)
    return Broken()


def with_attributes(**attributes):
    return type("Broken", (Fixed,), attributes)()


def set_at(name, place, value):
    field = f"{name}_BP"
    return lambda candidates, text: candidates.replace(**{field: getattr(candidates, field).at[:, place].set(value)})


def count_of_rows(prompts):
    return jnp.zeros(prompts.length_B.shape[0], jnp.int32)


def answers(token_BWC, feature_BWCf):
    return Children(token_BWC=token_BWC.astype(jnp.int32), feature_BWCf=feature_BWCf)


def masks_of(*shape, dtype=jnp.float32):
    return lambda self, state: jnp.zeros(shape, dtype)


def masks_of_rows(self, state):
    return jnp.zeros((state.rows.shape[0], 1, 8))


WITH_MASKS = {"rows": count_of_rows, "num_masks": 1, "masks": masks_of_rows}
NO_ROWS = {"rows": lambda prompts: ()}

KEPT = {
    "as it is": Fixed(),
    "a row counts its calls": with_state(count_of_rows, learn=lambda s, call: s.replace(rows=s.rows + 1)),
    "all rows count": with_state(
        **NO_ROWS,
        shared=jnp.zeros(1),
        learn=lambda s, call: s.replace(shared=s.shared + 1),
        learns_shared=True,
    ),
    "masks": with_state(**WITH_MASKS),
    "masks of two owners": with_state(
        **WITH_MASKS,
        num_owners=2,
        owners=lambda self, state, tree: jnp.zeros_like(tree.token_BN[:, :2]).at[:, 1].set(3),
    ),
    "nothing to propose": with_candidates(
        lambda c, text: c.replace(
            token_BP=jnp.full_like(c.token_BP, NO_TOKEN), score_BP=jnp.full_like(c.score_BP, -jnp.inf)
        )
    ),
}


@pytest.mark.parametrize("source", KEPT.values(), ids=KEPT)
def test_a_source_of_a_users_own_may_keep_it(source):
    check_source(source, BASE)


BROKEN = {
    "a state as long as prompts are padded": (with_state(lambda prompts: prompts.token_BT), "rows has shapes ("),
    # What it proposes.
    "a child before its parent": (
        with_candidates(
            lambda c, text: c.replace(parent_BP=c.parent_BP.at[:, 1].set(2), depth_BP=c.depth_BP.at[:, 1].set(3))
        ),
        "a parent does not come before its child (row 0, candidate 1: ",
    ),
    "its own parent": (with_candidates(set_at("parent", 2, 2)), "a parent does not come before its child"),
    "no such parent": (with_candidates(set_at("parent", 2, -2)), "a parent does not come before its child"),
    "a score above the parent's": (with_candidates(set_at("score", 2, -0.1)), "a score is above its parent's"),
    "a score above 0": (with_candidates(set_at("score", 0, 0.1)), "a score is no log-probability"),
    "a score that is no number": (with_candidates(set_at("score", 0, jnp.nan)), "a score is no log-probability"),
    "a score without a token": (with_candidates(set_at("token", 1, NO_TOKEN)), "without a token the score is not -inf"),
    "a token too large": (with_candidates(set_at("token", 1, 61)), "a token is none of -1 to 60 (row 0, candidate 1: "),
    "a token too small": (with_candidates(set_at("token", 1, -2)), "a token is none of -1 to 60"),
    "a wrong depth": (with_candidates(set_at("depth", 2, 1)), "a depth is not one more than the parent's"),
    "too deep": (with_attributes(max_depth=1), "a depth is above max_depth 1"),
    "a kind that it does not name": (with_candidates(set_at("kind", 0, 1)), "a kind is none of 1"),
    "tokens of a wrong dtype": (
        with_candidates(lambda c, text: c.replace(token_BP=c.token_BP + 0.5)),
        "propose gives token_BP: ",
    ),
    "scores of a wrong dtype": (
        with_candidates(lambda c, text: c.replace(score_BP=c.score_BP.astype(jnp.bfloat16))),
        "propose gives score_BP: ",
    ),
    "too few": (with_candidates(lambda c, text: jax.tree.map(lambda x: x[:, :2], c)), "= [3, 3] tokens, got (3, 2)"),
    "an array": (with_candidates(lambda c, text: c.token_BP), "propose must give Candidates, such as chain("),
    "a row that looks at its neighbour": (
        with_candidates(lambda c, text: c.replace(token_BP=jnp.roll(c.token_BP, 1, axis=0))),
        "a row depends on its neighbours",
    ),
    "all rows look at the first": (
        with_candidates(lambda c, text: c.replace(token_BP=jnp.broadcast_to(c.token_BP[:1], c.token_BP.shape))),
        "a row depends on its neighbours",
    ),
    "a value of its own only outside of jit": (
        with_candidates(
            lambda c, text: c if isinstance(text.root_B, jax.core.Tracer) else c.replace(score_BP=c.score_BP - 1)
        ),
        "with and without jax.jit its candidates differ",
    ),
    # What it keeps.
    "rows without B": (with_state(lambda prompts: jnp.zeros(5)), "start gives rows without B = 3 in front: "),
    "rows of always three": (with_state(lambda prompts: jnp.zeros(3)), "start gives rows without B = 2 in front: "),
    "B where it does not belong": (
        with_state(lambda prompts: jnp.zeros((prompts.length_B.size, prompts.length_B.size))),
        "rows has shapes (3,) behind B with 3 rows, (2,) with 2",
    ),
    "a state of another structure": (
        with_state(count_of_rows, learn=lambda s, call: s.replace(rows=(s.rows,))),
        "learn changes the state's structure",
    ),
    "a state of another dtype": (
        with_state(count_of_rows, learn=lambda s, call: s.replace(rows=s.rows + 0.5)),
        "learn changes the state's structure",
    ),
    "rows that learn of each other": (
        with_state(count_of_rows, learn=lambda s, call: s.replace(rows=s.rows + call.tree.token_BN[:, 0].sum())),
        "after 1 calls a row depends on its neighbours",
    ),
    "shared that changes unsaid": (
        with_state(**NO_ROWS, shared=jnp.zeros(()), learn=lambda s, call: s.replace(shared=s.shared + 1)),
        "learn changes shared, but learns_shared is False",
    ),
    "shared that groups of devices cannot have a part of": (
        with_state(**NO_ROWS, shared=jnp.zeros(()), learns_shared=True),
        "shared is learned, but has arrays without 1 in front, for one group of devices",
    ),
    "no state": (
        with_attributes(start=lambda self, model, prompts, shared: ()),
        "start must give a SourceState, got tuple",
    ),
    # Masks and their owners.
    "masks of a wrong shape": (with_attributes(num_masks=1, masks=masks_of(3, 2, 8)), "masks: "),
    "masks of a wrong dtype": (
        with_attributes(num_masks=1, masks=lambda self, state: jnp.zeros((3, 1, 8), jnp.bfloat16)),
        "masks: ",
    ),
    "masks that are not given": (with_attributes(num_masks=1), "define masks(state)"),
    "owners that are not chosen": (with_state(**WITH_MASKS, num_owners=2), "define owners(state, tree)"),
    "owners out of range": (
        with_state(**WITH_MASKS, num_owners=1, owners=lambda self, state, tree: jnp.full_like(tree.token_BN[:, :1], 4)),
        "owners must be nodes 0 to 3, got [[4], [4], [4]]",
    ),
    "owners below the root": (
        with_state(
            **WITH_MASKS, num_owners=1, owners=lambda self, state, tree: jnp.full_like(tree.token_BN[:, :1], -1)
        ),
        "owners must be nodes 0 to 3",
    ),
    "fewer owners": (
        with_state(**WITH_MASKS, num_owners=2, owners=lambda self, state, tree: jnp.zeros_like(tree.token_BN[:, :1])),
        "owners: ",
    ),
    # What it says of itself.
    "more owners than nodes": (with_attributes(num_owners=5), "num_owners must be 1 to 4"),
    "more nodes than candidates": (with_attributes(num_nodes=5), "num_nodes 5 is more than the root and 3 candidates"),
    "half a candidate": (with_attributes(num_candidates=2.5), "num_candidates must be a whole number"),
    "no kind": (with_attributes(kinds=()), "kinds must be at least one text"),
    "children of a wrong shape": (
        with_attributes(
            children=lambda self, state, text, paths: answers(jnp.zeros((3, 1, 2), jnp.int32), jnp.zeros((3, 1, 2)))
        ),
        "children gives feature_BWCf: ",
    ),
    "children out of range": (
        with_attributes(
            children=lambda self, state, text, paths: answers(
                jnp.full((*paths.token_BW.shape, 2), 61), jnp.zeros((*paths.token_BW.shape, 2, 1))
            )
        ),
        "children: a token is none of -1 to 60",
    ),
}


@pytest.mark.parametrize(("source", "says"), BROKEN.values(), ids=BROKEN)
def test_whoever_breaks_it_is_told_how(source, says):
    with pytest.raises(ValueError, match=r"\ABroken: [^\n]+\Z") as refusal:
        check_source(source, BASE)
    assert says in str(refusal.value)


@dataclasses.dataclass(frozen=True)
class Listed(Fixed):
    weights: list = dataclasses.field(default_factory=list)


def test_a_source_that_no_program_can_take_is_refused():
    with pytest.raises(ValueError, match=r"\AListed: unhashable type: 'list'\Z"):
        check_source(Listed(), BASE)
    with pytest.raises(ValueError, match=r"source must be a DraftSource such as .* got 'probe:14'"):
        check_source("probe:14", BASE)


def test_a_source_that_the_model_is_too_small_for_is_refused():
    with pytest.raises(ValueError, match="Probe: the tree looks at 62 candidates"):
        check_source(Probe(widths=(61,)), BASE)
