"""Scores of given tokens, against sorting in float64; and in a pass over texts, against the logits of whole texts."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import make_checkpoint

from jax_probe_mtp.model.sampling import Sampling
from jax_probe_mtp.sameness import own_choices
from jax_probe_mtp.sameness.token_scores import GREEDY_TEMPERATURE, nothing_scored, token_scores

jit_scores = jax.jit(token_scores, static_argnames="temperatures")
FIELDS = ("logprob", "entropy", "variance", "above")
CUTS = [(t, k, p) for t in (0.0, 0.7, 1.0) for k in (0, 5) for p in (1.0, 0.8)]
OTHERS = (0.5, 1.0, 1.3)
# (prompt, output): unequal; the longest output takes several turns of the head.
LENGTHS = [(3, 5), (30, 20), (1, 1), (17, 63), (40, 9)]
DRAWS = [(0.0, 0, 1.0), (0.7, 5, 0.9), (1.3, 0, 1.0), (1.0, 0, 0.8), (0.5, 40, 1.0)]  # temperature, top-k, top-p


def sampling(rows):
    temperature, top_k, top_p = zip(*rows, strict=True)
    return Sampling(
        temperature_B=np.asarray(temperature, np.float32),
        top_k_B=np.asarray(top_k, np.int32),
        top_p_B=np.asarray(top_p, np.float32),
        seed_B=np.arange(len(rows), dtype=np.uint32),
    )


def slow_fit(logits, token, temperature=1.0, top_k=0, top_p=1.0):
    """By sorting: likelier tokens first, of equal ones the lower id; tokens that tie with the last one kept stay too."""
    order = sorted(range(len(logits)), key=lambda i: (-logits[i], i))

    def with_ties(kept):
        return [i for i in order if logits[i] >= logits[kept[-1]]]

    kept = with_ties(order[:top_k]) if top_k else order
    weight = {i: math.exp((logits[i] - logits[order[0]]) / temperature) for i in kept}
    if top_p < 1:
        reached, total = [], sum(weight.values())
        while sum(weight[i] for i in reached) < top_p * total:
            reached.append(kept[len(reached)])
        weight = {i: weight[i] for i in with_ties(reached)}
    p = {i: w / sum(weight.values()) for i, w in weight.items()}
    mean = sum(q * math.log(q) for q in p.values())
    return {
        "logprob": math.log(p[token]) if token in p else -math.inf,
        "entropy": -mean,
        "variance": sum(q * (math.log(q) - mean) ** 2 for q in p.values()),
        "above": sum(p.get(i, 0.0) for i in order[: order.index(token)]),
    }


def assert_fit(fit, place, expected):
    for name in FIELDS:
        assert getattr(fit, name)[place] == pytest.approx(expected[name], abs=2e-5), name


@pytest.fixture(scope="module")
def rows():
    """Logits in steps of a quarter, so that many tie; each setting has six tokens."""
    drawn = np.random.default_rng(1)
    settings = [cut for cut in CUTS for _ in range(6)]
    logits = drawn.integers(-8, 9, (len(settings), 37)) / 4
    return logits.astype(np.float32), drawn.integers(0, 37, len(settings)).astype(np.int32), settings


def test_every_score_is_what_sorting_gives(rows):
    logits, tokens, settings = rows
    got = jax.device_get(jit_scores(jnp.asarray(logits), jnp.asarray(tokens), sampling(settings), OTHERS))
    for n, (row, token, (temperature, top_k, top_p)) in enumerate(zip(logits.tolist(), tokens, settings, strict=True)):
        assert got.margin[n] == max(row) - row[token]
        assert got.rank[n] == sum((-score, i) < (-row[token], token) for i, score in enumerate(row))
        assert_fit(got.own, n, slow_fit(row, token))
        if temperature:
            assert_fit(got.stated, n, slow_fit(row, token, temperature, top_k, top_p))
        for t, other in enumerate(OTHERS):
            assert_fit(got.at, (n, t), slow_fit(row, token, other))
    is_tied = [row.tolist().count(row[token]) > 1 for row, token in zip(logits, tokens, strict=True)]
    is_out = np.isneginf(got.stated.logprob)
    assert any(is_tied), "choose other logits: no token ties"
    assert any(is_out), "choose other logits: the cuts leave every token in"
    assert got.at.logprob.shape == (len(settings), len(OTHERS))
    assert np.isfinite(got.own.logprob).all()


def test_a_greedy_row_has_no_cuts_whoever_its_neighbours_are(rows):
    """Greedy choice reads no cuts (`sampling.scores`), so a row alone and one beside drawn rows are judged alike."""
    logits, tokens, settings = rows
    beside = jax.device_get(jit_scores(jnp.asarray(logits), jnp.asarray(tokens), sampling(settings)))
    alone = jax.device_get(jit_scores(jnp.asarray(logits), jnp.asarray(tokens), None))
    assert alone.at is None
    for n, (temperature, *_) in enumerate(settings):
        if not temperature:
            expected = slow_fit(logits[n].tolist(), tokens[n], GREEDY_TEMPERATURE)
            assert_fit(alone.stated, n, expected)
            assert_fit(beside.stated, n, expected)


def test_four_tokens_by_hand():
    """Probabilities 1/2, 1/4, 1/8, 1/8 at temperature 1; ids 3, 0, 1, 2 in that order."""
    ln2 = math.log(2)
    logits = jnp.asarray([[2 * ln2, ln2, ln2, 3 * ln2]])
    given = {token: jit_scores(logits, jnp.asarray([token]), sampling([(1.0, 2, 1.0)])) for token in range(4)}
    assert [int(given[token].rank[0]) for token in (3, 0, 1, 2)] == [0, 1, 2, 3]
    np.testing.assert_allclose([given[token].margin[0] for token in (3, 0, 1, 2)], [0, ln2, 2 * ln2, 2 * ln2], 1e-6)
    own = [given[token].own for token in (3, 0, 1, 2)]
    np.testing.assert_allclose([fit.logprob[0] for fit in own], [-ln2, -2 * ln2, -3 * ln2, -3 * ln2], 1e-6)
    np.testing.assert_allclose([fit.above[0] for fit in own], [0, 0.5, 0.75, 0.875], 1e-6)
    np.testing.assert_allclose([fit.entropy[0] for fit in own], [1.75 * ln2] * 4, 1e-6)
    # E (log2 p)^2 = 1/2 + 4/4 + 9/4 = 3.75, less 1.75^2
    np.testing.assert_allclose([fit.variance[0] for fit in own], [0.6875 * ln2**2] * 4, 1e-5)
    stated = [given[token].stated for token in (3, 0, 1, 2)]  # top-k leaves 2/3 and 1/3
    np.testing.assert_allclose(np.exp([fit.logprob[0] for fit in stated]), [2 / 3, 1 / 3, 0, 0], 1e-6)
    np.testing.assert_allclose([fit.above[0] for fit in stated], [0, 2 / 3, 1, 1], 1e-6)


def test_a_token_that_penalties_forbid_spoils_no_other_score():
    """`min_tokens` puts -inf in the place of an end of text."""
    logits = jnp.asarray([[1.0, -jnp.inf, 0.0], [1.0, -jnp.inf, 0.0]])
    got = jax.device_get(jit_scores(logits, jnp.asarray([2, 1]), None, (0.7,)))
    assert_fit(got.own, 0, slow_fit([1.0, 0.0], 1))
    assert_fit(got.at, (0, 0), slow_fit([1.0, 0.0], 1, 0.7))
    assert np.isneginf(got.own.logprob[1])
    assert np.isposinf(got.margin[1])
    assert not any(np.isnan(leaf).any() for leaf in jax.tree.leaves(got))


def test_nothing_scored_has_the_shapes_and_dtypes_of_scores():
    found = jax.eval_shape(lambda: token_scores(jnp.zeros((3, 4)), jnp.zeros(3, jnp.int32), None, (0.5, 1.0)))
    zeros = nothing_scored((3,), 2)
    assert jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), found) == jax.tree.map(
        lambda leaf: (leaf.shape, leaf.dtype), zeros
    )
    assert nothing_scored((3,)).at is None


@pytest.fixture(scope="module")
def texts():
    drawn = np.random.default_rng(0)
    return [tuple(drawn.integers(0, 61, n).tolist() for n in pair) for pair in LENGTHS]


def assert_scores_of_whole_texts(model, texts, found, draws, temperatures):
    for n, (prompt, output) in enumerate(texts):
        logits_TV = model.logits(model.embed([*prompt, *output]))[len(prompt) - 1 : -1]
        draw = None if draws is None else sampling([draws[n]] * len(output))
        padded = -len(output) % 64  # one shape for all texts

        def pad(values, padded=padded):
            return np.concatenate([values, np.repeat(values[:1], padded, axis=0)])

        draw = None if draw is None else jax.tree.map(pad, draw)
        logits, ids = pad(logits_TV.astype(np.float32)), pad(np.asarray(output, np.int32))
        expected = jax.device_get(jit_scores(logits, ids, draw, temperatures))
        size = len(output)
        expected = jax.tree.map(lambda leaf, size=size: leaf[:size], expected)
        assert (found[n].given.rank == expected.rank).all()
        for got, want in zip(jax.tree.leaves(found[n].given), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(got, want, atol=1e-3)
        assert len(found[n].given.margin) == len(output)


def test_scores_of_texts_are_those_of_their_logits(tiny, texts):
    checkpoint = make_checkpoint(tiny)
    assert own_choices.HEAD_ROWS // 6 < 63, "the outputs are too short for several turns of the head"
    found = dict(own_choices.choices_of(checkpoint, texts, None, 6, is_scored=True))
    assert set(found) == set(range(len(texts)))
    assert_scores_of_whole_texts(tiny.reference, texts, found, None, ())
    unscored = dict(own_choices.choices_of(checkpoint, texts, None, 6))
    for n, got in unscored.items():
        assert got.given is None
        for name in ("best_BA", "best_score_BA", "given_score_BA"):
            np.testing.assert_array_equal(getattr(got, name), getattr(found[n], name))


def test_scores_of_sampled_texts_have_each_texts_own_cuts(tiny, texts):
    checkpoint = make_checkpoint(tiny)
    draws = [sampling([draw]) for draw in DRAWS]
    found = dict(own_choices.choices_of(checkpoint, texts, draws, 3, is_scored=True, temperatures=OTHERS))
    assert_scores_of_whole_texts(tiny.reference, texts, found, DRAWS, OTHERS)
    assert np.isneginf(found[1].given.stated.logprob).any(), "the cuts left every random token in: choose others"
    assert found[3].given.at.entropy.shape == (63, len(OTHERS))


def test_how_far_a_token_is_beyond_the_cuts():
    """Of 0.5, 0.3, 0.15, 0.05 top-p 0.7 leaves two; the third is log 2 below the second, at temperature 0.5 twice that."""
    logits_BV = jnp.log(jnp.asarray([[0.5, 0.3, 0.15, 0.05]] * 4, jnp.float32))
    draw = Sampling(
        seed_B=jnp.zeros(4, jnp.uint32),
        temperature_B=jnp.asarray([1.0, 1.0, 0.5, 0.0]),
        top_k_B=jnp.asarray([0, 0, 2, 0]),
        top_p_B=jnp.asarray([0.7, 0.7, 1.0, 0.7]),
    )
    found = token_scores(logits_BV, jnp.asarray([1, 2, 2, 3]), draw)
    np.testing.assert_allclose(found.beyond[:3], [0, np.log(2), 2 * np.log(2)], atol=1e-5)
    assert found.beyond[3] <= 0  # a greedy row has no cuts
