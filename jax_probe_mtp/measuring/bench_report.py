"""Makes a Markdown report and its figures out of bench records."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax_probe_mtp.files.markdown import cell, number, ratio, table
from jax_probe_mtp.files.whole_files import write_files
from jax_probe_mtp.measuring import bench_figures
from jax_probe_mtp.measuring.bench_record import categories, read_record
from jax_probe_mtp.measuring.figures import require_matplotlib

_HEAD = """# Bench report

tau: tokens a decode call gives. Speed-up: wall time of `plain` (plain decoding) over that of the run; below 1 the run
is slower. Quartiles are over the questions. Records are not pooled: each has its own section.
"""


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
    require_matplotlib()
    records = [read_record(path) for path in paths]
    sections, svgs = [_HEAD], {}
    for number_of_record, (path, record) in enumerate(zip(paths, records, strict=True), start=1):
        captions = {}
        for figure in bench_figures.draw(record):
            file_name = f"record{number_of_record}_{figure.name}.svg"
            captions[file_name], svgs[file_name] = figure.caption, figure.svg
        sections.append(_section(number_of_record, path.name, record, captions))
    texts = {"report.md": "\n".join(sections), **svgs}
    written = {(folder / name).resolve() for name in texts}
    for path in paths:
        if path.resolve() in written:
            raise ValueError(f"{path} is a record that the report would overwrite; name another folder.")
    return write_files(folder, texts)


def _section(number_of_record: int, file_name: str, record: dict[str, Any], captions: dict[str, str]) -> str:
    """Writes what was run, the tables, what to know about them, and the figures (`captions` by file)."""
    paragraphs = [
        f"## {number_of_record}. {cell(_title(record))}",
        cell(f"{_asked(record)}. Record: {file_name}."),
        cell(f"{_versions(record['environment'])}."),
    ]
    if not record["is_complete"]:
        paragraphs.append("**This record is not complete: its bench was cut off, and other questions are missing.**")
    paragraphs += [_run_table(record), "tau by category:", _tau_table(record)]
    if record["skipped"]:
        paragraphs.append(f"Questions skipped ({len(record['skipped'])}):")
        paragraphs.append("\n".join(f"- {cell(name)}: {cell(why)}" for name, why in record["skipped"].items()))
    differences = [
        f"- {cell(run['run'])}, question {cell(name)}: {cell(text)}"
        for run in record["runs"]
        for name, text in run["differences"].items()
    ]
    if differences:
        paragraphs.append(f"First differences from plain decoding ({len(differences)}):")
        paragraphs.append("\n".join(differences))
    for name, caption in captions.items():
        paragraphs += [f"![{caption}]({name})", caption]
    return "\n\n".join(paragraphs) + "\n"


def _title(record: dict[str, Any]) -> str:
    environment, settings = record["environment"], record["settings"]
    model = f"{record['model']['name']}, {environment['dtype']}, {environment['device']}"
    mesh = f", mesh {settings['mesh']}" if "mesh" in settings else ""
    return f"{model}{mesh}, batch size {settings['batch_size']}, temperature {settings['temperature']}"


def _asked(record: dict[str, Any]) -> str:
    settings, counts = record["settings"], categories(record)
    lowest, highest = min(counts.values(), default=0), max(counts.values(), default=0)
    each = str(lowest) if lowest == highest else f"{lowest} to {highest}"
    parts = [
        f"{len(record['questions'])} questions of {settings['questions']} (categories: {len(counts)}, {each} of each)",
        f"at most {settings['max_new_tokens']} new tokens",
    ]
    if settings["temperature"]:  # without it the most likely token is taken, and these say nothing
        parts.append(f"top-k {settings['top_k']}, top-p {settings['top_p']}, seed {settings['seed']}")
    if not settings["use_chat_template"]:
        parts.append("no chat template")
    return ", ".join(parts)


def _versions(environment: dict[str, Any]) -> str:
    version = environment["jax_probe_mtp"] or "of no known version"
    commit = environment["git_commit"] or "not known"
    others = [f"{name} {environment[name]}" for name in ("jax", "jaxlib", "numpy", "python", "backend")]
    return ", ".join([f"jax_probe_mtp {version} (git commit {commit})", *others])


def _run_table(record: dict[str, Any]) -> str:
    rows = []
    for run in record["runs"]:
        speedups = [ratio(speedup) for speedup in run["speedup_quartiles"]]
        ms = [number(value, ".2f") for value in run["ms_per_call_quartiles"]]
        cells = {
            "run": run["run"],
            "rows a call": str(run["rows_per_call"]),
            "tau": number(run["tau"], ".3f"),
            "call reduction": number(run["call_reduction"], "z.1%"),  # z: no -0.0%
            "accepted by depth": _accepted(run),
            "outputs equal to plain decoding": _equal(run, len(record["questions"])),
            "seconds": number(run["seconds"], ".2f"),
            "speed-up (summed time)": ratio(run["speedup_vs_ar"]),
            "median speed-up (quartiles)": _with_spread(speedups),
            "median ms a call (quartiles)": _with_spread(ms),
        }
        rows.append(cells)
    return table(list(rows[0]), [list(cells.values()) for cells in rows])


def _with_spread(quartiles: list[str]) -> str:
    lowest, median, highest = quartiles
    return median if median == "n/a" else f"{median} ({lowest} to {highest})"


def _accepted(run: dict[str, Any]) -> str:
    by_depth = ", ".join(map(str, run["accepted_by_depth"])) or "none"
    by_source = ", ".join(f"{source} {count}" for source, count in run["accepted_by_source"].items())
    return f"{by_depth} ({by_source})" if len(run["accepted_by_source"]) > 1 else by_depth


def _equal(run: dict[str, Any], num_questions: int) -> str:
    num_different, num_ties = len(run["differences"]), run["ties"]
    kinds = []
    if num_ties:
        kinds.append("1 tie" if num_ties == 1 else f"{num_ties} ties")
    if num_different > num_ties:
        kinds.append(f"{num_different - num_ties} diverged")
    equal = f"{num_questions - num_different}/{num_questions}"
    return f"{equal} ({', '.join(kinds)})" if kinds else equal


def _tau_table(record: dict[str, Any]) -> str:
    names = list(categories(record))
    rows = [
        [run["run"], *(number(run["tau_by_category"].get(name), ".3f") for name in names)] for run in record["runs"]
    ]
    return table(["run", *names], rows)
