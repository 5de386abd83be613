"""`verify` as a command: are these the tokens of plain decoding? Of this method, of transformers, or of any file of outputs."""

import argparse
import dataclasses
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from typing import Any

from jax_probe_mtp.commands import draft_options, model_defaults, options
from jax_probe_mtp.commands.flags import penalties
from jax_probe_mtp.decoding.settings import PENALTIES, Prompt, Settings
from jax_probe_mtp.drafting.spec import PLAIN, draft_name, parse_draft
from jax_probe_mtp.errors import local_file
from jax_probe_mtp.files.output_file import OutputFile, categories
from jax_probe_mtp.files.records.record import Record
from jax_probe_mtp.files.remote.address import file_address_or_stream
from jax_probe_mtp.files.remote.places import Places
from jax_probe_mtp.files.whole_files import check_files, write_files, write_json
from jax_probe_mtp.jobs.encode import Encoder
from jax_probe_mtp.jobs.survey import check_samples
from jax_probe_mtp.measuring.environment import environment
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.fingerprint import model_identity
from jax_probe_mtp.sameness import verdicts
from jax_probe_mtp.sameness.compare import compare, compare_with_torch
from jax_probe_mtp.sameness.frequencies import judge_frequencies
from jax_probe_mtp.sameness.given_outputs import Output, judge
from jax_probe_mtp.sameness.verdicts import Verdict

AGAINST = ("ar", "torch")
DEFAULTS = "model_defaults_not_applied"


def add_command(commands: Any) -> None:
    """Adds the command to the parser's."""
    verify = commands.add_parser("verify", allow_abbrev=False, help="are these the tokens of plain decoding?")
    source = options.add_prompts(verify)
    source.add_argument(
        "--outputs",
        type=file_address_or_stream,
        metavar="O.jsonl",
        help="outputs of any framework, to be checked instead: id, prompt, token_ids",
    )
    verify.add_argument(
        "--against",
        choices=AGAINST,
        help="what the method's tokens are compared with: plain decoding (ar) or transformers (default: ar)",
    )
    verify.add_argument(
        "--frequencies",
        action="store_true",
        help="of --outputs sampled with unknown seeds: how often first tokens come",
    )
    verify.add_argument("--json", type=local_file, metavar="F.json", help="verdicts and their sums (default: no file)")
    verify.add_argument("--markdown", type=local_file, metavar="F.md", help="the same for people (default: no file)")
    options.add_model(verify)
    draft_options.add_draft(verify, without_plain=True)
    options.add_sampling(verify, max_new_tokens=None)
    penalties.add_penalties(verify)
    model_defaults.add_flag(verify)
    options.add_stream(verify)
    options.add_exact(verify)
    verify.set_defaults(command=_verify)


def show(found: Iterable[Verdict]) -> list[Verdict]:
    """Prints each verdict as it comes, then the counts; gives all of them."""
    kept = []
    for verdict in found:
        print(verdict, flush=True)
        kept.append(verdict)
    print(verdicts.counts_line(verdicts.summary(kept)), flush=True)
    return kept


def _report(found: Iterable[Verdict], title: str, run: dict[str, Any], args: argparse.Namespace) -> int:
    """Shows the verdicts, writes the reports that were asked for and returns the exit status."""
    kept = show(found)
    totals = verdicts.summary(kept)
    if args.outputs and totals[verdicts.DIVERGED] and DEFAULTS in run:  # elsewhere neither side applies them
        print(model_defaults.say_may_be_why(run["model"]["name"], run[DEFAULTS]), file=sys.stderr)
    if args.json:
        write_json(args.json, {"run": run, "summary": totals, "records": [verdict.as_json() for verdict in kept]})
    if args.markdown:
        write_files(args.markdown.parent, {args.markdown.name: verdicts.markdown(title, run, totals, kept)})
    return verdicts.status_of(totals)


def _verify(args: argparse.Namespace) -> int:
    with Places() as places:
        args.input, args.outputs = places.read(args.input), places.read(args.outputs)
        check_files({"--json": args.json, "--markdown": args.markdown}, [args.input, args.outputs, args.masks])
        return _verify_outputs(args) if args.outputs else _verify_method(args)


def _verify_method(args: argparse.Namespace) -> int:
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
        if importlib.util.find_spec("torch") is None:
            raise ValueError("--against torch needs torch: pip install '.[torch]' from a checkout installs it.")
        if args.exact or max([settings.temperature, *(record.temperature or 0 for record in records)]) > 0:
            raise ValueError(
                "--against torch compares greedy tokens of the ordinary mode; leave --exact and temperatures out."
            )
        if settings.stop or any(record.stop for record in records):
            raise ValueError("--against torch compares whole answers; leave stop texts out.")
        if args.use_generation_config or settings.is_penalized or any(record.is_penalized for record in records):
            asked = f"{', '.join(PENALTIES)} and --use-generation-config"
            raise ValueError(f"--against torch compares greedy tokens without {asked}; leave them out.")
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
    run = _run(args, checkpoint, settings) | drafting
    title = f"{run['draft']} against {'transformers' if args.against == 'torch' else 'plain decoding'}"
    found = with_what(checkpoint, prompts, source, settings, shared=shared)
    told_apart = (
        dataclasses.replace(each, category=category_of.get(each.id), sample=record.sample or None)
        for each, record in zip(found, records, strict=True)
    )
    return _report(told_apart, title, run, args)


def _encoded(record: Record, encode: Encoder) -> Prompt:
    try:
        return encode(record)
    except ValueError as error:
        raise ValueError(f"record {record.id!r:.60}: {error}") from None


def _plain_flag(args: argparse.Namespace) -> str:
    return "--num-masks 0" if args.draft is None else f"--draft {args.draft}"


def _verify_outputs(args: argparse.Namespace) -> int:
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
    run = _run(args, checkpoint, settings) | {"outputs": args.outputs.name}
    if args.frequencies:
        found = judge_frequencies(checkpoint, outputs, settings)
        return _report(found, f"First tokens of {args.outputs.name}", run, args)
    return _report(judge(checkpoint, outputs, settings), f"Is {args.outputs.name} plain decoding's?", run, args)


def _outputs(file: OutputFile, encode: Encoder, args: argparse.Namespace) -> Iterator[Output]:
    for record, token_ids, category in file:
        error = None
        try:
            prompt = encode(record)
        except ValueError as refused:
            prompt, error = Prompt(id=record.id, token_ids=[]), str(refused)
        limit = record.max_new_tokens or args.max_new_tokens
        yield Output(prompt=prompt, token_ids=token_ids, limit=limit, category=category, error=error)


def _run(args: argparse.Namespace, checkpoint: Checkpoint, settings: Settings) -> dict[str, Any]:
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
