"""Judges a file of outputs that any framework made."""

import argparse
import datetime
import hashlib
import sys
from pathlib import Path

from jax_probe_mtp.commands import draft_options, model_defaults, options
from jax_probe_mtp.commands.verify.file_flags import open_other, whole_file
from jax_probe_mtp.commands.verify.report import described_run, report
from jax_probe_mtp.files.formats.known import AUTO
from jax_probe_mtp.sameness.frequencies import judge_frequencies
from jax_probe_mtp.sameness.verified_file import FilesToVerify


def _seen(outputs: Path) -> dict[str, str]:
    """Says when a file was judged, and what it held then."""
    found = {"date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")}
    if outputs.is_file():
        with outputs.open("rb") as file:
            found["outputs_sha256"] = hashlib.file_digest(file, "sha256").hexdigest()
    return found


def verify_outputs(args: argparse.Namespace) -> int:
    """Runs the command with --outputs; gives its exit status."""
    of_decoding = [
        "draft",
        "method",
        "against",
        "exact",
        "n",
        "capacity",
        "prompt_slots",
        "calls_per_chunk",
        "masks",
        "masks_of_relative",
    ]
    for option in (*of_decoding, *draft_options.FLAGS):
        if getattr(args, option) is not None and getattr(args, option) is not False:
            raise ValueError(
                f"--{option.replace('_', '-')} says how to decode, and --outputs decodes nothing; leave it out."
            )
    settings = options.settings(args)
    files = FilesToVerify(
        args.outputs,
        format=args.format or AUTO,
        input=args.input,
        baseline=args.baseline,
        max_new_tokens=args.max_new_tokens,
        unknown_seeds=args.unknown_seeds,
    )
    for line in files.says:
        print(line, file=sys.stderr)
    opened = options.open_model(args)
    settings = model_defaults.settings_of(args, opened.generation_defaults, settings)
    files.check(opened.config, settings)
    other = open_other(args, opened)
    checkpoint = opened.load()
    encode = options.encoder(args, opened.tokenizer)
    run = described_run(args, checkpoint, settings) | {"outputs": args.outputs.name, **_seen(args.outputs)}
    if args.frequencies:
        found = judge_frequencies(checkpoint, files.outputs(checkpoint, encode, settings), settings)
        return report(found, f"First tokens of {args.outputs.name}", run, args)
    whole = whole_file(args, files, checkpoint, encode, settings, other)
    asked = {"baseline": args.baseline.name if args.baseline else None, "against_model": args.against_model}
    run |= {"format": files.format, "knows_seeds": files.knows_seeds, **asked}
    with whole.asked():
        verdicts = whole.report.verdicts(files.outputs(checkpoint, encode, settings))
        return report(verdicts, f"Is {args.outputs.name} plain decoding's?", run, args, whole)
