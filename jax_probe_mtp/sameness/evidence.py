"""Adds up what the tokens of a file say about who made them: rates with intervals, and tests with an error rate.

Greedy text is judged by its margins: how far each token is behind the model's best. Drawn text whose seeds nobody knows is
judged by its likelihood: the sum of log p + entropy over all tokens has mean 0 and a known variance if the model drew them,
and the place of each token in its distribution is uniform (the probability integral transform, made continuous by chance:
Smith, 1985; Czado, Gneiting and Held, "Predictive Model Assessment for Count Data", 2009).
"""

import dataclasses
import math
from typing import Any

import numpy as np
import scipy  # its parts are imported where they are used: they take a second, which no other command should wait for

from jax_probe_mtp.sameness.token_scores import BORDER, TokenScores

BLOCK = 300  # tokens that are one sample of a file: those of one answer depend on each other
MARGIN_CLIP = 5.0  # nats that count at most: one absurd token must not outweigh many small gaps
CONFIDENCE = 0.95
FALSE_ALARM = 0.01  # below this p-value a file is not what it is said to be
PIT_BINS = 20
# Bounds of the histogram that quantiles of gaps are read from, for a file need not fit memory: 40 bins a factor of ten.
_GAP_EDGES = np.logspace(-6, 3, 9 * 40 + 1)
QUANTILES = (0.5, 0.9, 0.99)
_PIT_SEED = 20_090_401  # of what makes ranks continuous: the same file gives the same report


@dataclasses.dataclass
class Evidence:
    """What the compared tokens of a file said so far; memory does not grow with the file but for a number a block.

    Attributes:
      is_drawn: whether the tokens are judged as draws of unknown seeds; else as greedy choices.
      tokens: compared tokens; those that another cut of the text may explain are not.
      ambiguous: tokens that were left out for that.
      agreeing: tokens that are the model's best.
      impossible: drawn tokens that are more than `BORDER` beyond the stated cuts.
      records: answers with a compared token.
      first_differences: answers with a token that is not the model's best.
      tokens_to_first: tokens up to the first of them in each answer, it among them; all of an answer without one.
      margin_sum: of all tokens, each clipped at `MARGIN_CLIP`.
      excess: sum of log p + entropy of the possible tokens, in the stated distribution of drawn tokens, else the model's own.
      variance: what that sum has if the model drew them.
      blocks: for each whole block the mean of what tells files apart: clipped margins, or -(log p + entropy) of drawn tokens.
    """

    is_drawn: bool = False
    tokens: int = 0
    ambiguous: int = 0
    agreeing: int = 0
    impossible: int = 0
    records: int = 0
    first_differences: int = 0
    tokens_to_first: int = 0
    margin_sum: float = 0.0
    excess: float = 0.0
    variance: float = 0.0
    blocks: list[float] = dataclasses.field(default_factory=list)

    def __post_init__(self) -> None:
        """Begins the sums that nobody reads from outside."""
        self._gaps = np.zeros(len(_GAP_EDGES) + 1, np.int64)
        self._pit = np.zeros(PIT_BINS, np.int64)
        self._draws = np.random.default_rng(_PIT_SEED)
        self._squares = np.zeros(3)  # of agreeing and tokens of each record: kk, kn, nn
        self._open: list[float] = []  # of the block that is not whole

    def add(self, scores: TokenScores, is_ambiguous: np.ndarray | None = None) -> None:
        """Adds an answer.

        Args:
          scores: of its tokens, NumPy arrays [A].
          is_ambiguous: bool [A], those that are left out.
        """
        is_used = np.ones(scores.margin.shape, np.bool_) if is_ambiguous is None else ~np.asarray(is_ambiguous)
        self.ambiguous += int((~is_used).sum())
        margin = np.asarray(scores.margin, np.float64)[is_used]
        if not margin.size:
            return
        is_best = margin <= 0
        n, k = margin.size, int(is_best.sum())
        self.records, self.tokens, self.agreeing = self.records + 1, self.tokens + n, self.agreeing + k
        self._squares += (k * k, k * n, n * n)
        self.first_differences += k < n
        self.tokens_to_first += n if k == n else int(np.argmin(is_best)) + 1
        clipped = np.minimum(margin, MARGIN_CLIP)
        self.margin_sum += float(clipped.sum())
        np.add.at(self._gaps, np.searchsorted(_GAP_EDGES, margin[~is_best]), 1)
        fit = scores.stated if self.is_drawn else scores.own
        logprob, entropy, variance, above = (
            np.asarray(getattr(fit, name), np.float64)[is_used] for name in ("logprob", "entropy", "variance", "above")
        )
        is_possible = np.isfinite(logprob)
        self.impossible += int((np.asarray(scores.beyond)[is_used] > BORDER).sum()) if self.is_drawn else 0
        logprob, entropy, variance, above = (each[is_possible] for each in (logprob, entropy, variance, above))
        self.excess += float((logprob + entropy).sum())
        self.variance += float(variance.sum())
        place = np.clip(above + self._draws.uniform(size=above.shape) * np.exp(logprob), 0, 1 - 1e-12)
        np.add.at(self._pit, (place * PIT_BINS).astype(np.int64), 1)
        self._open.extend((-(logprob + entropy)).tolist() if self.is_drawn else clipped.tolist())
        while len(self._open) >= BLOCK:
            self.blocks.append(float(np.mean(self._open[:BLOCK])))
            del self._open[:BLOCK]

    @property
    def match_rate(self) -> float:
        """Gives the share of compared tokens that are the model's best; NaN of none."""
        return self.agreeing / self.tokens if self.tokens else math.nan

    @property
    def match_interval(self) -> tuple[float, float]:
        """Gives Wilson's interval of the match rate at 95%, widened by how much answers differ from each other.

        Tokens of one answer depend on each other, so as many tokens count as would, if they did not, give the spread that the
        rates of the answers have (a ratio estimate's design effect; Cochran, "Sampling Techniques", chapter 6).
        """
        if not self.tokens:
            return math.nan, math.nan
        rate, kk_kn_nn = self.match_rate, self._squares
        effect = 1.0
        if self.records > 1 and 0 < rate < 1:
            spread = kk_kn_nn[0] - 2 * rate * kk_kn_nn[1] + rate * rate * kk_kn_nn[2]
            spread *= self.records / (self.records - 1) / self.tokens**2
            effect = max(1.0, spread / (rate * (1 - rate) / self.tokens))
        return wilson(rate, self.tokens / effect)

    @property
    def mean_margin(self) -> float:
        """Gives the mean of the margins, each clipped at `MARGIN_CLIP`, in nats."""
        return self.margin_sum / self.tokens if self.tokens else math.nan

    @property
    def gap_quantiles(self) -> dict[str, float]:
        """Gives quantiles of the margins of tokens that are not the best, within 6%; empty where there are none."""
        total = self._gaps.sum()
        if not total:
            return {}
        reached = np.cumsum(self._gaps)
        edges = np.append(_GAP_EDGES, _GAP_EDGES[-1])
        return {f"{q:g}": float(edges[np.searchsorted(reached, q * total)]) for q in QUANTILES}

    @property
    def z(self) -> float:
        """Says how many standard deviations the likelihood is above what draws have; NaN where nothing could vary."""
        return self.excess / math.sqrt(self.variance) if self.variance > 0 else math.nan

    @property
    def p_likelihood(self) -> float:
        """Gives the two-sided p-value of `z`."""
        return float(2 * scipy.special.ndtr(-abs(self.z)))

    @property
    def p_uniform(self) -> float:
        """Gives the p-value of the tokens' places in their distributions being uniform (chi-square, 20 bins)."""
        total = self._pit.sum()
        if total < 5 * PIT_BINS:  # too few for a bin
            return math.nan
        expected = total / PIT_BINS
        return float(scipy.special.chdtrc(PIT_BINS - 1, ((self._pit - expected) ** 2 / expected).sum()))

    @property
    def p_draws(self) -> float:
        """Gives the p-value of both tests together (Bonferroni); NaN where neither could be made."""
        p_values = [p for p in (self.p_likelihood, self.p_uniform) if not math.isnan(p)]
        return min(1.0, len(p_values) * min(p_values)) if p_values else math.nan

    def as_json(self) -> dict[str, Any]:
        """Gives all of it as a report holds it; null stands where there is no value."""
        low, high = self.match_interval
        values: dict[str, Any] = {
            "judged_as": "drawn" if self.is_drawn else "greedy",
            "tokens": self.tokens,
            "ambiguous_tokens": self.ambiguous,
            "match_rate": self.match_rate,
            "match_rate_low": low,
            "match_rate_high": high,
            "mean_clipped_margin": self.mean_margin,
            "gap_quantiles": self.gap_quantiles,
            "first_differences_per_1000_tokens": (
                1000 * self.first_differences / self.tokens_to_first
                if self.tokens_to_first and not self.is_drawn
                else math.nan
            ),
            "z_likelihood": self.z,
            "blocks": len(self.blocks),
        }
        if self.is_drawn:
            values |= {
                "p_likelihood": self.p_likelihood,
                "p_uniform": self.p_uniform,
                "impossible_tokens": self.impossible,
            }
        return {
            name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()
        }

    def lines(self) -> list[str]:
        """Says it in a few lines for people."""
        if not self.tokens:
            return ["no token could be compared"]
        low, high = self.match_interval
        rate = f"{self.tokens} tokens: {self.match_rate:.4f} are the model's best ({low:.4f} to {high:.4f} at 95%)"
        left = f", {self.ambiguous} left out (another cut of the text)" if self.ambiguous else ""
        found = [f"{rate}, mean margin {self.mean_margin:.4f} nats{left}"]
        if self.gap_quantiles and not self.is_drawn:
            quantiles = ", ".join(f"{float(q):.0%} {value:.2g}" for q, value in self.gap_quantiles.items())
            per = 1000 * self.first_differences / self.tokens_to_first
            found.append(
                f"{per:.2f} first differences for every 1,000 tokens; gaps of all differences, in nats: {quantiles}"
            )
        if self.is_drawn:
            says = [f"{self.impossible} impossible tokens"]
            if not math.isnan(self.p_uniform):
                says.insert(0, f"places uniform with p = {self.p_uniform:.2g}")
            if not math.isnan(self.z):
                of_z = f"likelihood {self.z:+.2f} standard deviations from a draw's (p = {self.p_likelihood:.2g})"
                says.insert(0, of_z)
            found.append(", ".join(says))
        return found


def wilson(rate: float, count: float, confidence: float = CONFIDENCE) -> tuple[float, float]:
    """Gives Wilson's interval of a rate (Wilson, 1927); `count` need not be whole."""
    z2 = float(scipy.special.ndtri(0.5 + confidence / 2)) ** 2
    middle = (rate + z2 / (2 * count)) / (1 + z2 / count)
    half = math.sqrt(z2 * (rate * (1 - rate) / count + z2 / (4 * count * count))) / (1 + z2 / count)
    return max(0.0, middle - half), min(1.0, middle + half)


def p_of_same(found: Evidence, baseline: Evidence) -> float:
    """Gives the chance that blocks of an honest file are as far from the baseline's: Mann and Whitney's test.

    Margins of greedy tokens can only be too large. Draws may be too likely as well, at a lower temperature.

    Raises:
      ValueError: where there are too few whole blocks for any p-value to be below `FALSE_ALARM`.
    """
    n, m = len(found.blocks), len(baseline.blocks)
    if (1 + found.is_drawn) / math.comb(n + m, n) >= FALSE_ALARM:
        raise ValueError(
            f"too few to tell from the baseline: {n} and {m} blocks of {BLOCK} tokens, give 5 and 5 or more."
        )
    alternative = "two-sided" if found.is_drawn else "greater"
    return float(scipy.stats.mannwhitneyu(found.blocks, baseline.blocks, alternative=alternative).pvalue)


class Likelihoods:
    """Two models' likelihoods of the same tokens, and after how many of them the ratio had decided (Wald's sequential test).

    Attributes:
      log_ratio: sum of log p of the first model less that of the second, in nats.
      tokens: tokens so far.
      decided_after: tokens after which the ratio passed `BOUND` for the model that it ends with; None if it decides nothing.
    """

    BOUND = math.log(100)  # either way: one error in a hundred
    MOST_A_TOKEN = 20.0  # nats that count at most, or one token that a cut leaves out would decide alone

    def __init__(self) -> None:
        """Begins with no token."""
        self.log_ratio, self.tokens = 0.0, 0
        self._passed: dict[
            bool, int
        ] = {}  # for the first model, for the second: tokens after which the ratio passed the bound

    @property
    def decided_after(self) -> int | None:
        """Gives the tokens after which the ratio had decided."""
        return self._passed.get(self.log_ratio > 0) if abs(self.log_ratio) >= self.BOUND else None

    def add(self, logprob: np.ndarray, other: np.ndarray) -> None:
        """Adds the log-probabilities of an answer's tokens under both models, -inf where it is impossible."""
        with np.errstate(invalid="ignore"):
            step = np.nan_to_num(np.asarray(logprob, np.float64) - np.asarray(other, np.float64), nan=0.0)
        path = self.log_ratio + np.cumsum(np.clip(step, -self.MOST_A_TOKEN, self.MOST_A_TOKEN))
        if path.size:
            for is_first in (True, False):
                passed = np.flatnonzero((path if is_first else -path) >= self.BOUND)
                if passed.size:
                    self._passed.setdefault(is_first, self.tokens + int(passed[0]) + 1)
            self.log_ratio, self.tokens = float(path[-1]), self.tokens + path.size

    def line(self, name: str, other: str) -> str:
        """Says which of two models explains the tokens."""
        better, worse = (name, other) if self.log_ratio >= 0 else (other, name)
        ratio = f"log-likelihood ratio {abs(self.log_ratio):.1f} nats over {self.tokens} tokens"
        if abs(self.log_ratio) < self.BOUND:
            return f"{name} and {other} explain the tokens alike: {ratio}, {self.BOUND:.1f} would decide"
        return f"{better} explains the tokens, not {worse}: {ratio}, decided after {self.decided_after}"
