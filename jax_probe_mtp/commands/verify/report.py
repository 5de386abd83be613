"""Shows verdicts as they come, and writes the reports that were asked for."""

import argparse
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from jax_probe_mtp.commands import model_defaults
from jax_probe_mtp.commands.verify.file_flags import WholeFile
from jax_probe_mtp.decoding.settings import PENALTIES, Settings
from jax_probe_mtp.files.whole_files import write_files, write_json
from jax_probe_mtp.measuring.environment import environment
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.fingerprint import model_identity
from jax_probe_mtp.sameness import verdicts
from jax_probe_mtp.sameness.verdicts import Verdict

DEFAULTS = "model_defaults_not_applied"


def show(found: Iterable[Verdict]) -> list[Verdict]:
    """Prints each verdict as it comes, then the counts; gives all of them."""
    kept = []
    for verdict in found:
        print(verdict, flush=True)
        kept.append(verdict)
    print(verdicts.counts_line(verdicts.summary(kept)), flush=True)
    return kept


def report(
    found: Iterable[Verdict], title: str, run: dict[str, Any], args: argparse.Namespace, whole: WholeFile | None = None
) -> int:
    """Shows the verdicts, writes the reports that were asked for and returns the exit status.

    Args:
      found: the verdicts, as they come.
      title: of the Markdown report.
      run: what they hold for.
      args: the flags.
      whole: what is said of a file as a whole; None where nothing is.
    """
    kept: list[Verdict] = []  # for JSON all of them, else as many as Markdown lists: a file may be of any length

    def shown() -> Iterator[Verdict]:
        for verdict in found:
            print(verdict, flush=True)
            if args.json or (args.markdown and verdicts.is_listed(verdict) and len(kept) <= verdicts.MOST_LISTED):
                kept.append(verdict)
            yield verdict

    totals = verdicts.summary(shown())
    of_file = {"conclusion": whole.conclusion(totals), "file": whole.as_json()} if whole else {}
    lines = [*whole.lines(), f"verdict: {of_file['conclusion']}"] if whole else []
    for line in [*lines, verdicts.counts_line(totals)]:
        print(line, flush=True)
    if args.outputs and totals[verdicts.DIVERGED] and DEFAULTS in run:  # elsewhere neither side applies them
        print(model_defaults.say_may_be_why(run["model"]["name"], run[DEFAULTS]), file=sys.stderr)
    if args.json:
        records = [verdict.as_json() for verdict in kept]
        write_json(args.json, {"run": run, "summary": totals, **of_file, "records": records})
    if args.markdown:
        text = verdicts.markdown(title, run, totals, kept, lines)
        write_files(args.markdown.parent, {args.markdown.name: text})
    return whole.status(totals) if whole else verdicts.status_of(totals)


def described_run(args: argparse.Namespace, checkpoint: Checkpoint, settings: Settings) -> dict[str, Any]:
    """Describes what the verdicts hold for."""
    names = ("temperature", "top_k", "top_p", "seed", "batch_size", "is_exact", *PENALTIES)
    defaults = model_defaults.not_applied(checkpoint.generation_defaults, settings)
    return {
        "model": model_identity(checkpoint),
        **{name: getattr(settings, name) for name in names},
        "eos_token_ids": list(checkpoint.eos_token_ids),
        "max_new_tokens": args.max_new_tokens if args.outputs else settings.max_new_tokens,
        **({DEFAULTS: defaults} if defaults else {}),
        **environment(checkpoint.number_format),
    }
