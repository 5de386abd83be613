"""Compares a way of drafting with plain decoding or with transformers."""

import argparse
import dataclasses
import importlib.util

from jax_probe_mtp.commands import draft_options, model_defaults, options
from jax_probe_mtp.commands.verify.report import described_run, report
from jax_probe_mtp.decoding.settings import PENALTIES, Prompt
from jax_probe_mtp.drafting.spec import PLAIN, draft_name, parse_draft
from jax_probe_mtp.files.output_file import categories
from jax_probe_mtp.files.records.record import Record
from jax_probe_mtp.jobs.encode import Encoder
from jax_probe_mtp.jobs.survey import check_samples
from jax_probe_mtp.sameness.compare import compare, compare_with_torch


def verify_method(args: argparse.Namespace) -> int:
    """Runs the command without --outputs; gives its exit status."""
    if args.frequencies:
        raise ValueError("--frequencies is for --outputs; leave it out.")
    masks, settings = draft_options.MasksFlags(args), options.settings(args)
    source = draft_options.draft_source(args)
    if source == parse_draft(PLAIN):
        raise ValueError(f"{_plain_flag(args)} is plain decoding, with which verify compares: name a way of drafting.")
    source = masks.put_into(source)
    draft_options.check_choice(source, settings)
    records = options.read_records(args)  # before anything slow starts
    category_of = categories(args.input) if args.input else {}
    if args.against == "torch":
        if args.exact or max([settings.temperature, *(record.temperature or 0 for record in records)]) > 0:
            raise ValueError(
                "--against torch compares greedy tokens of the ordinary mode; leave --exact and temperatures out."
            )
        if settings.stop or any(record.stop for record in records):
            raise ValueError("--against torch compares whole answers; leave stop texts out.")
        if args.use_generation_config or settings.is_penalized or any(record.is_penalized for record in records):
            asked = f"{', '.join(PENALTIES)} and --use-generation-config"
            raise ValueError(f"--against torch compares greedy tokens without {asked}; leave them out.")
        if importlib.util.find_spec("torch") is None:
            raise ValueError("--against torch needs torch: pip install '.[torch]' from a checkout installs it.")
    opened = options.open_model(args)
    settings = model_defaults.settings_of(args, opened.generation_defaults, settings)
    for record in records:
        check_samples(record, settings)
    encode = options.encoder(args, opened.tokenizer)
    prompts = [_encoded(record, encode) for record in records]
    draft_options.check_own(source, opened.config)
    checkpoint = opened.load()
    masks.check_model(checkpoint)
    with_what = compare_with_torch if args.against == "torch" else compare
    shared = masks.shared(source)
    said = masks.said if source.needs_shared else {}
    drafting = {"draft": draft_name(source), **said, "against": args.against or "ar"}
    run = described_run(args, checkpoint, settings) | drafting
    title = f"{run['draft']} against {'transformers' if args.against == 'torch' else 'plain decoding'}"
    found = with_what(checkpoint, prompts, source, settings, shared=shared)
    told_apart = (
        dataclasses.replace(each, category=category_of.get(each.id), sample=record.sample or None)
        for each, record in zip(found, records, strict=True)
    )
    return report(told_apart, title, run, args)


def _encoded(record: Record, encode: Encoder) -> Prompt:
    try:
        return encode(record)
    except ValueError as error:
        raise ValueError(f"record {record.id!r:.60}: {error}") from None


def _plain_flag(args: argparse.Namespace) -> str:
    return "--num-masks 0" if args.draft is None else f"--draft {args.draft}"
