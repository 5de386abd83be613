"""Judges a file of outputs that any framework made."""

import argparse
import dataclasses
from collections.abc import Iterator

from jax_probe_mtp.commands import draft_options, model_defaults, options
from jax_probe_mtp.commands.verify.report import described_run, report
from jax_probe_mtp.decoding.settings import Prompt
from jax_probe_mtp.drafting.spec import PLAIN, parse_draft
from jax_probe_mtp.files.output_file import OutputFile
from jax_probe_mtp.jobs.encode import Encoder
from jax_probe_mtp.sameness.frequencies import judge_frequencies
from jax_probe_mtp.sameness.given_outputs import Output, judge


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
    file = OutputFile(args.outputs)
    opened = options.open_model(args)
    settings = model_defaults.settings_of(args, opened.generation_defaults, settings)
    limit = settings.max_new_tokens
    if args.max_new_tokens is None:  # a record states its own
        limit = max(limit, settings.min_tokens)
    dataclasses.replace(settings, capacity=1, max_new_tokens=limit).check(opened.config, parse_draft(PLAIN))
    checkpoint = opened.load()
    outputs = _outputs(file, options.encoder(args, opened.tokenizer), args)
    run = described_run(args, checkpoint, settings) | {"outputs": args.outputs.name}
    if args.frequencies:
        found = judge_frequencies(checkpoint, outputs, settings)
        return report(found, f"First tokens of {args.outputs.name}", run, args)
    return report(judge(checkpoint, outputs, settings), f"Is {args.outputs.name} plain decoding's?", run, args)


def _outputs(file: OutputFile, encode: Encoder, args: argparse.Namespace) -> Iterator[Output]:
    for record, token_ids, category in file:
        error = None
        try:
            prompt = encode(record)
        except ValueError as refused:
            prompt, error = Prompt(id=record.id, token_ids=[]), str(refused)
        limit = record.max_new_tokens or args.max_new_tokens
        yield Output(prompt=prompt, token_ids=token_ids, limit=limit, category=category, error=error)
