"""Says what a bench record holds, once for every form of report: a sentence, tables, lists and how to run it again."""

import dataclasses
import shlex
from typing import Any

from jax_probe_mtp.files.markdown import number, ratio
from jax_probe_mtp.measuring.bench_record import categories

LEGEND = (
    "tau: tokens a decode call gives. Speed-up: wall time of plain (plain decoding) over that of the run; below 1 the run "
    "is slower. Quartiles are over the questions. Records are not pooled: each has its own section."
)
PLAIN = "plain"


@dataclasses.dataclass(frozen=True)
class Table:
    """A table and what stands above it; each row has a text for each column, the first a run's name."""

    heading: str
    columns: list[str]
    rows: list[list[str]]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Section:
    """What a report says of one record, as plain text that no form has escaped yet.

    Attributes:
      title: the model, the device and what else names the measurement.
      answer: one sentence: which run is the best, and how good.
      warning: what is wrong with the record as a whole; "" where nothing is.
      best: the name of the run that `answer` names; None where it names none.
      tables: runs, tau by category, acceptance by depth.
      lists: headings, and under each what there is one by one; none of them empty.
      facts: settings and versions, sentences.
      commands: what measures the same once more, and draws it.
    """

    title: str
    answer: str
    warning: str
    best: str | None
    tables: list[Table]
    lists: dict[str, list[str]]
    facts: list[str]
    commands: list[str]


def make_section(record: dict[str, Any], file_name: str) -> Section:
    """Puts a record that `read_record` has checked, from a file of this name, into words."""
    best = _best(record)
    differences = [
        f"{run['run']}, question {name}: {text}" for run in record["runs"] for name, text in run["differences"].items()
    ]
    lists = {
        "Questions skipped": [f"{name}: {why}" for name, why in record["skipped"].items()],
        "First differences from plain decoding": differences,
    }
    depths = _depth_table(record["runs"])
    return Section(
        title=_title(record),
        answer=_answer(record, best),
        warning=""
        if record["is_complete"]
        else "This record is not complete: its bench was cut off, and other questions are missing.",
        best=best["run"] if best else None,
        tables=[_run_table(record), _tau_table(record), *([depths] if depths.rows else [])],
        lists={f"{heading} ({len(items)})": items for heading, items in lists.items() if items},
        facts=[f"{_asked(record)}. Record: {file_name}.", f"{_versions(record['environment'])}."],
        commands=[_command(record), "jax-probe-mtp bench report R.json --output FOLDER"],
    )


def _best(record: dict[str, Any]) -> dict[str, Any] | None:
    """Finds the fastest draft, or, where no speed was measured, the one of the most tokens a call."""
    if not record["questions"]:
        return None
    drafts = [run for run in record["runs"] if run["run"] != PLAIN and run["tau"] is not None]
    timed = [run for run in drafts if run["speedup_vs_ar"] is not None]
    return max(timed or drafts, key=lambda run: (run["speedup_vs_ar"] or 0, run["tau"]), default=None)


def _answer(record: dict[str, Any], best: dict[str, Any] | None) -> str:
    num_questions = len(record["questions"])
    of_what = f"For {record['model']['name']} on {record['environment']['device']}:"
    if not num_questions:
        return f"{of_what} no question has been answered yet."
    if best is None:
        return f"{of_what} no draft was measured beside plain decoding."
    speedup = best["speedup_vs_ar"]
    gives = f"{best['run']}, with {best['tau']:.2f} tokens a call"
    if speedup is None:
        what = f"no speed was measured; the longest acceptance is that of {gives}"
    elif float(ratio(speedup)) > 1:
        what = f"the best draft is {gives} and {ratio(speedup)} times plain decoding's speed"
    else:
        what = f"no draft is faster than plain decoding; the fastest is {gives} and {ratio(speedup)} times its speed"
    num_equal = num_questions - len(best["differences"])
    same = f"{num_equal} of {num_questions} outputs are plain decoding's ({_differing(best)})"
    if num_equal == num_questions:
        same = f"all outputs ({num_questions}) are plain decoding's"
    return f"{of_what} {what}; {same}."


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


def _run_table(record: dict[str, Any]) -> Table:
    rows, num_questions = [], len(record["questions"])
    for run in record["runs"]:
        speedups = [ratio(speedup) for speedup in run["speedup_quartiles"]]
        ms = [number(value, ".2f") for value in run["ms_per_call_quartiles"]]
        equal, differing = f"{num_questions - len(run['differences'])}/{num_questions}", _differing(run)
        cells = {
            "run": run["run"],
            "tau": number(run["tau"], ".3f"),
            "calls": str(run["calls"]),
            "tokens a second": number(run["tokens_per_second"], ".1f"),
            "speed-up (summed time)": ratio(run["speedup_vs_ar"]),
            "outputs equal to plain decoding": f"{equal} ({differing})" if differing else equal,
            "median speed-up (quartiles)": _with_spread(speedups),
            "median ms a call (quartiles)": _with_spread(ms),
            "rows a call": str(run["rows_per_call"]),
            "call reduction": number(run["call_reduction"], "z.1%"),  # z: no -0.0%
            "seconds": number(run["seconds"], ".2f"),
        }
        rows.append(cells)
    return Table("Runs", list(rows[0]), [list(cells.values()) for cells in rows])


def _with_spread(quartiles: list[str]) -> str:
    lowest, median, highest = quartiles
    return median if median == "n/a" else f"{median} ({lowest} to {highest})"


def _differing(run: dict[str, Any]) -> str:
    """Counts the outputs that are not plain decoding's, by what they are; "" where there are none."""
    num_ties = run["ties"]
    num_diverged = len(run["differences"]) - num_ties
    kinds = ["1 tie" if num_ties == 1 else f"{num_ties} ties"] * bool(num_ties)
    return ", ".join(kinds + [f"{num_diverged} diverged"] * bool(num_diverged))


def _tau_table(record: dict[str, Any]) -> Table:
    names = list(categories(record))
    rows = [
        [run["run"], *(number(run["tau_by_category"].get(name), ".3f") for name in names)] for run in record["runs"]
    ]
    return Table("tau by category", ["run", *names], rows)


def _depth_table(runs: list[dict[str, Any]]) -> Table:
    """Counts accepted drafts by depth, with their share of the calls, and by source where a run has several."""
    drafting = [run for run in runs if run["accepted_by_depth"]]
    deepest = max((len(run["accepted_by_depth"]) for run in drafting), default=0)
    has_sources = any(len(run["accepted_by_source"]) > 1 for run in drafting)
    columns = ["run", "calls", *(f"depth {depth}" for depth in range(1, deepest + 1)), *["by source"] * has_sources]
    rows = []
    for run in drafting:
        counts = [_with_share(count, run["calls"]) for count in run["accepted_by_depth"]]
        sources = ", ".join(f"{source} {count}" for source, count in run["accepted_by_source"].items())
        row = [run["run"], str(run["calls"]), *counts, *[""] * (deepest - len(counts)), *[sources] * has_sources]
        rows.append(row)
    return Table("Drafts accepted at each depth", columns, rows)


def _with_share(count: int, calls: int) -> str:
    return f"{count} ({count / calls:.1%})" if calls else str(count)


def _command(record: dict[str, Any]) -> str:
    """Writes the command that measured the record; its model and files are named without their folders."""
    settings, (dtype, *weights) = record["settings"], str(record["environment"]["dtype"]).split(", ")
    is_greedy = not settings["temperature"]
    flags = {
        "--model": record["model"]["name"],
        "--dtype": dtype,
        "--weights": weights[0].removesuffix(" weights") if weights else None,
        "--questions": settings["questions"],
        "--per-category": settings.get("per_category"),
        "--runs": ";".join(run["run"] for run in record["runs"]),
        "--masks": "MASKS.safetensors" if settings.get("masks") else None,
        "--max-new-tokens": settings["max_new_tokens"],
        "--temperature": None if is_greedy else settings["temperature"],
        "--top-k": None if is_greedy else settings["top_k"],
        "--top-p": None if is_greedy else settings["top_p"],
        "--seed": None if is_greedy else settings["seed"],
        "--batch-size": settings["batch_size"],
        "--capacity": settings.get("capacity"),
        "--prompt-slots": settings.get("prompt_slots"),
        "--mesh": settings.get("mesh"),
        "--output": "R.json",
    }
    words = [word for flag, value in flags.items() if value is not None for word in (flag, str(value))]
    for token in settings.get("eos_token_ids") or ():
        words += ["--eos-token-id", str(token)]
    words += [] if settings["use_chat_template"] else ["--no-chat-template"]
    return shlex.join(["jax-probe-mtp", "bench", *words])
