"""`verify` as a command: are these the tokens of plain decoding? Of this method, of transformers, or of any file of outputs."""

import argparse
import dataclasses
import importlib.util
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from jax_probe_mtp.commands import generate as generate_cli
from jax_probe_mtp.commands import options
from jax_probe_mtp.drafting.draft_config import PLAIN, draft_name
from jax_probe_mtp.files.output_file import OutputFile, categories
from jax_probe_mtp.files.questions import check_files, write_files, write_json
from jax_probe_mtp.generation.prompts import Prompt, Settings
from jax_probe_mtp.generation.waiting import check_sizes
from jax_probe_mtp.jobs import job as jobs
from jax_probe_mtp.measuring.environment import environment
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.fingerprint import model_identity
from jax_probe_mtp.sameness import verdicts
from jax_probe_mtp.sameness.compare import compare, compare_with_torch
from jax_probe_mtp.sameness.frequencies import judge_frequencies
from jax_probe_mtp.sameness.given_outputs import Output, judge
from jax_probe_mtp.sameness.verdicts import Verdict

AGAINST = ("ar", "torch")


def add_command(commands: Any) -> None:
    """Adds the command to the parser's."""
    verify = commands.add_parser("verify", allow_abbrev=False, help="are these the tokens of plain decoding?")
    drafting = [method for method in options.METHODS if method != "ar"]
    verify.add_argument("--method", choices=drafting, help="what is compared with plain decoding (probe)")
    source = generate_cli.add_prompts(verify)
    source.add_argument(
        "--outputs",
        type=Path,
        metavar="O.jsonl",
        help="outputs of any framework, to be checked instead: id, prompt, token_ids",
    )
    verify.add_argument(
        "--against",
        choices=AGAINST,
        help="what the method's tokens are compared with: plain decoding (ar) or transformers",
    )
    verify.add_argument(
        "--frequencies",
        action="store_true",
        help="of --outputs sampled with unknown seeds: how often first tokens come",
    )
    verify.add_argument("--json", type=Path, metavar="F.json", help="verdicts and their sums")
    verify.add_argument("--markdown", type=Path, metavar="F.md", help="the same for people")
    options.add_model(verify)
    options.add_draft(verify)
    options.add_sampling(verify, max_new_tokens=None)
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
    if args.json:
        write_json(args.json, {"run": run, "summary": totals, "records": [verdict.as_json() for verdict in kept]})
    if args.markdown:
        write_files(args.markdown.parent, {args.markdown.name: verdicts.markdown(title, run, totals, kept)})
    return verdicts.status_of(totals)


def _verify(args: argparse.Namespace) -> int:
    check_files({"--json": args.json, "--markdown": args.markdown}, [args.input, args.outputs])
    return _verify_outputs(args) if args.outputs else _verify_method(args)


def _verify_method(args: argparse.Namespace) -> int:
    if args.frequencies:
        raise ValueError("--frequencies is for --outputs; leave it out.")
    args.method = args.method or "probe"
    draft, settings = options.draft_config(args, takes_auto=True), options.settings(args)
    if draft == PLAIN:
        raise ValueError("--num-masks 0 is plain decoding, with which verify compares: name a way of drafting.")
    records = generate_cli.read_records(args)  # before anything slow starts
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
    opened = options.open_model(args.model, args.dtype, args.revision)
    prompts = [jobs.encode(record, opened.tokenizer, use_chat_template=not args.no_chat_template) for record in records]
    checkpoint = opened.load()
    name = args.method
    if args.tree == options.AUTO:
        choice = generate_cli.choose_tree(checkpoint, prompts, draft, settings)
        print(f"auto: {choice}", file=sys.stderr)
        draft, name = choice.draft, draft_name(choice.draft)
    with_what = compare_with_torch if args.against == "torch" else compare
    run = _run(args, checkpoint, settings) | {
        "draft": draft_name(draft, settings.mask_ema),
        "against": args.against or "ar",
    }
    title = f"{run['draft']} against {'transformers' if args.against == 'torch' else 'plain decoding'}"
    found = with_what(checkpoint, prompts, draft, settings, method=name)
    with_categories = (dataclasses.replace(each, category=category_of.get(each.id)) for each in found)
    return _report(with_categories, title, run, args)


def _verify_outputs(args: argparse.Namespace) -> int:
    of_decoding = "method", "against", "exact", "capacity", "prompt_slots", "calls_per_chunk", *options.ALL_METHODS_OF
    for option in of_decoding:
        if getattr(args, option) is not None and getattr(args, option) is not False:
            raise ValueError(
                f"--{option.replace('_', '-')} says how to decode, and --outputs decodes nothing; leave it out."
            )
    settings = options.settings(args)
    file = OutputFile(args.outputs)
    opened = options.open_model(args.model, args.dtype, args.revision)
    check_sizes(opened.config, PLAIN, settings, capacity=1)
    checkpoint = opened.load()
    outputs = _outputs(file, opened.tokenizer, args)
    run = _run(args, checkpoint, settings) | {"outputs": args.outputs.name}
    if args.frequencies:
        found = judge_frequencies(checkpoint, outputs, settings)
        return _report(found, f"First tokens of {args.outputs.name}", run, args)
    return _report(judge(checkpoint, outputs, settings), f"Is {args.outputs.name} plain decoding's?", run, args)


def _outputs(file: OutputFile, tokenizer: Any, args: argparse.Namespace) -> Iterator[Output]:
    for record, token_ids, category in file:
        error = None
        try:
            prompt = jobs.encode(record, tokenizer, use_chat_template=not args.no_chat_template)
        except ValueError as refused:
            prompt, error = Prompt(id=record.id, token_ids=[]), str(refused)
        limit = record.max_new_tokens or args.max_new_tokens
        yield Output(prompt=prompt, token_ids=token_ids, limit=limit, category=category, error=error)


def _run(args: argparse.Namespace, checkpoint: Checkpoint, settings: Settings) -> dict[str, Any]:
    """What the verdicts hold for."""
    names = ("temperature", "top_k", "top_p", "seed", "batch_size", "is_exact")
    return {
        "model": model_identity(checkpoint),
        **{name: getattr(settings, name) for name in names},
        "max_new_tokens": args.max_new_tokens if args.outputs else settings.max_new_tokens,
        **environment(str(checkpoint.params["embed"].dtype)),
    }
