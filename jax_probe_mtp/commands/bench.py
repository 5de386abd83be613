"""`bench` and `bench report` as commands: ways of drafting are measured side by side, and what was measured is drawn."""

import argparse
import hashlib
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jax_probe_mtp.commands import draft_options, options
from jax_probe_mtp.drafting.spec import draft_name
from jax_probe_mtp.errors import local_file, local_path
from jax_probe_mtp.files.questions import read_questions
from jax_probe_mtp.files.whole_files import check_files, write_json
from jax_probe_mtp.measuring import bench, bench_record
from jax_probe_mtp.measuring.environment import environment
from jax_probe_mtp.measuring.report import bench_report
from jax_probe_mtp.measuring.runs import parse_runs
from jax_probe_mtp.model.fingerprint import identity
from jax_probe_mtp.model.mesh import check_mesh, make_mesh, parse_mesh

DEFAULT_RUNS = "plain;probe:14;ngram:10;recycle:30"


def join_command(argv: Sequence[str]) -> list[str]:
    """Joins `bench report` into one word: it is a command of its own, though its name has two."""
    return ["bench report", *argv[2:]] if list(argv[:2]) == ["bench", "report"] else list(argv)


def add_commands(commands: Any) -> None:
    """Adds the two commands to the parser's."""
    measure = commands.add_parser(
        "bench",
        allow_abbrev=False,
        help="measure ways of drafting side by side ('bench report' draws what was measured)",
        epilog="Runs are written as --draft of generate, name:shape@option=value,... (docs/benchmark.md); "
        "'jax-probe-mtp bench report R.json... "
        "--output DIR' makes tables and figures.",
    )
    options.add_questions(measure)
    measured = measure.add_mutually_exclusive_group()
    measured.add_argument(
        "--runs", default=DEFAULT_RUNS, metavar="R;R;...", help="what to compare (default: %(default)s)"
    )
    measured.add_argument(
        "--draft",
        action="append",
        metavar="SPEC",
        help="one run beside plain decoding; may be repeated (default: what --runs says)",
    )
    draft_options.add_masks(measure)
    options.add_sampling(measure, max_new_tokens=options.NEW_TOKENS)
    measure.add_argument(
        "--mesh", metavar="data=D,tensor=T", help="split over D x T devices, in one program (default: one device)"
    )
    measure.add_argument("--output", type=local_file, required=True, metavar="R.json", help="what was measured")
    measure.add_argument("--resume", action="store_true", help="go on with what --output holds")
    measure.set_defaults(command=_bench)

    draw = commands.add_parser("bench report", allow_abbrev=False, help="tables and figures of bench records")
    draw.add_argument("records", type=local_file, nargs="+", metavar="R.json", help="what bench measured")
    draw.add_argument(
        "--output", type=local_path, required=True, metavar="DIR", help="folder for the tables and figures"
    )
    draw.set_defaults(command=_report)


def _bench(args: argparse.Namespace) -> int:
    draft_options.find_own_modules()
    runs, settings = parse_runs(";".join(args.draft) if args.draft else args.runs), options.settings(args)
    masks = draft_options.MasksFlags(args)
    for source in runs:
        masks.check(source)
    if masks.digest and not any(source.needs_shared for source in runs):
        raise ValueError("--masks is of runs with tuned masks: name one, such as probe:14@mask_init=tuned.")
    questions = read_questions(args.questions, args.per_category)
    check_files({"--output": args.output}, [args.questions, args.masks])
    earlier = bench_record.read_record(args.output) if args.output.exists() else None
    opened = options.open_model(args)
    mesh = make_mesh(*parse_mesh(args.mesh)) if args.mesh else None
    if mesh is not None:
        check_mesh(opened.config, settings.batch_size, *mesh.devices.shape)
    checkpoint = opened.load(mesh)
    masks.check_model(checkpoint)
    header = {
        "format": bench_record.FORMAT,
        "environment": environment(checkpoint.number_format),
        "model": identity(checkpoint),
        "settings": {
            "questions": args.questions.name,
            "questions_sha256": hashlib.sha256(args.questions.read_bytes()).hexdigest(),
            "per_category": args.per_category,
            "max_new_tokens": settings.max_new_tokens,
            "runs": [draft_name(source) for source in runs],
            **masks.said,
            "temperature": settings.temperature,
            "top_k": settings.top_k,
            "top_p": settings.top_p,
            "seed": settings.seed,
            "batch_size": settings.batch_size,
            "capacity": settings.capacity,
            "prompt_slots": settings.prompt_slots,
            **({"mesh": "data={},tensor={}".format(*mesh.devices.shape)} if mesh is not None else {}),
            "eos_token_ids": args.eos_token_id,  # null: the model's own
            "use_chat_template": not args.no_chat_template,
        },
    }
    for source in runs:
        draft_options.check_own(source, checkpoint.config)
    measured = bench.Bench(
        checkpoint,
        questions,
        runs,
        settings,
        use_chat_template=not args.no_chat_template,
        shared=masks.shared,
    )
    if earlier:
        _check_same(args.output, earlier, header, resume=args.resume)
        measured.results = _results(args.output, earlier, {str(question.id) for question in questions})
    options.say_skipped(measured.skipped)

    try:
        if measured.num_done < measured.num_questions:
            for _ in _measure(measured, len(runs)):
                write_json(args.output, header | measured.record())
    except KeyboardInterrupt:
        if measured.num_done:  # once more: it may have come between a measurement and its writing
            write_json(args.output, header | measured.record())
        kept = f"{measured.num_done} of {measured.num_questions} questions are in {args.output}, --resume goes on"
        print(f"error: interrupted; {kept if measured.num_done else 'no question was done'}", file=sys.stderr)
        return 130
    done = measured.record()["runs"]
    for run in done:
        print(_line(run))
    return int(any(len(run["differences"]) > run["ties"] for run in done))


def _measure(measured: bench.Bench, num_runs: int) -> Iterator[None]:
    """Goes through the questions that are not done under a progress bar; yields after each batch."""
    for _ in tqdm(measured.compile(), desc="compiling", total=num_runs, unit="run", disable=None):
        pass
    total, done = measured.num_questions * num_runs, measured.num_done
    with tqdm(total=total, initial=done * num_runs, unit="answer", disable=None) as bar:
        for num_answers in measured.measure():
            bar.update(num_answers)
            if measured.num_done > done:
                done = measured.num_done
                yield


def _check_same(path: Path, earlier: dict[str, Any], header: dict[str, Any], *, resume: bool) -> None:
    """Refuses to mix two measurements, or to go on with one unasked."""
    for part in ("model", "settings", "environment"):
        for name, value in header[part].items():
            if part == "model" and name not in earlier[part]:
                continue  # an earlier version did not write it
            there = earlier[part].get(name)
            if there != value:
                raise ValueError(
                    f"--output {path} was made with {part} {name} {_say(there)}, this command has {_say(value)}; name "
                    f"another file."
                )
    if not resume:
        raise ValueError(
            f"--output {path} is there already, from the same command, with {len(earlier['questions'])} questions; "
            f"--resume goes on with it, or name another file."
        )


def _results(path: Path, earlier: dict[str, Any], questions: set[str]) -> dict[str, dict[str, Any]]:
    """Gives what each run gave, by question, and refuses a record that somebody has edited."""
    results = {run["run"]: run["by_question"] for run in earlier["runs"]}
    answered = [set(by_question) for by_question in results.values()]
    seconds = [result["seconds"] for by_question in results.values() for result in by_question.values()]
    is_whole = list(results) == earlier["settings"]["runs"] and all(ids == answered[0] for ids in answered)
    if not is_whole or not answered[0] <= questions or not all(each > 0 for each in seconds):
        raise ValueError(
            f"--output {path} was changed since: its runs do not fit its settings or questions; name another."
        )
    return results


def _say(value: object) -> str:
    return ";".join(map(str, value)) if isinstance(value, list) else str(value)


def _line(run: dict[str, Any]) -> str:
    equal = len(run["by_question"]) - len(run["differences"])
    ties = f" ({run['ties']} ties)" if run["ties"] else ""
    return (
        f"{run['run']:32} {run['rows_per_call']:4} rows a call, tau {run['tau']:.3f}, {run['calls']} calls, "
        f"{equal}/{len(run['by_question'])} equal{ties}, {run['seconds']:.1f} s, {run['speedup_vs_ar']:.2f} x plain"
    )


def _report(args: argparse.Namespace) -> int:
    for path in bench_report.write_report(args.records, args.output):
        print(path)
    return 0
