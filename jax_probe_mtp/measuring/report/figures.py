"""Draws figures with matplotlib, as SVG text: the same values give the same bytes, whatever the user's style is.

matplotlib is an extra, and imported only where something is drawn.
"""

import contextlib
import io
import re
from collections.abc import Iterator, Sequence
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np

_STYLE: dict[Any, Any] = {
    "font.sans-serif": ["DejaVu Sans"],
    "font.size": 9,
    "svg.fonttype": "none",  # text stays text
    "svg.hashsalt": "report",  # the ids in the file are the same each time
    "text.parse_math": False,  # a dollar sign is no formula
}


class Cell(NamedTuple):
    text: str
    tint: float  # white at 0, blue at 1, red at -1


class Point(NamedTuple):
    name: str
    group: str  # points of one group share a colour
    x: int  # at least 1
    y: float


class Line(NamedTuple):
    label: str
    values: Sequence[float | None]  # None leaves a gap
    style: dict[str, Any]  # matplotlib's: color, linestyle, linewidth


class Panel(NamedTuple):
    title: str
    lines: Sequence[Line]


def require_matplotlib() -> None:
    """Raises a ValueError where nothing can be drawn."""
    if find_spec("matplotlib") is None:
        raise ValueError("figures need matplotlib: pip install 'jax-probe-mtp[report]'.")


@contextlib.contextmanager
def _own_style() -> Iterator[None]:
    """Puts matplotlib's defaults and our settings in place of the user's, here while a decorated function runs."""
    import matplotlib

    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(_STYLE)
        yield


@_own_style()
def heatmap(rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[Cell]]) -> str:
    """Draws a table with its numbers in it, legible at 15 rows and 14 columns; `cells[row][column]`."""
    from matplotlib.figure import Figure

    width, height = 0.62, 0.28  # of a cell, in inches
    figure = Figure((width * len(columns), height * len(rows)))
    axes: Any = figure.add_axes((0, 0, 1, 1), xlim=(0, len(columns)), ylim=(len(rows), 0))
    x, y = np.meshgrid(np.arange(len(columns)) + 0.5, np.arange(len(rows)) + 0.5)
    flat = [cell for row in cells for cell in row]
    # One marker used many times: as rectangles the cells would take twice the bytes.
    corners = [(-width, -height), (width, -height), (width, height), (-width, height), (-width, -height)]
    size = (72 * width * 0.97) ** 2  # square points; the rest is the white gap between cells
    axes.scatter(x, y, size, [_colour(cell.tint) for cell in flat], marker=corners, linewidths=0, clip_on=False)
    for cell_x, cell_y, cell in zip(x.flat, y.flat, flat, strict=True):
        axes.text(cell_x, cell_y, cell.text, ha="center", va="center_baseline")
    axes.set_xticks(x[0], columns, rotation=40, rotation_mode="anchor", ha="left")
    axes.set_yticks(y[:, 0], rows)
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return _svg(figure)


def _colour(tint: float) -> str:
    """Gives blues and reds that the colour-blind tell apart; black text is legible on each."""
    full = (67, 147, 195) if tint > 0 else (214, 96, 77)
    parts = [round(255 + (part - 255) * min(abs(tint), 1)) for part in full]
    return "#" + bytes(parts).hex()


@_own_style()
def scatter(points: Sequence[Point], x_label: str, y_label: str) -> str:
    """Draws points over a logarithmic x; each group's line joins its highest point at each x.

    Names stand in a column at the right, where they cannot overlap, each tied to its point.
    """
    from matplotlib.figure import Figure

    height = max(3.0, 0.19 * len(points))  # inches
    figure = Figure((5, height))
    axes: Any = figure.add_axes((0, 0, 1, 1), xlabel=x_label, ylabel=y_label)
    colours: dict[str, str] = {}
    for point in points:
        colours.setdefault(point.group, f"C{len(colours) % 10}")  # matplotlib has ten

    upwards = sorted(points, key=lambda point: (point.y, point.x))
    for group, colour in colours.items():
        places = [(point.x, point.y) for point in upwards if point.group == group]
        highest = sorted(dict(places).items())  # of the points at one x, dict keeps the last
        axes.plot(*zip(*highest, strict=True), color=colour, linewidth=1.2)
        axes.plot(*zip(*places, strict=True), "o", color=colour, markersize=4.5)

    largest = max((point.x for point in points), default=1)
    ticks = [2**i for i in range(largest.bit_length())]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, map(str, ticks))
    axes.set_xlim(0.85, 1.15 * largest)
    axes.grid(color="0.93")
    axes.spines[["top", "right"]].set_visible(False)

    low, high = axes.get_ylim()
    label_y = spread([(point.y - low) / (high - low) for point in upwards], gap=0.17 / height)
    tie = {"arrowstyle": "-", "color": "0.75", "linewidth": 0.6, "shrinkA": 1, "shrinkB": 3, "relpos": (0, 0.5)}
    for point, y in zip(upwards, label_y, strict=True):
        axes.annotate(
            point.name,
            (point.x, point.y),
            (1.05, y),
            textcoords="axes fraction",
            va="center_baseline",
            color=colours[point.group],
            arrowprops=tie,
            zorder=1,  # the ties pass below the points
        )
    return _svg(figure)


def spread(places: Sequence[float], gap: float) -> list[float]:
    """Moves ascending places in 0 to 1 up and then down as little as it takes that neighbours are `gap` apart."""
    up: list[float] = []
    for place in places:
        up.append(max(place, up[-1] + gap) if up else place)
    down: list[float] = []
    for place in reversed(up):
        down.append(min(place, down[-1] - gap if down else 1.0))
    return down[::-1]


@_own_style()
def line_panels(panels: Sequence[Panel], x_label: str, y_label: str) -> str:
    """Draws panels side by side with one y axis and one legend, that of the first; a line's x are the indices 0, 1, ..."""
    from matplotlib.figure import Figure

    figure = Figure((2 + 3.8 * len(panels), 4), layout="constrained")
    all_axes: Any = figure.subplots(1, len(panels), sharey=True, squeeze=False)[0]
    for axes, panel in zip(all_axes, panels, strict=True):
        for line in panel.lines:
            axes.plot(np.array(line.values, np.float64), label=line.label, **line.style)  # None becomes NaN
        axes.set(title=panel.title, xlabel=x_label)
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(color="0.93")
    all_axes[0].set_ylabel(y_label)
    figure.legend(*all_axes[0].get_legend_handles_labels(), loc="outside right center", frameon=False)
    return _svg(figure)


def _svg(figure: Any) -> str:
    file = io.StringIO()
    metadata = {"Date": None, "Creator": None}
    figure.savefig(file, format="svg", bbox_inches="tight", pad_inches=0.12, metadata=metadata)
    # Each text repeats its font and a turn by 0 degrees, a third of the file; the font is said once instead.
    font = "font-family: 'DejaVu Sans', sans-serif"
    svg = re.sub(r' transform="rotate\(-?0 [^"]*"', "", file.getvalue()).replace(f"; {font}", "")
    return svg.replace("*{", f"*{{{font}; ", 1)
