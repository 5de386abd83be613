"""Says of outputs that should be plain decoding's whether they are: a verdict a record, and sums, as JSON and Markdown."""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

from jax_probe_mtp.files.markdown import cell, number, table
from jax_probe_mtp.sameness.first_difference import Difference

SAME, TIE, DIVERGED, INCOMPLETE, UNCHECKED = KINDS = ("same", "tie", "diverged", "incomplete", "unchecked")
# Counted only where it comes: a draw of an unknown seed, of which a file says more than one answer does.
SCORED = "scored"
MOST_LISTED = 200  # records in a Markdown report that are not the same


@dataclasses.dataclass(frozen=True, kw_only=True)
class Verdict:
    """The verdict on one record.

    Attributes:
      id: the record's.
      kind: "same": every token is the model's own choice; "tie": all others tie with it; "diverged": one does not;
        "incomplete": the output is no whole answer; "unchecked": it could not be checked; "scored": a draw of an unknown seed
        that nothing speaks against.
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
            count = counts.setdefault(name, dict.fromkeys(KINDS, 0))
            count[verdict.kind] = count.get(verdict.kind, 0) + 1
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
    kinds = [kind for kind in _kinds(totals) if totals[kind] or kind in (SAME, TIE, DIVERGED)]
    return ", ".join(f"{totals[kind]} {kind}" for kind in kinds)


def _kinds(totals: dict[str, Any]) -> list[str]:
    return [*KINDS, *([SCORED] if SCORED in totals else [])]


def is_listed(verdict: Verdict) -> bool:
    """Says whether a report for people lists a record by name."""
    return verdict.kind not in (SAME, SCORED)


def markdown(
    title: str, run: dict[str, Any], totals: dict[str, Any], verdicts: Sequence[Verdict], of_file: Sequence[str] = ()
) -> str:
    """Writes a report for people: what was compared, the counts, and every record that is not the same.

    Args:
      title: its heading.
      run: what the verdicts hold for.
      totals: `summary` of them.
      verdicts: at least the first `MOST_LISTED` of those that are listed.
      of_file: what is said of the file as a whole, a line each.
    """
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
        kinds = _kinds(totals)
        rows = [[name, *(str(count.get(kind, 0)) for kind in kinds)] for name, count in totals["by_category"].items()]
        lines += ["", table(["category", *kinds], rows)]
    if of_file:
        lines += ["", "The file as a whole:", "", *(f"- {cell(line)}" for line in of_file)]
    others = list(filter(is_listed, verdicts))
    if others:
        lines += [
            "",
            "Records that are not the same" + (f" (the first {MOST_LISTED})" if others[MOST_LISTED:] else "") + ":",
        ]
        lines += ["", *(f"- {cell(str(verdict))}" for verdict in others[:MOST_LISTED])]
    return "\n".join(lines) + "\n"
