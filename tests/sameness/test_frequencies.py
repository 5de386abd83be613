"""Sampled answers of unknown seeds: frequencies that follow the distribution pass, others do not; the bound is what it says."""

import math

import numpy as np
import pytest
from checkpoints import make_checkpoint

from jax_probe_mtp.decoding.settings import Prompt, Settings
from jax_probe_mtp.model.sampling import Sampling
from jax_probe_mtp.sameness.frequencies import FALSE_ALARM, distance, distribution, judge_frequencies
from jax_probe_mtp.sameness.output import Output

PROMPT = [5, 9, 2, 44]
CUTS = [(1.0, 0, 1.0), (0.7, 5, 1.0), (1.5, 0, 0.8)]  # temperature, top-k, top-p


@pytest.fixture(scope="module")
def checkpoint(tiny):
    return make_checkpoint(tiny)


def slow_distribution(model, temperature, top_k, top_p):
    """By sorting, in float64; the noise of `reference.scores` is left out."""
    logits = model.logits(model.embed(PROMPT))[-1] / temperature
    order = np.argsort(-logits)[: top_k or None]
    mass = np.exp(logits[order]) / np.exp(logits[order]).sum()
    order = order[: np.searchsorted(np.cumsum(mass), top_p) + 1]
    kept = np.zeros(len(logits))
    kept[order] = np.exp(logits[order])
    return kept / kept.sum()


@pytest.mark.parametrize(("temperature", "top_k", "top_p"), CUTS)
def test_the_distribution_is_what_answers_are_drawn_from(checkpoint, tiny, temperature, top_k, top_p):
    expected = slow_distribution(tiny.reference, temperature, top_k, top_p)
    draw = Sampling(
        temperature_B=np.asarray([temperature], np.float32),
        top_k_B=np.asarray([top_k], np.int32),
        top_p_B=np.asarray([top_p], np.float32),
        seed_B=np.zeros(1, np.uint32),
    )
    found = distribution(checkpoint, PROMPT, draw)
    np.testing.assert_allclose(found, expected, atol=1e-5)
    assert ((found > 0) == (expected > 0)).all()


def test_a_distance_by_hand():
    """n = 100; tokens 0 and 1 have 5 or more expected answers, 2 to 4 are together."""
    tokens = [0] * 50 + [1] * 30 + [2] * 12 + [3] * 8
    found = distance(tokens, np.asarray([0.7, 0.2, 0.04, 0.03, 0.03]))
    assert found.distance == pytest.approx(0.2 + 0.1 + 0.1)
    assert found.bound == pytest.approx(math.sqrt(2 * (3 * math.log(2) + math.log(1000)) / 100))
    assert found.num_impossible == 0
    assert distance([0, 4, 2**70, -1], np.asarray([0.5, 0.5, 0, 0, 0])).num_impossible == 3


def test_the_bound_holds_for_fair_samples_and_not_for_all_bad_ones():
    draw, p = np.random.default_rng(0), np.asarray([0.3, 0.25, 0.2, 0.1, 0.1, 0.05])
    fair = [distance(draw.choice(6, 400, p=p).tolist(), p) for _ in range(400)]
    assert sum(found.distance > found.bound for found in fair) <= 3  # 0.4 expected at most
    shifted = p + np.asarray([0.25, -0.2, -0.05, 0, 0, 0])
    bad = [distance(draw.choice(6, 400, p=shifted).tolist(), p) for _ in range(50)]
    assert all(found.distance > found.bound for found in bad)
    assert FALSE_ALARM == 1e-3


def outputs(tokens, temperature=None):
    return [
        Output(prompt=Prompt(id=i, token_ids=PROMPT, temperature=temperature), token_ids=[int(token), 1])
        for i, token in enumerate(tokens)
    ]


def test_answers_of_one_prompt_are_judged_together(checkpoint, tiny):
    settings, draw = Settings(temperature=1.0), np.random.default_rng(1)
    p = slow_distribution(tiny.reference, 1.0, 0, 1.0)
    good = outputs(draw.choice(61, 2000, p=p))
    [found] = judge_frequencies(checkpoint, good, settings)
    assert (found.kind, found.num_tokens) == ("same", 2000)
    assert str(found).startswith("2000 answers to the prompt of 0: same: distance 0.0")
    other = slow_distribution(tiny.reference, 0.6, 0, 1.0)
    assert np.abs(other - p).sum() > 0.3
    [bad] = judge_frequencies(checkpoint, outputs(draw.choice(61, 2000, p=other)), settings)
    assert bad.kind == "diverged"
    both = judge_frequencies(checkpoint, [*good, *outputs(draw.choice(61, 2000, p=other), 0.6)], settings)
    assert [each.kind for each in both] == ["same", "same"]  # records of another temperature are another group


def test_what_frequencies_cannot_tell(checkpoint, tiny):
    def reason(given, **settings):
        [found] = judge_frequencies(checkpoint, given, Settings(**settings))
        return found.kind, found.reason

    assert reason(outputs([1] * 9), temperature=1.0)[0] == "unchecked"
    assert reason(outputs([1] * 9), temperature=1.0)[1].startswith("too few to tell; distance ")
    assert reason(outputs([1] * 9)) == ("unchecked", "greedy answers have no frequencies; state a temperature.")
    best = int(np.argmax(slow_distribution(tiny.reference, 1.0, 0, 1.0)))
    kind, says = reason(outputs([(best + 1) % 61]), temperature=1.0, top_k=1)
    assert (kind, says[:55]) == ("diverged", "1 begin with a token that cuts or min_tokens leave out;")
    empty = [Output(prompt=Prompt(id=9, token_ids=PROMPT), token_ids=[])] * 2
    assert reason(outputs([1] * 9) + empty, temperature=1.0) == ("incomplete", "2 are empty.")


@pytest.mark.parametrize(
    ("prompt", "settings", "says"),
    [
        ([99999], {}, "holds token id 99999, but ids are 0 to 60."),
        ([10**30], {}, "holds token id 1000000000000000000000000000000, but"),
        ([1] * 600, {}, "more than the model's context of 512"),
        ([1], {"top_p": 7}, "top_p must be above 0 and at most 1, got 7"),
        ([1], {"temperature": 1e-50}, "greedy answers have no frequencies"),
    ],
)
def test_what_the_model_cannot_read_is_not_judged(checkpoint, prompt, settings, says):
    given = [Output(prompt=Prompt(id=0, token_ids=prompt), token_ids=[1])] * 100
    [found] = judge_frequencies(checkpoint, given, Settings(**({"temperature": 1.0} | settings)))
    assert found.kind == "unchecked"
    assert says in found.reason


def test_unreadable_records_are_no_group(checkpoint):
    given = [Output(prompt=Prompt(id=i, token_ids=[]), token_ids=[1], error=f"error {i % 2}.") for i in range(4)]
    found = judge_frequencies(checkpoint, given, Settings(temperature=1.0))
    assert [each.reason for each in found] == ["error 0.", "error 1."]
