"""Draws the figures of a bench record: which of its values each one shows, and how strongly cells are tinted."""

import math
from typing import Any, NamedTuple

from jax_probe_mtp.drafting.spec import source_name
from jax_probe_mtp.files.markdown import number, printable, ratio
from jax_probe_mtp.measuring.bench_record import categories
from jax_probe_mtp.measuring.report import figures
from jax_probe_mtp.measuring.report.figures import Cell, Point


class Figure(NamedTuple):
    name: str
    caption: str
    svg: str


def draw(record: dict[str, Any]) -> list[Figure]:
    """Draws a record; acceptance by depth only where there were calls with drafts."""
    drawn = [_tau(record), _speedup(record), _rows(record)]
    drafting = [run for run in record["runs"] if run["accepted_by_depth"] and run["calls"] > 0]
    return [*drawn, _depth(drafting)] if drafting else drawn


def _tau(record: dict[str, Any]) -> Figure:
    values = _by_category(record, "tau", "tau_by_category")
    span = max([0.0, *(tau - 1 for row in values for tau in row if tau is not None)]) or 1.0

    def cell(tau: float | None) -> Cell:
        return Cell(number(tau, ".2f"), 0.0 if tau is None else (tau - 1) / span)

    caption = "tau by run and category; the bluer, the more tokens a call"
    return Figure("tau", caption, _category_heatmap(record, [[cell(tau) for tau in row] for row in values]))


def _speedup(record: dict[str, Any]) -> Figure:
    values = _by_category(record, "speedup_vs_ar", "speedup_vs_ar_by_category")
    # A quarter faster or slower is the least that gets the full colour.
    span = max([math.log(1.25), *(abs(_log(speedup)) for row in values for speedup in row)])

    def cell(speedup: float | None) -> Cell:
        log = _log(speedup)
        # What is not 1 gets some colour, however far others go.
        tint = math.copysign(0.15 + 0.85 * abs(log) / span, log) if log else 0.0
        return Cell(ratio(speedup), tint)

    caption = "speed-up against plain decoding by run and category (summed wall time); blue is faster, red is slower"
    return Figure("speedup", caption, _category_heatmap(record, [[cell(speedup) for speedup in row] for row in values]))


def _log(speedup: float | None) -> float:
    """Gives the logarithm; 0 for what reads as 1.00, and for what was not measured."""
    if speedup is None or ratio(speedup) == "1.00":
        return 0.0
    return math.log(max(speedup, 1e-3))  # 0 has no logarithm


def _rows(record: dict[str, Any]) -> Figure:
    points = []
    for run in record["runs"]:
        if run["tau"] is not None:
            method = source_name(run["run"])
            points.append(Point(printable(run["run"]), group=method, x=run["rows_per_call"], y=run["tau"]))
    caption = "tau against rows a call; one colour a method, whose line joins its best run at each number of rows"
    return Figure("rows", caption, figures.scatter(points, x_label="rows a call", y_label="tau"))


def _depth(runs: list[dict[str, Any]]) -> Figure:
    deepest = max(len(run["accepted_by_depth"]) for run in runs)
    columns = [f"depth {depth}" for depth in range(1, deepest + 1)]
    cells = []
    for run in runs:
        shares = [count / run["calls"] for count in run["accepted_by_depth"]]
        blank = [Cell("", 0.0)] * (deepest - len(shares))
        cells.append([*(Cell(f"{share:.1%}", share) for share in shares), *blank])
    caption = "acceptance by depth: share of the calls in which a draft of that depth was accepted"
    return Figure("depth", caption, figures.heatmap([printable(run["run"]) for run in runs], columns, cells))


def _by_category(record: dict[str, Any], total: str, by_category: str) -> list[list[float | None]]:
    """Gives a row a run: the measure of all questions, then that of each category."""
    names = categories(record)
    return [[run[total], *(run[by_category].get(name) for name in names)] for run in record["runs"]]


def _category_heatmap(record: dict[str, Any], cells: list[list[Cell]]) -> str:
    rows = [printable(run["run"]) for run in record["runs"]]
    return figures.heatmap(rows, ["all", *map(printable, categories(record))], cells)
