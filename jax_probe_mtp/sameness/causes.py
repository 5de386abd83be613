"""Finds why outputs are not the model's: one line for each cause that explains them, with the evidence for it.

What is cheap is counted of every answer. Of the first answers that differ some are kept, and asked what they would be under
other prompts and at other temperatures: a few passes over a few texts, whatever the size of the file.
"""

import dataclasses
from collections import Counter
from collections.abc import Sequence

import numpy as np

from jax_probe_mtp.decoding.settings import Settings
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.sameness.first_difference import MANTISSA_BITS
from jax_probe_mtp.sameness.output import FITS, Examined, best_fits
from jax_probe_mtp.sameness.own_choices import choices_of
from jax_probe_mtp.sameness.verdicts import DIVERGED

KEPT = 24  # answers that other prompts and temperatures are tried on
TRIED = 3  # of them, answers that each other prompt is tried on
# Those that prompts of other records are tried on where few of the first ones fit: the record that an answer belongs to may be
# missing from the file.
TRIED_ON_RECORDS = 15
# Measured (docs/verify.md): under another prompt the first tokens differ three times as often as those behind the sixteenth, or
# more often, since a text goes on from itself; under other weights at most 1.7 times, under temperatures 1.2 times.
OPENING, LATER, OPENING_RATIO = 2, 16, 2.5
LEAST_GAP = 0.15  # nats, the median under another prompt; eight bits and bfloat16 have 0.1 and less
# Draws at lower temperatures and greedy text of weights with few bits have the same statistics, but for cuts.
LEAST_TEMPERATURE = 0.65
MISFITS = 0.8  # share below which a greedy answer has another prompt, or is none of this model
LEAST_OF_PROMPT = 4  # tokens, which an answer may well begin with by itself
LEAST_OF_ANSWER = 8  # tokens, below which an answer alone tells nothing
MOST_PROMPTS, MOST_ALIKE = 500, 8  # prompts that are kept, and those that are tried on an answer
LEAST_DIFFERENCES = 10  # that say something of weights
MOST_OF_NEIGHBOURS = 4  # standard deviations
LEAST_TOKENS = 100  # compared ones, below which no cause of differences is named
TEMPERATURES = (0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0, 1.15, 1.3)
PIT_BINS, TAIL = 10, 0.03


@dataclasses.dataclass
class Causes:
    """What the answers of a file had in common so far.

    Attributes:
      end_ids: tokens that end a text.
      settings: those of outputs that have none of their own.
      answers: those with a compared token.
      begin_with_prompt: answers whose tokens begin with their prompt's, which are not the model's best there.
      short: answers that end before an end of text and before their limit.
      short_of_end: of them, those behind which the model would say the end of text.
      tokens: compared tokens of greedy answers.
      differences: of them, those that are not the model's best.
      within_bfloat16: of those, gaps of at most one step of bfloat16.
      had_best: differences where the model's best token had been in the text before, and the token that is there had not.
      openings: of the tokens compared and of the differences, those among the first `OPENING` of an answer.
      laters: the same of those behind the first `LATER`.
      other_draws: answers that were drawn with known seeds, as they say, and are not those draws.
      misfits: greedy answers whose own share of tokens that are the model's best is below `MISFITS`.
      misfit_differences: their differences.
    """

    end_ids: Sequence[int]
    settings: Settings
    answers: int = 0
    begin_with_prompt: int = 0
    short: int = 0
    short_of_end: int = 0
    tokens: int = 0
    differences: int = 0
    within_bfloat16: int = 0
    had_best: int = 0
    other_draws: int = 0
    misfits: int = 0
    misfit_differences: int = 0

    def __post_init__(self) -> None:
        """Begins with no answer kept."""
        self.openings, self.laters = np.zeros(2, np.int64), np.zeros(2, np.int64)
        self._gaps: list[float] = []  # of the first differences, enough for a median
        self._kept: list[Examined] = []
        self._misfitting: list[Examined] = []
        self._prompts: dict[tuple[str | int, int], Sequence[int]] = {}  # of answers that differ, by record and sample

    def add(self, found: Examined, is_drawn: bool) -> None:
        """Adds an answer; `is_drawn` says that it has a temperature, so that it need not be the model's best everywhere."""
        if found.choices is None:
            return
        output, ids, size = found.output, list(found.output.token_ids), len(found.choices.best_BA)
        prompt = list(output.prompt.token_ids)
        self.answers += 1
        is_other = found.choices.best_BA != np.asarray(ids[:size])
        begins_so = LEAST_OF_PROMPT <= len(prompt) < len(ids) and ids[: len(prompt)] == prompt
        self.begin_with_prompt += bool(begins_so and is_other[: len(prompt)].any())
        if found.is_ambiguous is not None:
            is_other &= ~found.is_ambiguous
        if is_drawn:  # what it would say next is a draw as well
            self.other_draws += found.verdict.difference is not None and found.verdict.kind == DIVERGED
            return
        if found.next_token is not None:
            self.short += 1
            self.short_of_end += found.next_token in self.end_ids
        self.tokens += size if found.is_ambiguous is None else int((~found.is_ambiguous).sum())
        for counts, part in ((self.openings, is_other[:OPENING]), (self.laters, is_other[LATER:])):
            counts += np.asarray((part.size, part.sum()), np.int64)
        places = np.flatnonzero(is_other)
        self.differences += places.size
        seen, read = set(prompt), 0
        for place in places.tolist():
            best = float(found.choices.best_score_BA[place])
            gap = best - float(found.choices.given_score_BA[place])
            step = 2.0 ** (np.floor(np.log2(max(abs(best), 1e-30))) - MANTISSA_BITS["bfloat16"])
            self.within_bfloat16 += gap <= step
            seen.update(ids[read:place])
            read = place
            self.had_best += int(found.choices.best_BA[place]) in seen and ids[place] not in seen
            if len(self._gaps) < 10_000:
                self._gaps.append(gap)
        is_misfit = size >= LEAST_OF_ANSWER and places.size > (1 - MISFITS) * size
        self.misfits += is_misfit
        self.misfit_differences += places.size if is_misfit else 0
        if not places.size or output.prompt.own_settings(self.settings).is_penalized:  # the tries know no penalties
            return
        if len(self._prompts) < MOST_PROMPTS:
            self._prompts[output.prompt.id, output.prompt.sample] = output.prompt.token_ids
        for kept in [self._kept, *([self._misfitting] if is_misfit else [])]:
            if len(kept) < KEPT:
                kept.append(found)

    def lines(self, checkpoint: Checkpoint, batch_size: int) -> list[str]:
        """Says what explains the file; nothing where nothing does.

        Args:
          checkpoint: the model.
          batch_size: texts that are tried at a time.
        """
        found = [*self._of_form()]
        if self.other_draws:
            says = f"{self.other_draws} of {self.answers} outputs are not the draws of their seeds"
            found.append(
                f"other seeds, another noise or another model: {says}; --unknown-seeds judges their likelihood"
            )
        if self.tokens < LEAST_TOKENS or not self.differences or self._prompt_included():
            return found
        rate = 1 - self.differences / self.tokens
        if penalty := self._of_penalty():  # first: such a text may pass for one that was drawn
            return [*found, penalty]
        opens_otherwise = self._opens_otherwise()
        is_of_few = self.misfits <= self.answers / 2 and self.misfit_differences >= self.differences / 2
        if opens_otherwise or is_of_few or rate < FITS:
            if fit := self._of_prompt(checkpoint, batch_size):
                return [*found, fit]
            if opens_otherwise:
                return [*found, self._of_no_prompt()]
        if rate < FITS and (fit := _of_temperature(checkpoint, self._kept, batch_size)):
            return [*found, fit]
        if rate < MISFITS:
            return [*found, self._of_no_prompt()]
        return [*found, *self._of_gaps(rate)]

    def _opens_otherwise(self) -> bool:
        """Says whether answers differ above all where they begin."""
        (tokens, first), (later_tokens, later) = self.openings.tolist(), self.laters.tolist()
        if first < 5 or not later_tokens or float(np.median(self._gaps)) < LEAST_GAP:
            return False
        return bool(first / tokens >= OPENING_RATIO * later / later_tokens)

    def _of_form(self) -> list[str]:
        found = [line for line in [self._prompt_included()] if line]
        if self.short >= 3:
            if self.short_of_end >= 0.9 * self.short:
                says = f"of {self.short} outputs without one, the model would say it next in {self.short_of_end}"
                found.append(f"the end-of-text token was dropped: {says}")
            elif self.short_of_end <= 0.5 * self.short:
                goes_on = self.short - self.short_of_end
                found.append(
                    f"outputs were cut off: the model would go on behind {goes_on} of {self.short} that stop short"
                )
        return found

    def _prompt_included(self) -> str | None:
        if self.begin_with_prompt < max(1, 0.9 * self.answers):
            return None
        return f"the prompt is included: {self.begin_with_prompt} of {self.answers} outputs begin with their prompt's tokens"

    def _of_penalty(self) -> str | None:
        if self.differences < 20 or self.had_best < 0.7 * self.differences:
            return None
        says = "differences the model's own token had been in the text before, and the one that is there had not"
        return f"a repetition penalty was in force: in {self.had_best} of {self.differences} {says}"

    def _of_gaps(self, rate: float) -> list[str]:
        """Says what kind of differences there are where most tokens are the model's best."""
        n, median = self.differences, float(np.median(self._gaps))
        if n >= 5 and self.within_bfloat16 >= 0.8 * n:
            says = f"{self.within_bfloat16} of {n} gaps are within a step of bfloat16"
            return [f"rounding, as of bfloat16: {says}, {1000 * (1 - rate):.1f} differences for every 1,000 tokens"]
        if n >= LEAST_DIFFERENCES:
            says = f"{1000 * (1 - rate):.1f} differences for every 1,000 tokens, with a median gap of {median:.2f} nats"
            return [f"weights that differ a little everywhere, as quantized ones do: {says}"]
        return []

    def _of_no_prompt(self) -> str:
        first = (
            f"{self.openings[1]} of the first {self.openings[0]} of an answer and {self.laters[1]} of {self.laters[0]}"
        )
        of_all = f"{self.differences} of {self.tokens} tokens are not the model's best, {first} behind the {LATER}th"
        return f"another prompt, template, system message or model, none that was tried: {of_all}"

    def _of_prompt(self, checkpoint: Checkpoint, batch_size: int) -> str | None:
        """Tries other prompts on some answers, and names what fits; None where nothing does."""
        answers = (self._misfitting or self._kept)[:TRIED_ON_RECORDS]
        first, rest = answers[:TRIED], answers[TRIED:]
        fits = best_fits(checkpoint, first, lambda each: each.output.other_prompts().items(), batch_size)
        if fits and len(fits) * 2 >= len(first):
            rate, name, own = fits[0]
            says = f"the prompt {name} fits, {rate:.0%} of record {own!r}'s tokens are then the model's best"
            return f"another prompt or template: {says}"
        fits, tried = best_fits(checkpoint, first, self._alike, batch_size), first
        if len(fits) * 2 < len(tried):
            fits, tried = fits + best_fits(checkpoint, rest, self._alike, batch_size), answers
        # One may fit by chance, and one prompt that fits several answers is no swapped record's.
        if not fits or len({name for _, name, _ in fits}) < min(2, len(tried)):
            return None
        pairs = ", ".join(
            f"{own!r} fits the prompt of record {name!r} ({rate:.0%})" for rate, name, own in fits[:TRIED]
        )
        if len(fits[:TRIED]) < max(self.misfits, len(tried)):
            pairs += f"; {len(fits)} of {len(tried)} tried fit another's"
        return f"outputs were swapped between records: {pairs}"

    def _alike(self, found: Examined) -> list[tuple[str | int, Sequence[int]]]:
        """Gives the prompts of other records that share the most with an answer: each token counts as much as it is rare.

        None at all for a short answer, such as a label, which fits many.
        """
        if len(found.output.token_ids) < LEAST_OF_ANSWER:
            return []
        prompts = {key: set(ids) for key, ids in self._prompts.items()}
        count_of = Counter(token for tokens in prompts.values() for token in tokens)
        own, answer = (found.output.prompt.id, found.output.prompt.sample), set(found.output.token_ids)
        shared = {
            key: sum(1 / count_of[token] for token in tokens & answer) for key, tokens in prompts.items() if key != own
        }
        order = sorted(shared, key=lambda key: -shared[key])[: KEPT if len(shared) <= KEPT else MOST_ALIKE]
        return [(key[0], self._prompts[key]) for key in order]


def _of_temperature(checkpoint: Checkpoint, kept: Sequence[Examined], batch_size: int) -> str | None:
    """Says at which temperature answers look drawn: their likelihood is a draw's there, and their places are uniform."""
    texts = [(list(each.output.prompt.token_ids), list(each.output.token_ids)) for each in kept]
    excess, variance, tokens = np.zeros(len(TEMPERATURES)), np.zeros(len(TEMPERATURES)), 0
    # Of neighbours: those of draws are independent.
    lag, lag_variance = np.zeros(len(TEMPERATURES)), np.zeros(len(TEMPERATURES))
    places: list[np.ndarray] = []
    draws = np.random.default_rng(0)  # makes ranks continuous; the same file gives the same answer
    for n, choices in choices_of(checkpoint, texts, None, batch_size, is_scored=True, temperatures=TEMPERATURES):
        whole = kept[n].choices
        assert whole is not None
        assert choices.given is not None
        assert choices.given.at is not None
        size, fit = len(whole.best_BA), choices.given.at
        logprob, entropy, spread, above = (
            np.asarray(getattr(fit, name), np.float64)[:size] for name in ("logprob", "entropy", "variance", "above")
        )
        rest = logprob + entropy
        excess, variance, tokens = excess + rest.sum(0), variance + spread.sum(0), tokens + size
        lag, lag_variance = lag + (rest[1:] * rest[:-1]).sum(0), lag_variance + (spread[1:] * spread[:-1]).sum(0)
        places.append(above + draws.uniform(size=(size, 1)) * np.exp(logprob))
    z = excess / np.sqrt(np.maximum(variance, 1e-30))
    best = int(np.argmin(np.abs(z)))
    of_neighbours = lag[best] / np.sqrt(max(lag_variance[best], 1e-30))
    if tokens < LEAST_TOKENS or abs(z[best]) > 3 or abs(of_neighbours) > MOST_OF_NEIGHBOURS:
        return None
    place_X, temperature = np.concatenate(places)[:, best], TEMPERATURES[best]
    expected = tokens / PIT_BINS
    distance = float(((np.histogram(place_X, PIT_BINS, (0, 1))[0] - expected) ** 2 / expected).sum())
    if distance > 3 * PIT_BINS:  # a draw stays below that in all but 1 of 1,000 files
        return None
    says = f"their likelihood is that of draws at temperature {temperature:g} (z {z[best]:+.1f} over {tokens} tokens)"
    is_cut = (place_X > 1 - TAIL).sum() < tokens * TAIL / 2  # of draws the least likely ones are missing
    if temperature >= LEAST_TEMPERATURE or is_cut:
        cut = ", and the least likely tokens are missing, as with top-p or top-k" if is_cut else ""
        only_if = "give --temperature only if their maker states it: another model's greedy text looks alike"
        return f"the outputs look sampled, not greedy: {says}{cut}; {only_if}"
    return f"weights that differ much, as those of four or five bits do, or draws at a low temperature: {says}"
