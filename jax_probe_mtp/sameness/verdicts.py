"""Says of outputs that should be plain decoding's whether they are: a verdict a record, and sums, as JSON and Markdown."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from jax_probe_mtp.files.markdown import cell, number, table
from jax_probe_mtp.sameness.first_difference import Difference

SAME, TIE, DIVERGED, INCOMPLETE, UNCHECKED = KINDS = ("same", "tie", "diverged", "incomplete", "unchecked")
MOST_LISTED = 200  # records in a Markdown report that are not the same


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """The verdict on one record.

    Attributes:
      id: the record's.
      kind: "same": every token is the model's own choice; "tie": all others tie with it; "diverged": one does not;
        "incomplete": the output is no whole answer; "unchecked": it could not be checked.
      num_tokens: tokens of the output.
      difference: the place that decides: the first one that diverged, else the first tie.
      num_compared: of these, those that were compared: where outputs are compared with each other, up to the first difference,
        since what follows is another text; all when None.
      num_differences: of the compared ones, tokens that are not the model's own choice.
      reason: why it is incomplete or unchecked.
      category: the record's, if it has one.
      more: other facts for its line.
      sample: which of several answers to the record it is, from 1 on; None for the first or only one.
    """

    id: str | int
    kind: str
    num_tokens: int
    difference: Difference | None = None
    num_compared: int | None = None
    num_differences: int = 0
    reason: str | None = None
    category: str | None = None
    more: str = ""
    sample: int | None = None

    def __str__(self) -> str:
        says = self.reason or self.difference or f"same {self.num_tokens} tokens"
        if self.reason:
            says = f"{self.kind}: {says}"
        return f"{self.name}: {says}{self.more}"

    @property
    def name(self) -> str:
        """Gives the record's id, and which of its answers it is."""
        return f"{self.id}" if self.sample is None else f"{self.id} (sample {self.sample})"

    def as_json(self) -> dict[str, Any]:
        """Gives the verdict as a report holds it; null stands where it has no value."""
        record = {name: value for name, value in vars(self).items() if name not in ("difference", "more")}
        found = self.difference
        return record | {
            "difference": None
            if found is None
            else {
                "position": found.position,
                "plain_token": found.plain_token,
                "token": found.other_token,
                "plain_score": _finite(found.plain_score),
                "score": _finite(found.other_score),
                "gap": _finite(found.gap),
                "gap_in_steps": _finite(found.gap / found.step),
                "tolerance": _finite(found.tolerance),
            }
        }


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None


def kind_of(differences: Sequence[Difference], reason: str | None) -> tuple[str, Difference | None]:
    """Tells the kind of an output from its differences and from what is incomplete about it, and the place that decides."""
    diverged = next((found for found in differences if not found.is_tie), None)
    if diverged is not None:
        return DIVERGED, diverged
    first = differences[0] if differences else None
    if reason is not None:
        return INCOMPLETE, first
    return (SAME, None) if first is None else (TIE, first)


def summary(verdicts: Iterable[Verdict]) -> dict[str, Any]:
    """Counts verdicts, in whole and by category, and differences for every 1,000 compared tokens."""
    counts: dict[str, dict[str, int]] = {"": dict.fromkeys(KINDS, 0)}
    tokens = differences = 0
    for verdict in verdicts:
        for name in {"", verdict.category or ""}:
            counts.setdefault(name, dict.fromkeys(KINDS, 0))[verdict.kind] += 1
        if verdict.kind != UNCHECKED:
            tokens += verdict.num_tokens if verdict.num_compared is None else verdict.num_compared
        differences += verdict.num_differences
    whole = counts.pop("")
    return {
        "records": sum(whole.values()),
        **whole,
        "compared_tokens": tokens,
        "differences": differences,
        "differences_per_1000_tokens": 1000 * differences / tokens if tokens else None,
        "by_category": counts,
    }


def status_of(totals: dict[str, Any]) -> int:
    """Gives the exit status: 0 if all are the same or tied, 1 if one diverged or is incomplete, 2 if one was not checked."""
    if totals[DIVERGED] or totals[INCOMPLETE]:
        return 1
    return 2 if totals[UNCHECKED] or not totals["records"] else 0


def counts_line(totals: dict[str, Any]) -> str:
    """Writes the counts in one line; kinds that are seldom seen only where they were."""
    kinds = [kind for kind in KINDS if totals[kind] or kind in (SAME, TIE, DIVERGED)]
    return ", ".join(f"{totals[kind]} {kind}" for kind in kinds)


def markdown(title: str, run: dict[str, Any], totals: dict[str, Any], verdicts: Sequence[Verdict]) -> str:
    """Writes a report for people: what was compared, the counts, and every record that is not the same."""
    rate = number(totals["differences_per_1000_tokens"], ".3f")
    lines = [
        f"# {cell(title)}",
        "",
        *(f"- {name}: {cell(str(value))}" for name, value in run.items()),
        "",
        f"{counts_line(totals)}. {totals['differences']} differences in {totals['compared_tokens']} tokens, {rate} for every "
        "1,000.",
    ]
    if totals["by_category"]:
        rows = [[name, *(str(count[kind]) for kind in KINDS)] for name, count in totals["by_category"].items()]
        lines += ["", table(["category", *KINDS], rows)]
    others = [verdict for verdict in verdicts if verdict.kind != SAME]
    if others:
        lines += [
            "",
            "Records that are not the same" + (f" (the first {MOST_LISTED})" if others[MOST_LISTED:] else "") + ":",
        ]
        lines += ["", *(f"- {cell(str(verdict))}" for verdict in others[:MOST_LISTED])]
    return "\n".join(lines) + "\n"
