"""What the tokens of a file say together: sums by hand, and error rates over many simulated files."""

import json
import math

import numpy as np
import pytest
from scipy import stats

from jax_probe_mtp.sameness.evidence import BLOCK, MARGIN_CLIP, Evidence, Likelihoods, p_of_same, wilson
from jax_probe_mtp.sameness.token_scores import Fit, TokenScores

FILES, ANSWERS, TOKENS, V = 400, 4, 250, 20  # of the simulation: 1,000 tokens a file
FIELDS = ("logprob", "entropy", "variance", "above")


def fit(size, **values):
    zero = np.zeros(size)
    return Fit(**{name: np.asarray(values.get(name, zero), np.float64) for name in FIELDS})


def scores(margin, own=None, stated=None):
    margin = np.asarray(margin, np.float64)
    rank, nothing = (margin > 0).astype(np.int32), fit(margin.size)
    stated = stated or nothing
    beyond = np.where(np.isfinite(stated.logprob), 0.0, 1.0)
    return TokenScores(margin=margin, beyond=beyond, rank=rank, own=own or nothing, stated=stated)


def evidence(*answers):
    found = Evidence()
    for margin in answers:
        found.add(scores(margin))
    return found


def test_counts_by_hand():
    found = evidence([0, 0, 0.5, 0], [0, 0], [2, 0, 0, 9])
    assert (found.tokens, found.agreeing, found.records) == (10, 7, 3)
    assert found.match_rate == 0.7
    assert found.mean_margin == pytest.approx((0.5 + 2 + MARGIN_CLIP) / 10)
    assert (found.first_differences, found.tokens_to_first) == (2, 3 + 2 + 1)
    report = found.as_json()
    assert report["first_differences_per_1000_tokens"] == pytest.approx(1000 * 2 / 6)
    assert (report["judged_as"], report["tokens"], report["match_rate"]) == ("greedy", 10, 0.7)
    assert "p_likelihood" not in report


def test_wilsons_interval():
    """8 of 10: z² = 3.8415; (0.8 + 0.19207) / 1.38415 ± sqrt(3.8415 (0.016 + 0.0096037)) / 1.38415."""
    assert wilson(0.8, 10) == pytest.approx((0.71674 - 0.22658, 0.71674 + 0.22658), abs=2e-5)
    for k, n in ((0, 7), (7, 7), (8, 10), (990, 1000)):
        expected = stats.binomtest(k, n).proportion_ci(method="wilson")
        assert wilson(k / n, n) == pytest.approx((expected.low, expected.high), abs=1e-12)
    low, high = wilson(0.5, 100, confidence=0.9)
    expected = stats.binomtest(50, 100).proportion_ci(0.9, method="wilson")
    assert (low, high) == pytest.approx((expected.low, expected.high))


def test_the_interval_is_wider_where_answers_differ():
    alike = evidence(*[[0] * 9 + [1]] * 20)
    assert alike.match_interval == pytest.approx(wilson(0.9, 200))
    differing = evidence(*[[0] * 10] * 18, *[[1] * 10] * 2)
    # Σ(k - rn)² = 18·1 + 2·81 = 180; ·20/19 / 200² over 0.9·0.1/200: an effect of 10.526
    assert differing.match_interval == pytest.approx(wilson(0.9, 200 / (200 / 19)))
    assert np.diff(differing.match_interval) > 2.5 * np.diff(alike.match_interval)


def test_the_interval_holds_for_answers_that_differ():
    """Rates of answers are 0.6 or 1: an interval that ignored it would miss the truth in half of the files.

    Of 400 files 95% would hold it 380 times, and fewer than 364 times with a chance of 3 in 10,000.
    """
    drawn = np.random.default_rng(3)
    held = 0
    for _ in range(400):
        rates = drawn.choice([0.6, 1.0], 40)
        found = evidence(*[drawn.uniform(size=50) > rate for rate in rates])
        low, high = found.match_interval
        held += low <= 0.8 <= high
    assert held >= 0.91 * 400


def test_quantiles_of_gaps_are_within_6_percent():
    gaps = np.exp(np.random.default_rng(0).normal(-3, 2, 5000))
    found = evidence(*np.split(np.concatenate([gaps, np.zeros(5000)]), 10))
    assert set(found.gap_quantiles) == {"0.5", "0.9", "0.99"}
    for q, value in found.gap_quantiles.items():
        assert value == pytest.approx(np.quantile(gaps, float(q)), rel=0.06)
    assert evidence([0, 0]).gap_quantiles == {}
    assert evidence([math.inf]).gap_quantiles["0.5"] >= 100  # a token that cuts leave out


def test_ambiguous_tokens_count_nowhere():
    drawn = np.random.default_rng(0)
    margin = np.maximum(drawn.normal(size=700), 0)
    fits = fit(
        700, logprob=-margin - 1, entropy=margin * 0 + 1.2, variance=margin * 0 + 0.5, above=drawn.uniform(size=700)
    )
    is_ambiguous = drawn.uniform(size=700) < 0.3
    is_ambiguous[margin.argmax()] = True
    for is_drawn in (False, True):
        with_them, without = Evidence(is_drawn=is_drawn), Evidence(is_drawn=is_drawn)
        with_them.add(scores(margin, fits, fits), is_ambiguous)
        left = Fit(**{name: getattr(fits, name)[~is_ambiguous] for name in FIELDS})
        without.add(scores(margin[~is_ambiguous], left, left))
        assert with_them.ambiguous == is_ambiguous.sum()
        assert with_them.as_json() == without.as_json() | {"ambiguous_tokens": with_them.ambiguous}
        assert with_them.blocks == without.blocks != []
    nothing = Evidence()
    nothing.add(scores([1.0]), np.asarray([True]))
    assert (nothing.tokens, nothing.records, nothing.ambiguous, nothing.first_differences) == (0, 0, 1, 0)


def test_blocks_are_means_of_300_tokens_across_answers():
    margin = np.maximum(np.random.default_rng(0).normal(4, 3, 1000), 0)
    found = evidence(margin[:250], margin[250:251], margin[251:])
    expected = np.minimum(margin[:900], MARGIN_CLIP).reshape(3, BLOCK).mean(axis=1)
    assert BLOCK == 300
    np.testing.assert_allclose(found.blocks, expected)
    drawn, likely = Evidence(is_drawn=True), np.random.default_rng(1).normal(-2, 1, 650)
    likely[5:20] = -math.inf  # impossible tokens are counted, and in no block
    drawn.add(scores(np.zeros(650), stated=fit(650, logprob=likely, entropy=np.full(650, 1.9))))
    is_possible = np.isfinite(likely)
    np.testing.assert_allclose(
        drawn.blocks, [-(likely[is_possible][:600] + 1.9).reshape(2, 300).mean(1)[n] for n in (0, 1)]
    )
    assert (drawn.impossible, drawn.tokens, drawn.as_json()["impossible_tokens"]) == (15, 650, 15)


def test_an_empty_file_has_no_values_and_says_so():
    for is_drawn in (False, True):
        found = Evidence(is_drawn=is_drawn)
        text = json.dumps(found.as_json(), allow_nan=False)
        assert '"match_rate": null' in text
        assert found.lines() == ["no token could be compared"]
        with pytest.raises(ValueError, match="too few to tell from the baseline: 0 and 0 blocks of 300 tokens"):
            p_of_same(found, found)


def test_lines_hold_no_nan():
    """Draws with top-k 1 cannot vary: there is no z, and a line says it in words."""
    found = Evidence(is_drawn=True)
    found.add(scores(np.zeros(5)))
    assert math.isnan(found.z)
    assert "nan" not in " ".join(found.lines())


def softmax(logits, temperature=1.0):
    p = np.exp((logits - logits.max(1, keepdims=True)) / temperature)
    return p / p.sum(1, keepdims=True)


def fits_of(p, token):
    """By sorting; `p` in descending order, so that what goes before a token stands before it."""
    logp = np.log(p)
    mean = (p * logp).sum(1)
    rows = np.arange(len(p))
    return Fit(
        logprob=logp[rows, token],
        entropy=-mean,
        variance=(p * logp**2).sum(1) - mean**2,
        above=np.cumsum(p, axis=1)[rows, token] - p[rows, token],
    )


@pytest.fixture(scope="module")
def simulated():
    """(temperature of the draws) -> evidence of each file, which states temperature 1."""
    drawn = np.random.default_rng(7)

    def files(temperature, count=FILES):
        found = []
        for _ in range(count):
            logits = -np.sort(-drawn.normal(0, 2, (ANSWERS * TOKENS, V)), axis=1)
            reached = np.cumsum(softmax(logits, temperature), axis=1)
            token = np.minimum((reached < drawn.uniform(size=(len(logits), 1))).sum(1), V - 1)
            fits = fits_of(softmax(logits), token)
            each = Evidence(is_drawn=True)
            for rows in np.split(np.arange(len(logits)), ANSWERS):
                part = Fit(**{name: getattr(fits, name)[rows] for name in FIELDS})
                each.add(scores(logits[rows, 0] - logits[rows, token[rows]], stated=part))
            found.append(each)
        return found

    return files


def test_draws_of_the_model_are_told_so(simulated):
    """Bounds fail by chance about once in 1,000 runs each: z has a mean within 3.3 / 20 and a spread within 3.3 / 28."""
    found = simulated(1.0)
    z = np.asarray([each.z for each in found])
    assert abs(z.mean()) < 3.3 / math.sqrt(FILES)
    assert abs(z.std() - 1) < 3.3 / math.sqrt(2 * FILES)
    assert sum(each.p_likelihood < 0.01 for each in found) <= 12  # Poisson of mean 4
    assert stats.kstest([each.p_likelihood for each in found], "uniform").pvalue > 1e-3
    p_uniform = np.asarray([each.p_uniform for each in found])
    assert stats.kstest(p_uniform, "uniform").pvalue > 1e-3
    assert (p_uniform < 0.01).sum() <= 12


@pytest.mark.parametrize(("temperature", "sign"), [(0.8, 1), (1.25, -1)])
def test_draws_at_another_temperature_are_found(simulated, temperature, sign):
    """Likelihood finds nearly each of them in 1,000 tokens; the less special test of places most."""
    found = simulated(temperature, 60)
    assert sum(each.p_likelihood < 0.01 and each.z * sign > 0 for each in found) >= 57
    assert sum(each.p_uniform < 0.01 for each in found) >= 40


def test_greedy_text_is_no_draw(simulated):
    [found] = simulated(0.01, 1)
    assert found.p_likelihood < 1e-6
    assert found.p_uniform < 1e-6
    assert found.match_rate > 0.9


def with_blocks(blocks):
    return Evidence(blocks=list(blocks), tokens=BLOCK * len(blocks))


def test_a_p_value_against_a_baseline_errs_as_often_as_it_says():
    """1,000 honest files: fewer than 10 ± 12 below 0.01 but once in some 1,000 runs; files a spread worse are mostly found."""
    drawn = np.random.default_rng(5)
    honest = [p_of_same(with_blocks(drawn.gamma(2, 1, 15)), with_blocks(drawn.gamma(2, 1, 40))) for _ in range(1000)]
    assert 1 <= sum(p < 0.01 for p in honest) <= 21
    worse = [
        p_of_same(with_blocks(drawn.gamma(2, 1, 15) + 2**0.5), with_blocks(drawn.gamma(2, 1, 40))) for _ in range(100)
    ]
    assert sum(p < 0.01 for p in worse) >= 85


def test_two_files_without_any_gap_are_the_same():
    """Every block of honest greedy float32 text is 0."""
    assert p_of_same(with_blocks([0.0] * 12), with_blocks([0.0] * 30)) > 0.5
    assert p_of_same(with_blocks([0.0] * 6 + [0.01] * 6), with_blocks([0.0] * 30)) < 0.01


def test_likelihoods_add_up_and_say_when_they_decided():
    found = Likelihoods()
    found.add(np.asarray([-1.0, -1.0]), np.asarray([-3.0, -3.0]))  # 2, 4 nats; log(100) is 4.605
    assert (found.log_ratio, found.tokens, found.decided_after) == (4.0, 2, None)
    assert "explain the tokens alike" in found.line("A", "B")
    found.add(np.asarray([-1.0, -0.5, -3.0]), np.asarray([-1.5, -0.75, -1.0]))  # 4.5, 4.75, 2.75
    assert (found.log_ratio, found.tokens, found.decided_after) == (2.75, 5, None)  # it fell back
    found.add(np.asarray([-1.0]), np.asarray([-5.0]))
    assert (found.log_ratio, found.decided_after) == (6.75, 4)
    other = Likelihoods()
    other.add(np.asarray([-9.0]), np.asarray([-1.0]))
    assert (other.log_ratio, other.decided_after) == (-8.0, 1)
    assert other.line("A", "B").startswith("B explains the tokens, not A: log-likelihood ratio 8.0 nats over 1 tokens")
    assert other.line("A", "B").endswith("decided after 1")


def test_a_ratio_that_turned_is_not_said_to_have_decided_for_the_other():
    """+6 nats after one token speak for A; -6 at the end for B, which nothing had decided by then."""
    found = Likelihoods()
    found.add(np.asarray([0.0, -9.0, -9.0]), np.asarray([-6.0, -3.0, -3.0]))
    assert found.log_ratio == -6
    assert not found.line("A", "B").endswith("decided after 1")


def test_an_impossible_token_counts_with_a_bound():
    found = Likelihoods()
    found.add(np.asarray([-math.inf, -1.0]), np.asarray([-math.inf, -1.0]))
    assert (found.log_ratio, found.tokens, found.decided_after) == (0.0, 2, None)
    found.add(np.asarray([-math.inf]), np.asarray([-1.0]))
    assert (found.log_ratio, found.decided_after) == (-Likelihoods.MOST_A_TOKEN, 3)
    found.add(np.asarray([-1.0, -2.0]), np.asarray([-math.inf, -2.0]))
    assert (found.log_ratio, found.tokens) == (0.0, 5)
    found.add(np.asarray([]), np.asarray([]))
    assert found.tokens == 5
