"""The judge of differences: where they are, how close plain decoding's choice was, and what counts as rounding."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from checkpoints import make_checkpoint

from jax_probe_mtp.model.sampling import Sampling
from jax_probe_mtp.sameness.first_difference import Difference, first_difference

PROMPT = [5, 9, 2, 44, 17, 3, 3]
CUTS = {"temperature": 0.7, "top_k": 40, "top_p": 0.95}
SEED = 11


@pytest.fixture(scope="module")
def checkpoint(tiny):
    return make_checkpoint(tiny)


@pytest.fixture(scope="module")
def plain(tiny):
    return reference.plain_decode(tiny.reference, PROMPT, max_new_tokens=12)[0]


def gap_to(model, text, other, **draw):
    """The best score after `text` less that of token `other`."""
    score = reference.scores(model.logits(model.embed(text))[-1], len(text), **draw)
    return score.max() - score[other]


def with_head(checkpoint, change):
    """The checkpoint and its NumPy double with another head; `change` works on a copy of it."""
    head = np.array(checkpoint.params["head"])
    change(head)
    params = {**checkpoint.params, "head": jnp.asarray(head)}
    return dataclasses.replace(checkpoint, params=params), reference.Model(params, checkpoint.config)


def test_equal_outputs_have_no_difference(checkpoint, plain):
    assert first_difference(checkpoint, PROMPT, plain, list(plain)) is None
    assert first_difference(checkpoint, PROMPT, plain, tuple(plain)) is None
    assert first_difference(checkpoint, PROMPT, [], []) is None


@pytest.mark.parametrize("position", [0, 5, 11])
def test_a_wrong_token_is_found_and_judged(checkpoint, tiny, plain, position):
    wrong = [*plain]
    wrong[position] = (plain[position] + 1) % 61
    wrong[position + 1 :] = [0] * (11 - position)  # what follows does not matter
    found = first_difference(checkpoint, PROMPT, plain, wrong)
    assert (found.position, found.plain_token, found.other_token) == (position, plain[position], wrong[position])
    gap = gap_to(tiny.reference, PROMPT + plain[:position], wrong[position])
    assert gap > 1e-3
    assert found.gap == pytest.approx(gap, abs=1e-5)
    assert found.tolerance == 1e-4
    assert not found.is_tie


def test_a_text_longer_than_the_smallest_bucket(checkpoint, tiny):
    prompt = PROMPT * 9  # 63 tokens; 67 at the difference
    plain, _ = reference.plain_decode(tiny.reference, prompt, max_new_tokens=5)
    found = first_difference(checkpoint, prompt, plain, [*plain[:4], (plain[4] + 1) % 61])
    assert found.position == 4
    assert found.gap == pytest.approx(gap_to(tiny.reference, prompt + plain[:4], found.other_token), abs=1e-5)


@pytest.mark.parametrize("ends_first", ["plain", "other"])
def test_one_output_begins_like_the_other(checkpoint, tiny, plain, ends_first):
    outputs = (plain[:4], plain) if ends_first == "plain" else (plain, plain[:4])
    found = first_difference(checkpoint, PROMPT, *outputs)
    assert found.position == 4
    assert (found.plain_token, found.other_token) == ((None, plain[4]) if ends_first == "plain" else (plain[4], None))
    assert found.gap == np.inf
    assert not found.is_tie


@pytest.mark.parametrize(("factor", "is_tie"), [(1.0, True), (1 - 2e-5, True), (1 - 4e-4, False)])
def test_a_tie_is_a_gap_that_rounding_can_make(checkpoint, tiny, plain, factor, is_tie):
    first, twin = plain[0], (plain[0] + 30) % 61

    def make_twin(head):
        head[twin] = head[first] * factor

    twins, model = with_head(checkpoint, make_twin)
    best = tiny.reference.logits(tiny.reference.embed(PROMPT))[-1][first]
    gap = best * (1 - factor)  # 0, 4e-5 and 8e-4
    assert gap_to(model, PROMPT, twin) == pytest.approx(gap, abs=1e-6), "the plain token is not the best: choose others"
    found = first_difference(twins, PROMPT, [first, 4], [twin, 4])
    assert (found.position, found.plain_token, found.other_token) == (0, first, twin)
    assert found.gap == pytest.approx(gap, abs=1e-5)
    assert found.is_tie == is_tie


def test_a_token_that_is_not_among_the_tied_is_no_tie(checkpoint, plain):
    first, twin, third = plain[0], (plain[0] + 30) % 61, (plain[0] + 1) % 61

    def make_twin(head):
        head[twin] = head[first]

    twins, _ = with_head(checkpoint, make_twin)
    assert not first_difference(twins, PROMPT, [first], [third]).is_tie


def test_an_output_better_than_the_plain_one_is_no_tie(checkpoint, plain):
    worse = (plain[0] + 1) % 61
    found = first_difference(checkpoint, PROMPT, [worse], [plain[0]])
    assert found.gap < -0.1
    assert not found.is_tie


def test_an_output_that_ends_early_is_no_tie(checkpoint, plain):
    first, twin = plain[0], (plain[0] + 30) % 61

    def make_twin(head):
        head[twin] = head[first]

    twins, _ = with_head(checkpoint, make_twin)
    assert not first_difference(twins, PROMPT, [first], []).is_tie


def test_a_token_outside_the_cuts_has_no_gap(checkpoint, tiny):
    draw = Sampling(
        temperature_B=jnp.asarray([1.0], jnp.float32),
        top_k_B=jnp.asarray([1], jnp.int32),
        top_p_B=jnp.asarray([1.0], jnp.float32),
        seed_B=jnp.asarray([SEED], jnp.uint32),
    )
    best = int(np.argmax(tiny.reference.logits(tiny.reference.embed(PROMPT))[-1]))
    for plain_token, other_token in [(best, (best + 1) % 61), ((best + 1) % 61, (best + 2) % 61)]:
        found = first_difference(checkpoint, PROMPT, [plain_token], [other_token], draw)
        assert found.gap == np.inf
        assert not found.is_tie


def test_sampled_outputs_are_judged_by_the_noisy_scores(checkpoint, tiny):
    plain, _ = reference.plain_decode(tiny.reference, PROMPT, max_new_tokens=6, seed=SEED, **CUTS)
    draw = Sampling(
        temperature_B=jnp.asarray([0.7], jnp.float32),
        top_k_B=jnp.asarray([40], jnp.int32),
        top_p_B=jnp.asarray([0.95], jnp.float32),
        seed_B=jnp.asarray([SEED], jnp.uint32),
    )
    for position in (0, 3):
        others = range(61)
        gaps = [gap_to(tiny.reference, PROMPT + plain[:position], other, seed=SEED, **CUTS) for other in others]
        second = int(np.argsort(gaps)[1])
        found = first_difference(checkpoint, PROMPT, plain, [*plain[:position], second], draw)
        assert found.position == position
        assert found.gap == pytest.approx(gaps[second], abs=1e-5)
        assert found.gap != pytest.approx(gap_to(tiny.reference, PROMPT + plain[:position], second), abs=1e-3)
        assert found.tolerance == pytest.approx(1e-4 / 0.7)  # scores are logits / T


# bfloat16 has 8 significant bits: its step is 1/64 from 2 to 4, 1/32 from 4 to 8, 1/128 from 1 to 2.
@pytest.mark.parametrize(("best", "tolerance"), [(2.5, 2 / 64), (5.0, 2 / 32), (1.25, 2 / 128), (80.0, 2 / 2)])
def test_bfloat16_tolerance_is_two_steps_at_the_best_score(checkpoint, tiny, best, tolerance):
    scale = best / tiny.reference.logits(tiny.reference.embed(PROMPT))[-1].max()
    params = jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), checkpoint.params)
    params["head"] = (checkpoint.params["head"] * scale).astype(jnp.bfloat16)
    rounded = dataclasses.replace(checkpoint, params=params)
    first = int(np.argmax(reference.Model(params, checkpoint.config).logits(tiny.reference.embed(PROMPT))[-1]))
    found = first_difference(rounded, PROMPT, [first], [2])
    assert found.tolerance == tolerance
    assert found.gap == pytest.approx(gap_to(reference.Model(params, checkpoint.config), PROMPT, 2), abs=best / 50)


def test_a_difference_reads_well():
    values = {"position": 3, "plain_token": 5, "plain_score": 2.75, "step": 2**-22}
    assert str(Difference(**values, other_token=7, other_score=2.5, tolerance=1e-4)) == (
        "diverged at new token 3: plain 5 (2.75), this 7 (2.5), gap 2.50e-01, 1.049e+06 steps (a tie up to 1.0e-04)"
    )
    assert str(Difference(**values, other_token=7, other_score=2.5, tolerance=0.25)).startswith("tie at new token 3")
    ended = Difference(**values, other_token=None, other_score=-np.inf, tolerance=1e-4)
    assert "this None (-inf), gap inf, inf steps" in str(ended)
