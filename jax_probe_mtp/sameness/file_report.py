"""Says of a whole file of outputs what its tokens say together: rates, tests, likelihoods under two models, and causes."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import numpy as np

from jax_probe_mtp.decoding.settings import Settings
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.sameness.causes import FITS, Causes
from jax_probe_mtp.sameness.evidence import BLOCK, FALSE_ALARM, Evidence, Likelihoods, p_of_same
from jax_probe_mtp.sameness.given_outputs import examine
from jax_probe_mtp.sameness.output import Examined, Output
from jax_probe_mtp.sameness.token_scores import GREEDY_TEMPERATURE
from jax_probe_mtp.sameness.verdicts import DIVERGED, INCOMPLETE, UNCHECKED, Verdict, counts_line, status_of, summary

_AROUND = 8  # tokens before a difference that are shown


@dataclasses.dataclass
class FileReport:
    """What was found of a file. Greedy outputs, and draws whose seeds are known, are judged apart from draws of unknown seeds.

    Attributes:
      checkpoint: the model.
      settings: those of outputs that have none of their own.
      knows_seeds: False where the seeds of drawn outputs are not known.
      of_each: told of every output that was examined, as it comes: rows of a table, points of a figure.
      other: another model that may explain the outputs, and its name; None where nobody asked.
    """

    checkpoint: Checkpoint
    settings: Settings
    knows_seeds: bool = True
    of_each: Callable[[Examined], None] = lambda found: None
    other: tuple[str, Checkpoint] | None = None

    def __post_init__(self) -> None:
        """Begins with no output."""
        self.greedy, self.drawn = Evidence(), Evidence(is_drawn=True)
        self._sharp, self._own, self._other_greedy = Likelihoods(), Likelihoods(), Evidence()
        self._stated_apart, self._num_stated = 0.0, 0
        self.totals: dict[str, Any] = summary([])
        self._causes = Causes(self.checkpoint.eos_token_ids, self.settings)
        self._baseline: FileReport | None = None

    def verdicts(self, outputs: Iterable[Output]) -> Iterator[Verdict]:
        """Examines outputs, adds them up and gives their verdicts, in the order given."""
        first, second = itertools.tee(outputs)
        found = examine(self.checkpoint, first, self.settings, knows_seeds=self.knows_seeds)
        if self.other is None:
            pairs: Iterator[tuple[Examined, Examined | None]] = ((each, None) for each in found)
        else:
            under_other = examine(self.other[1], second, self.settings, knows_seeds=self.knows_seeds)
            pairs = zip(found, under_other, strict=True)
        del second  # which would keep every output
        for each, other in pairs:
            self.add(each, other)
            yield _with_text(self.checkpoint, each)

    def compare_with(self, baseline: "FileReport") -> None:
        """Takes a file of outputs that are known to be good, whose verdicts were read."""
        self._baseline = baseline

    def add(self, found: Examined, other: Examined | None = None) -> None:
        """Adds what was found of an output, and of the same output under the other model."""
        if found.choices is None or found.choices.given is None:
            self.of_each(found)
            return
        scores = found.choices.given
        has_temperature = found.output.prompt.of("temperature", self.settings) > 0
        is_drawn = has_temperature and not self.knows_seeds
        if not is_drawn:  # of a known seed the noise belongs to the score
            margin = np.asarray(found.choices.best_score_BA) - np.asarray(found.choices.given_score_BA)
            scores = scores.replace(margin=margin)
        (self.drawn if is_drawn else self.greedy).add(scores, found.is_ambiguous)
        self._causes.add(found, has_temperature)
        if other is not None and other.choices is not None and other.choices.given is not None:
            other_scores = other.choices.given
            # A model may have another end of text, and a text another cut.
            pairs = zip(found.output.token_ids, other.output.token_ids, strict=False)
            alike = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
            size = min(len(scores.margin), len(other_scores.margin), alike)
            is_used = np.ones(size, np.bool_) if found.is_ambiguous is None else ~found.is_ambiguous[:size]
            for ratio, name in ((self._sharp, "stated"), (self._own, "own")):
                one, two = (np.asarray(getattr(each, name).logprob)[:size] for each in (scores, other_scores))
                ratio.add(one[is_used], two[is_used])
            if not is_drawn:
                self._other_greedy.add(other_scores, other.is_ambiguous)
        self._compare_stated(found)
        self.of_each(found)

    def _compare_stated(self, found: Examined) -> None:
        """Adds how far the log-probabilities that the file states are from the model's, at temperature 1."""
        if found.output.logprobs is None or found.choices is None or found.choices.given is None:
            return
        own = np.asarray(found.choices.given.own.logprob, np.float64)
        apart = np.abs(np.asarray(found.output.logprobs, np.float64)[: len(own)] - own)
        apart = apart[np.isfinite(apart)]
        self._stated_apart, self._num_stated = self._stated_apart + float(apart.sum()), self._num_stated + apart.size

    @property
    def _is_sharp(self) -> bool:
        """Says whether greedy text is compared at a low temperature: it must be one of the models' own for that."""
        rates = [each.match_rate for each in (self.greedy, self._other_greedy) if each.tokens]
        return not rates or max(rates) >= FITS

    @property
    def likelihoods(self) -> Likelihoods:
        """Gives the ratio of the two models' likelihoods."""
        return self._sharp if self._is_sharp else self._own

    @property
    def _likelihood_of(self) -> str:
        if not self._is_sharp:
            return "at temperature 1: the text is not either one's greedy text"
        if self.greedy.tokens:
            return f"greedy tokens as if drawn at temperature {GREEDY_TEMPERATURE}: a score, with no error rate"
        return "one error in a hundred"

    @property
    def match_rate(self) -> float:
        """Gives the share of greedy tokens, and of draws with known seeds, that are the model's own; NaN of none."""
        return self.greedy.match_rate

    def lines(self, name: str) -> list[str]:
        """Says all of it in a line each for people; `name` is the model's."""
        parts = [evidence for evidence in (self.greedy, self.drawn) if evidence.tokens] or [self.greedy]
        found = [line for evidence in parts for line in evidence.lines()]
        if self.drawn.p_draws < FALSE_ALARM:
            found.append("not draws of this model at the stated temperature and cuts")
        if self._num_stated:
            apart = f"{self._stated_apart / self._num_stated:.4f} nats from the model's on average"
            found.append(f"stated log-probabilities are {apart}, of {self._num_stated} tokens")
        if self._baseline is not None:
            parts = [part for part in (self._baseline.greedy, self._baseline.drawn) if part.tokens]
            counts = counts_line(self._baseline.totals)
            found += [f"baseline: {line}" for line in [*(part.lines()[0] for part in parts), counts]]
        kind = {True: "drawn tokens", False: "greedy tokens and draws of known seeds"}
        found += [f"{kind[is_drawn]}: {says}" for is_drawn, _, says in self._against_baseline()]
        if self.other is not None:
            found.append(f"{self.likelihoods.line(name, self.other[0])} ({self._likelihood_of})")
        found += [f"cause: {line}" for line in self.causes]
        return found

    @property
    def causes(self) -> list[str]:
        """Says what explains the file; found once, since it asks the model."""
        if not hasattr(self, "_found_causes"):
            self._found_causes = self._causes.lines(self.checkpoint, self.settings.batch_size)
        return self._found_causes

    @property
    def p_values(self) -> dict[str, float]:
        """Gives the p-values of the tests with an error rate that could be made: of draws alone, and against the baseline."""
        found = {"draws": self.drawn.p_draws}
        for is_drawn, p, _ in self._against_baseline():
            if p is not None:
                found["drawn_against_baseline" if is_drawn else "greedy_against_baseline"] = p
        return {name: p for name, p in found.items() if not math.isnan(p)}

    def conclusion(self, totals: dict[str, Any]) -> str:
        """Says in one line whether the model made the file, as far as it was examined; `totals` of its verdicts."""
        records, is_drawn = totals["records"], self.drawn.tokens > 0
        against = {name: p for name, p in self.p_values.items() if p < FALSE_ALARM}
        if totals[DIVERGED]:
            more = "; the causes say what may explain them" if self.causes else ""
            says = "hold tokens that the cuts leave out" if not self.greedy.tokens else "differ by more than a tie"
            return f"not this model's as stated: {totals[DIVERGED]} of {records} outputs {says}{more}"
        if "draws" in against:
            return f"not draws of this model as stated: p = {against['draws']:.2g}"
        if against:
            return f"not made as the baseline was: p = {min(against.values()):.2g}"
        if not records:
            return "not known: the file holds no outputs"
        if totals[UNCHECKED]:
            return f"not known: {totals[UNCHECKED]} of {records} outputs could not be checked"
        if not self.greedy.tokens and not is_drawn:
            return "not known: no token could be compared"
        parts = f", but {totals[INCOMPLETE]} of {records} outputs are no whole answers" if totals[INCOMPLETE] else ""
        if is_drawn:
            p = self.p_values.get("draws")
            says = "" if p is None else f" (p = {p:.2g})"
            return f"nothing speaks against this model{says}, which does not prove that it drew them{parts}"
        if parts:
            return f"what is there is this model's{parts}"
        return "this model's: every token that was compared is its own choice, or ties with it"

    def status(self, totals: dict[str, Any]) -> int:
        """Gives the exit status: 1 where one of `p_values` speaks against the file, else that of the counts of its verdicts."""
        return 1 if any(p < FALSE_ALARM for p in self.p_values.values()) else status_of(totals)

    def _against_baseline(self) -> Iterator[tuple[bool, float | None, str]]:
        if self._baseline is None:
            return
        for mine, good in ((self.greedy, self._baseline.greedy), (self.drawn, self._baseline.drawn)):
            if not mine.tokens:
                continue
            try:
                p = p_of_same(mine, good)
            except ValueError as error:
                yield mine.is_drawn, None, str(error)
                continue
            blocks = f"{len(mine.blocks)} blocks of {BLOCK} tokens against {len(good.blocks)}"
            says = "not made as the baseline was" if p < FALSE_ALARM else "nothing tells them from the baseline"
            yield mine.is_drawn, p, f"p = {p:.2g}, {says} ({blocks})"

    def as_json(self) -> dict[str, Any]:
        """Gives all of it as a report holds it."""
        record: dict[str, Any] = {
            "greedy": self.greedy.as_json() if self.greedy.tokens else None,
            "drawn": self.drawn.as_json() if self.drawn.tokens else None,
            "causes": self.causes,
        }
        if self._baseline is not None:
            p_values = {("drawn" if is_drawn else "greedy"): p for is_drawn, p, _ in self._against_baseline()}
            record |= {"baseline": self._baseline.as_json(), "p_against_baseline": p_values}
        if self.other is not None:
            record["against_model"] = {
                "model": self.other[0],
                "favours_it": self.likelihoods.log_ratio < 0,
                "log_likelihood_ratio": self.likelihoods.log_ratio,
                "tokens": self.likelihoods.tokens,
                "decided_after_tokens": self.likelihoods.decided_after,
            }
        return record


def _with_text(checkpoint: Checkpoint, found: Examined) -> Verdict:
    """Adds the text around the place that decides."""
    place = found.verdict.difference
    if place is None or place.other_token is None or place.plain_token is None or checkpoint.tokenizer is None:
        return found.verdict
    ids = list(found.output.token_ids)

    def text(token_ids: list[int]) -> str:
        return repr(checkpoint.tokenizer.decode(token_ids))[:80]

    before = text(ids[max(0, place.position - _AROUND) : place.position])
    says = f"; behind {before} plain says {text([place.plain_token])}, this {text([place.other_token])}"
    return dataclasses.replace(found.verdict, more=found.verdict.more + says)
