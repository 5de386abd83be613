"""Sums up what one run of a benchmark gave: counts, tau, times and speed-ups, beside plain decoding's."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from jax_probe_mtp.drafting.source import DraftSource
from jax_probe_mtp.drafting.spec import draft_name

Result = dict[str, Any]  # what one run made of one question
QUARTILES = (25, 50, 75)


def summary(
    source: DraftSource,
    mine: Mapping[str, Result],
    plain: Mapping[str, Result],
    category_of: Mapping[str, str],
    has_times: bool,
) -> dict[str, Any]:
    """Makes one run's part of the record from its results and plain decoding's; see `Bench.record`."""
    ids = list(plain)
    by_category: dict[str, list[str]] = {}
    for question in ids:
        by_category.setdefault(category_of[question], []).append(question)

    def total(results: Mapping[str, Result], field: str, of: Sequence[str] = ids) -> Any:
        return sum(results[question][field] for question in of)

    def tau(of: Sequence[str]) -> float:
        calls = total(mine, "calls", of)
        return total(mine, "committed", of) / calls if calls else 1.0

    def speedup(of: Sequence[str]) -> float:
        return round(total(plain, "seconds", of) / total(mine, "seconds", of), 4)

    def over_categories(value: Callable[[Sequence[str]], float], is_known: bool = True) -> dict[str, float | None]:
        return {category: value(members) if is_known else None for category, members in by_category.items()}

    def quartiles(values: Sequence[float]) -> list[float | None]:
        return [round(float(value), 4) for value in np.percentile(values, QUARTILES)] if has_times else [None] * 3

    def ms_per_call(of: str) -> float:  # the loop's first call gives the prefill's token, and is not among `calls`
        return 1000 * (mine[of]["seconds"] - mine[of]["prefill_seconds"]) / (mine[of]["calls"] + 1)

    seconds = total(mine, "seconds")
    accepted = [sum(depth) for depth in zip(*(mine[q]["accepted_by_depth"] for q in ids), strict=True)]
    kinds = source.kinds if accepted else ()
    differences = {q: mine[q]["difference"] for q in ids if mine[q]["difference"]}
    return {
        "run": draft_name(source),
        "rows_per_call": source.num_rows,
        "tau": tau(ids),
        "tau_by_category": over_categories(tau),
        "call_reduction": 1 - 1 / tau(ids),
        "calls": total(mine, "calls"),
        "committed": total(mine, "committed"),
        "accepted_by_depth": accepted,
        "accepted_by_source": {kind: sum(mine[q]["accepted_by_kind"].get(kind, 0) for q in ids) for kind in kinds},
        "exact_match": 1 - len(differences) / len(ids),
        "ties": sum(text.startswith("tie") for text in differences.values()),
        "differences": differences,
        "seconds": round(seconds, 4),
        "prefill_seconds": round(total(mine, "prefill_seconds"), 4),
        "tokens_per_second": round((total(mine, "committed") + len(ids)) / seconds, 2),
        "seconds_by_category": over_categories(lambda of: round(total(mine, "seconds", of), 4), has_times),
        "speedup_vs_ar": speedup(ids),
        "speedup_vs_ar_by_category": over_categories(speedup, has_times),
        "speedup_quartiles": quartiles([speedup([question]) for question in ids]),
        "ms_per_call_quartiles": quartiles([ms_per_call(question) for question in ids]),
        "by_question": {question: mine[question] for question in ids},
    }
