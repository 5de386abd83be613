"""Bench records in; a Markdown report and its figures out."""

import io
import json
import math
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Any

_FORMAT = 1
# What the report reads; nothing else of a record is looked at. A tuple holds the types that JSON may give, a list of
# one shape may have any length, "*" stands for any key.
_TEXT, _COUNT = (str,), (int,)
_MEASURE = (int, float, NoneType)  # null where nothing was measured
_PRINTED = (str, int, float, bool, NoneType)  # only ever printed as it is
_VERSIONS = ("jax", "jaxlib", "numpy", "python")
_ENVIRONMENT = ("jax_probe_mtp", "git_commit", *_VERSIONS, "backend", "device", "dtype")
_SETTINGS = ("questions", "max_new_tokens", "temperature", "top_k", "top_p", "seed", "batch_size", "use_chat_template")
_RUN: dict[str, Any] = {
    **dict.fromkeys(("rows_per_call", "calls", "ties"), _COUNT),
    **dict.fromkeys(("tau", "call_reduction", "exact_match", "seconds", "speedup_vs_ar"), _MEASURE),
    **{key: {"*": _MEASURE} for key in ("tau_by_category", "speedup_vs_ar_by_category")},
    **{key: [_MEASURE] * 3 for key in ("speedup_quartiles", "ms_per_call_quartiles")},
    **{"run": _TEXT, "accepted_by_depth": [_COUNT], "accepted_by_source": {"*": _COUNT}, "differences": {"*": _TEXT}},
}
_SHAPE: dict[str, Any] = {
    **{"environment": dict.fromkeys(_ENVIRONMENT, _PRINTED), "settings": dict.fromkeys(_SETTINGS, _PRINTED)},
    **{"model": {"name": _TEXT}, "is_complete": (bool,), "questions": [(int, str)], "runs": [_RUN]},
    **{"categories": {"*": _TEXT}, "skipped": {"*": _TEXT}},
}
_HEAD = """# Bench report

tau: tokens a decode call gives. Speed-up: wall time of `ar` (plain decoding) over that of the run; below 1 the run is
slower. Quartiles are over the questions. Records are not pooled: each has its own section.
"""
_COLUMNS = [
    *("run", "rows a call", "tau", "call reduction", "accepted by depth", "outputs equal to plain decoding", "seconds"),
    *("speed-up (summed time)", "median speed-up (quartiles)", "median ms a call (quartiles)"),
]


def write_report(paths: Sequence[Path], folder: Path) -> list[Path]:
    """Writes `report.md`, a section a record in the order given, and its figures beside it.

    Figures are numbered as the records are, `record1_tau.svg`, so that files of one name in two folders do not meet.
    The same records give the same bytes. Nothing is written before every record is read and every figure drawn.

    Returns:
      The files written, `report.md` first.

    Raises:
      ValueError: a file that is not a bench record, a folder that is a file, or no matplotlib.
      OSError: if a file cannot be read or written.
    """
    if not paths:
        raise ValueError("a report needs at least one bench record; name the files.")
    if folder.exists() and not folder.is_dir():
        raise ValueError(f"{folder} is a file, and a report is several files; name a folder.")
    sections, contents = [_HEAD], {"report.md": b""}
    for number, (path, record) in enumerate([(path, _read(path)) for path in paths], start=1):
        captions = {}
        for name, caption, svg in _figures(record):
            captions[f"record{number}_{name}.svg"] = caption
            contents[f"record{number}_{name}.svg"] = svg
        sections.append(_section(number, path, record, captions))
    contents["report.md"] = "\n".join(sections).encode()
    written = {folder / name: content for name, content in contents.items()}
    for path in paths:
        if path.resolve() in {target.resolve() for target in written}:
            raise ValueError(f"{path} is a record that the report would overwrite; name another folder.")
    folder.mkdir(parents=True, exist_ok=True)
    partial = {target: target.with_name(target.name + ".partial") for target in written}
    for target, content in written.items():
        partial[target].write_bytes(content)
    for target in written:  # all are whole before the first takes its name
        os.replace(partial[target], target)
    return list(written)


def _read(path: Path) -> dict[str, Any]:
    try:
        record = json.loads(path.read_bytes(), parse_constant=lambda _: None)  # NaN is no measure either
    except (ValueError, RecursionError) as error:  # a number or a nesting too large for Python among them
        raise ValueError(f"{path} is not JSON that can be read ({error}).") from None
    fault = _fault(record, {}, "it")
    if fault is None and record.get("format") != _FORMAT:
        fault = f"format is {json.dumps(record.get('format'))[:40]}, and {_FORMAT} is what can be read"
    fault = fault or _fault(record, _SHAPE, "") or _contradiction(record)
    if fault:
        raise ValueError(f"{path} is not a bench record ({fault}); give a file that the bench wrote.")
    return record


def _fault(value: Any, shape: Any, where: str) -> str | None:
    """The first place where a value is not of its shape."""
    if isinstance(shape, tuple):
        is_number = type(value) in (int, float)  # exact types: a bool is no int
        if type(value) in shape and (not is_number or abs(value) < 1e15):
            return None
        return f"{where} is {json.dumps(value)[:40]}"
    if type(value) is not type(shape):
        return f"{where} is no {'object' if isinstance(shape, dict) else 'list'}"
    if isinstance(shape, list):
        if len(shape) > 1 and len(value) != len(shape):
            return f"{where} holds {len(value)} values, not {len(shape)}"
        inner = [(item, shape[0], f"{where}[{i}]") for i, item in enumerate(value)]
    elif "*" in shape:
        inner = [(item, shape["*"], f"{where}[{json.dumps(key)[:40]}]") for key, item in value.items()]
    else:
        paths = {key: f"{where}.{key}".lstrip(".") for key in shape}
        if missing := [path for key, path in paths.items() if key not in value]:
            return f"{missing[0]} is missing"
        inner = [(value[key], each, paths[key]) for key, each in shape.items()]
    return next((fault for fault in (_fault(*each) for each in inner) if fault), None)


def _contradiction(record: dict[str, Any]) -> str | None:
    num_questions = len(record["questions"])
    if not record["runs"]:
        return "runs is empty"
    if any(str(question) not in record["categories"] for question in record["questions"]):
        return "a question has no category"
    for run in record["runs"]:
        name, num_different = json.dumps(run["run"])[:40], len(run["differences"])
        if run["rows_per_call"] < 1:
            return f"run {name} has {run['rows_per_call']} rows a call"
        if not 0 <= run["ties"] <= num_different:
            return f"run {name} has {run['ties']} ties among {num_different} differences"
        num_equal = num_questions * (1 if run["exact_match"] is None else run["exact_match"])
        if num_questions and abs(num_equal + num_different - num_questions) > 0.5:
            return f"run {name}: exact_match {run['exact_match']} of {num_questions}, but {num_different} differences"
    return None


def _section(number: int, path: Path, record: dict[str, Any], captions: dict[str, str]) -> str:
    environment, settings, runs = record["environment"], record["settings"], record["runs"]
    counts = _categories(record)
    lowest, highest = min(counts.values(), default=0), max(counts.values(), default=0)
    each = f"{lowest}" if lowest == highest else f"{lowest} to {highest}"
    asked = (
        f"{len(record['questions'])} questions of {settings['questions']} (categories: {len(counts)}, {each} of each)"
    )
    limits = [f"at most {settings['max_new_tokens']} new tokens"]
    if settings["temperature"]:
        limits += [f"top-k {settings['top_k']}, top-p {settings['top_p']}, seed {settings['seed']}"]
    limits += [] if settings["use_chat_template"] else ["no chat template"]
    heading = [record["model"]["name"], environment["dtype"], environment["device"]]
    heading += [f"batch size {settings['batch_size']}", f"temperature {settings['temperature']}"]
    own, commit = environment["jax_probe_mtp"] or "of no known version", environment["git_commit"] or "not known"
    versions = [f"jax_probe_mtp {own} (git commit {commit})"]
    versions += [f"{name} {environment[name]}" for name in (*_VERSIONS, "backend")]
    parts = [
        f"## {number}. {_cell(', '.join(map(str, heading)))}",
        _cell(f"{', '.join([asked, *limits])}. Record: {path.name}."),
        _cell(f"{', '.join(versions)}."),
    ]
    if not record["is_complete"]:
        parts.append("**This record is not complete: its bench was cut off, and other questions are missing.**")
    parts.append(_table(_COLUMNS, [_row(run, len(record["questions"])) for run in runs]))
    taus = [[run["run"], *(_number(run["tau_by_category"].get(name), ".3f") for name in counts)] for run in runs]
    parts += ["tau by category:", _table(["run", *counts], taus)]
    if record["skipped"]:
        parts.append(f"Questions skipped ({len(record['skipped'])}):")
        parts.append("\n".join(f"- {_cell(q)}: {_cell(reason)}" for q, reason in record["skipped"].items()))
    differences = [(run["run"], *item) for run in runs for item in run["differences"].items()]
    if differences:
        parts.append(f"First differences from plain decoding ({len(differences)}):")
        parts.append("\n".join(f"- {_cell(run)}, question {_cell(q)}: {_cell(text)}" for run, q, text in differences))
    parts += [f"![{caption}]({name})\n\n{caption}" for name, caption in captions.items()]
    return "\n\n".join(parts) + "\n"


def _row(run: dict[str, Any], num_questions: int) -> list[str]:
    num_ties, num_diverged = run["ties"], len(run["differences"]) - run["ties"]
    kinds = [f"{num_ties} tie{'s' * (num_ties > 1)}"] if num_ties else []
    kinds += [f"{num_diverged} diverged"] if num_diverged else []
    equal = f"{num_questions - len(run['differences'])}/{num_questions}" + f" ({', '.join(kinds)})" * bool(kinds)
    depths = ", ".join(map(str, run["accepted_by_depth"])) or "none"
    if len(run["accepted_by_source"]) > 1:
        depths += f" ({', '.join(f'{source} {count}' for source, count in run['accepted_by_source'].items())})"
    speedup_low, speedup, speedup_high = map(_ratio, run["speedup_quartiles"])
    ms_low, ms, ms_high = (_number(each, ".2f") for each in run["ms_per_call_quartiles"])
    counted = [run["run"], str(run["rows_per_call"]), _number(run["tau"], ".3f")]
    return [
        *(*counted, _number(run["call_reduction"], "z.1%"), depths, equal, _number(run["seconds"], ".2f")),
        _ratio(run["speedup_vs_ar"]),
        f"{speedup} ({speedup_low} to {speedup_high})",
        f"{ms} ({ms_low} to {ms_high})",
    ]


def _categories(record: dict[str, Any]) -> Counter[str]:
    """How many questions each category has; categories in the order of the questions."""
    return Counter(record["categories"][str(question)] for question in record["questions"])


def _table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines)


def _cell(text: str) -> str:
    return re.sub(r"([\\|`*<\[&])", r"\\\1", _printable(text))


def _printable(text: str) -> str:
    """Text in one line that UTF-8 and XML can hold: half a surrogate pair and control characters they cannot."""
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in " ".join(text.split()))


def _number(value: float | None, form: str) -> str:
    return "n/a" if value is None else format(value, form)


def _ratio(value: float | None) -> str:
    """Two decimals, or three or four where fewer would hide on which side of 1 the value is."""
    if value is None:
        return "n/a"
    return next((text for text in (f"{value:.{digits}f}" for digits in (2, 3, 4)) if float(text) != 1), "1.00")


def _figures(record: dict[str, Any]) -> list[tuple[str, str, bytes]]:
    """Each figure's name, caption and SVG, drawn with matplotlib's own defaults, whatever the user's are."""
    try:
        import matplotlib
    except ImportError:
        raise ValueError("figures need matplotlib: pip install 'jax-probe-mtp[report]'.") from None
    # Text stays text and is never read as a formula; the salt makes the ids in the file the same each time.
    style: dict[Any, Any] = {"svg.fonttype": "none", "svg.hashsalt": "report", "text.parse_math": False, "font.size": 9}
    with matplotlib.rc_context():
        matplotlib.rcdefaults()
        matplotlib.rcParams.update(style | {"font.sans-serif": ["DejaVu Sans"]})
        return list(_drawn(record))


def _drawn(record: dict[str, Any]) -> Iterator[tuple[str, str, bytes]]:
    runs, columns = record["runs"], ["all", *_categories(record)]
    names = [run["run"] for run in runs]
    taus = [[run["tau"], *map(run["tau_by_category"].get, columns[1:])] for run in runs]
    span = max([0.0, *(tau - 1 for row in taus for tau in row if tau is not None)]) or 1.0
    cells = [[(_number(tau, ".2f"), 0.0 if tau is None else (tau - 1) / span) for tau in row] for row in taus]
    yield "tau", "tau by run and category; the darker, the more tokens a call", _heatmap(names, columns, cells)

    ratios = [[run["speedup_vs_ar"], *map(run["speedup_vs_ar_by_category"].get, columns[1:])] for run in runs]
    # A quarter faster or slower is the least that gets the full colour. What is not 1 gets some, however far others go.
    span = max([math.log(1.25), *(abs(_log(ratio)) for row in ratios for ratio in row)])
    logs = [[_log(ratio) for ratio in row] for row in ratios]
    tints = [[log and math.copysign(0.15 + 0.85 * abs(log) / span, log) for log in row] for row in logs]
    cells = [
        [(_ratio(ratio), tint) for ratio, tint in zip(*rows, strict=True)] for rows in zip(ratios, tints, strict=True)
    ]
    caption = "speed-up against plain decoding by run and category (summed wall time); blue is faster, red is slower"
    yield "speedup", caption, _heatmap(names, columns, cells)

    caption = "tau against rows a call; one colour a method, whose line joins its best run at each number of rows"
    yield "rows", caption, _scatter([run for run in runs if run["tau"] is not None])

    drafting = [run for run in runs if run["accepted_by_depth"] and run["calls"] > 0]
    if drafting:
        shares = [[count / run["calls"] for count in run["accepted_by_depth"]] for run in drafting]
        columns = [f"depth {depth}" for depth in range(1, max(map(len, shares)) + 1)]
        cells = [
            [*((f"{share:.1%}", share) for share in row), *[("", 0.0)] * (len(columns) - len(row))] for row in shares
        ]
        caption = "acceptance by depth: share of the calls in which a draft of that depth was accepted"
        yield "depth", caption, _heatmap([run["run"] for run in drafting], columns, cells)


def _log(ratio: float | None) -> float:
    """0 for what reads as 1.00, and for what was not measured."""
    return 0.0 if ratio is None or _ratio(ratio) == "1.00" else math.log(max(ratio, 1e-3))


def _heatmap(rows: Sequence[str], columns: Sequence[str], cells: Sequence[Sequence[tuple[str, float]]]) -> bytes:
    """A table with its numbers in it, legible at 15 runs and 13 categories; cells: text and tint from -1 to 1."""
    from matplotlib.figure import Figure

    width, height = 0.62, 0.28  # of a cell, in inches
    figure = Figure((width * len(columns), height * len(rows)))
    axes: Any = figure.add_axes((0, 0, 1, 1), xlim=(0, len(columns)), ylim=(len(rows), 0))
    places = [(x + 0.5, y + 0.5) for y in range(len(rows)) for x in range(len(columns))]
    flat = [cell for row in cells for cell in row]
    corners = [(-width, -height), (width, -height), (width, height), (-width, height), (-width, -height)]
    # One marker used many times: as rectangles the cells would take twice the bytes.
    style = {"marker": corners, "s": (72 * width * 0.97) ** 2, "linewidths": 0, "clip_on": False}
    axes.scatter(*zip(*places, strict=True), c=[_tint(strength) for _, strength in flat], **style)
    for (x, y), (text, _) in zip(places, flat, strict=True):
        axes.text(x, y, text, ha="center", va="center_baseline")
    turned = {"rotation": 40, "rotation_mode": "anchor", "ha": "left"}
    axes.set_xticks([x + 0.5 for x in range(len(columns))], map(_printable, columns), **turned)
    axes.set_yticks([y + 0.5 for y in range(len(rows))], map(_printable, rows))
    axes.xaxis.tick_top()
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    return _svg(figure)


def _tint(strength: float) -> str:
    """White at 0, blue at 1, red at -1: told apart by the colour-blind, and black text is legible on each."""
    full = (67, 147, 195) if strength > 0 else (214, 96, 77)
    return "#" + "".join(f"{round(255 + (part - 255) * min(abs(strength), 1)):02x}" for part in full)


def _scatter(runs: Sequence[dict[str, Any]]) -> bytes:
    """A point a run; names stand in a column at the right, where they cannot overlap, each tied to its point."""
    from matplotlib.figure import Figure

    height = max(3.0, 0.19 * len(runs))  # inches
    figure = Figure((5, height))
    axes: Any = figure.add_axes((0, 0, 1, 1), xlabel="rows a call", ylabel="tau")
    colours = {method: f"C{i % 10}" for i, method in enumerate(dict.fromkeys(map(_method, runs)))}
    ordered = sorted(runs, key=lambda run: (run["tau"], run["rows_per_call"]))
    for method, colour in colours.items():
        points = [(run["rows_per_call"], run["tau"]) for run in ordered if _method(run) == method]
        best = sorted(dict(points).items())  # tau ascends, so that the best of a number of rows is what stays
        axes.plot(*zip(*best, strict=True), color=colour, linewidth=1.2)
        axes.plot(*zip(*points, strict=True), "o", color=colour, markersize=4.5)
    largest = max((run["rows_per_call"] for run in runs), default=1)
    ticks = [2**i for i in range(largest.bit_length())]
    axes.set_xscale("log", base=2)
    axes.set_xticks(ticks, map(str, ticks))
    axes.set_xlim(0.85, 1.15 * largest)
    axes.grid(color="0.93")
    axes.spines[["top", "right"]].set_visible(False)
    low, high = axes.get_ylim()
    label_y = _apart([(run["tau"] - low) / (high - low) for run in ordered], 0.17 / height)
    line = {"arrowstyle": "-", "color": "0.75", "linewidth": 0.6, "shrinkA": 1, "shrinkB": 3, "relpos": (0, 0.5)}
    style = {"textcoords": "axes fraction", "va": "center_baseline", "zorder": 1, "arrowprops": line}
    for run, y in zip(ordered, label_y, strict=True):
        point, text = (run["rows_per_call"], run["tau"]), _printable(run["run"])
        axes.annotate(text, point, (1.05, y), color=colours[_method(run)], **style)
    return _svg(figure)


def _method(run: dict[str, Any]) -> str:
    return re.split("[:@]", run["run"])[0]


def _apart(places: Sequence[float], gap: float) -> list[float]:
    """Ascending places in 0 to 1, moved up and then down as little as it takes that neighbours are `gap` apart."""
    up: list[float] = []
    for place in places:
        up.append(max(place, up[-1] + gap) if up else place)
    down: list[float] = []
    for place in reversed(up):
        down.append(min(place, down[-1] - gap if down else 1.0))
    return down[::-1]


def _svg(figure: Any) -> bytes:
    file = io.BytesIO()
    metadata = {"Date": None, "Creator": None}
    figure.savefig(file, format="svg", bbox_inches="tight", pad_inches=0.12, metadata=metadata)
    # Each text repeats its font and a turn by 0 degrees, a third of the file; the font is said once instead.
    font = b"font-family: 'DejaVu Sans', sans-serif"
    svg = re.sub(rb' transform="rotate\(-?0 [^"]*"', b"", file.getvalue()).replace(b"; " + font, b"")
    return svg.replace(b"*{", b"*{" + font + b"; ", 1)
