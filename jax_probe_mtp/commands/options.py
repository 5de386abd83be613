"""Flags that several commands share, and what they stand for: a model, prompts, settings."""

import argparse
import dataclasses
import json
import sys
from typing import Any

import jax

from jax_probe_mtp.commands.cache_folder import cache_folder
from jax_probe_mtp.commands.flags import penalties
from jax_probe_mtp.decoding.settings import Settings
from jax_probe_mtp.errors import local_file, one_line
from jax_probe_mtp.files.prompt_file import PromptFile
from jax_probe_mtp.files.records.record import Record
from jax_probe_mtp.files.records.record_fields import num_samples
from jax_probe_mtp.files.remote.address import Address, file_address_or_stream, is_address
from jax_probe_mtp.files.remote.models import copied_model
from jax_probe_mtp.generation.tokenizer import check_template_kwargs, check_unicode
from jax_probe_mtp.jobs.encode import Encoder
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.params import WEIGHTS

NEW_TOKENS = 100  # of an answer where something is measured


def add_model(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say what to load and how to read prompts."""
    parser.add_argument(
        "--model", required=True, help="converted folder, Hugging Face folder, .gguf file, hub id (org/name) or address"
    )
    parser.add_argument("--revision", help="commit, tag or branch of a hub id (default: its main branch)")
    parser.add_argument(
        "--dtype", choices=("float32", "bfloat16"), help="of the weights (default: the checkpoint's own)"
    )
    parser.add_argument(
        "--weights",
        choices=WEIGHTS,
        help="round the matrices to eight bits (default: as the checkpoint has them); the outputs are then those of plain "
        "decoding with the rounded weights",
    )
    parser.add_argument(
        "--eos-token-id",
        type=int,
        action="append",
        metavar="N",
        help="a token that ends a text; may be repeated (default: those that the model names)",
    )
    parser.add_argument("--no-chat-template", action="store_true", help="take prompts as plain text")


def add_prompts(parser: argparse.ArgumentParser) -> Any:
    """Adds the flags that say where the prompts are; gives their group, one of which has to be given."""
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", help="one prompt")
    source.add_argument(
        "--input",
        type=file_address_or_stream,
        metavar="F.jsonl",
        help='one {"id": ..., "prompt": ...} a line; a file, an address such as gs://bucket/f.jsonl, or - for stdin',
    )
    parser.add_argument(
        "--n",
        type=num_samples,
        metavar="N",
        help="answers to each prompt, each drawn by itself; a record's own n comes first (default: 1)",
    )
    add_template(parser)
    return source


def add_template(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say what records become in the chat template."""
    parser.add_argument(
        "--system",
        metavar="TEXT",
        help="a system message for records that have none of their own (default: the template's)",
    )
    parser.add_argument(
        "--template-kwargs",
        metavar="JSON",
        help="variables of the chat template, such as '{\"enable_thinking\": false}'; a record's own come first",
    )
    parser.add_argument(
        "--continue-final-message",
        action="store_true",
        help="go on with the last one of a record's messages where it is the assistant's (default: it is refused)",
    )


def encoder(args: argparse.Namespace, tokenizer: Any) -> Encoder:
    """Gives what turns records into tokens, as the flags of `add_model` and `add_template` say."""
    template_kwargs = _template_kwargs(args.template_kwargs)
    for flag, value in (("--system", args.system), ("--template-kwargs", template_kwargs)):
        if value is not None and args.no_chat_template:
            raise ValueError(f"{flag} is for the chat template, which --no-chat-template leaves out; give one of them.")
    if args.system is not None:
        check_unicode("--system", args.system)
    if template_kwargs:
        check_template_kwargs(tokenizer, template_kwargs)
    return Encoder(
        tokenizer,
        use_chat_template=not args.no_chat_template,
        continue_final_message=args.continue_final_message,
        system=args.system,
        template_kwargs=template_kwargs,
    )


def _template_kwargs(text: str | None) -> dict[str, Any] | None:
    if text is None:
        return None
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not isinstance(values, dict):
        raise ValueError(f"--template-kwargs must be a JSON object, got {one_line(text)[:60]!r}.")
    return values or None


def read_records(args: argparse.Namespace) -> list[Record]:
    """Reads all prompts of a command at once; several times those of which several answers are asked for."""
    n = args.n or 1
    if args.input:
        return list(PromptFile(args.input, num_samples=n))
    return [Record(index=i, id=0, prompt=args.prompt, n=n, sample=i) for i in range(n)]


def add_questions(parser: argparse.ArgumentParser) -> None:
    """Adds the model and the questions that something is measured on."""
    add_model(parser)
    parser.add_argument(
        "--questions",
        type=local_file,
        required=True,
        metavar="F.jsonl",
        help="as Spec-Bench, SPEED-Bench, BFCL or OpenAI write them (docs/benchmark.md); first turns are asked",
    )
    parser.add_argument("--per-category", type=int, metavar="N", help="the first N of each category (default: all)")


def say_skipped(skipped: dict[str, str]) -> None:
    """Says on stderr which questions do not fit, and why."""
    for question, why in skipped.items():
        print(f"question {question} is skipped: {why}", file=sys.stderr)


def add_sampling(parser: argparse.ArgumentParser, *, max_new_tokens: int | None = Settings().max_new_tokens) -> None:
    """Adds limits, sampling and sizes. A limit of None says that none was given, and stands for the usual one."""
    settings = Settings()
    usual = "%(default)s"
    if max_new_tokens is None:
        usual = f"{settings.max_new_tokens}; with --outputs, what a record states"
    parser.add_argument(
        "--max-new-tokens",
        "--max-tokens",
        type=int,
        default=max_new_tokens,
        metavar="N",
        help=f"tokens of an answer at most (default: {usual})",
    )
    parser.add_argument("--temperature", type=float, metavar="T", help=f"0 is greedy (default: {settings.temperature})")
    parser.add_argument("--top-k", type=int, metavar="K", help=f"0 keeps all tokens (default: {settings.top_k})")
    parser.add_argument("--top-p", type=float, metavar="P", help=f"1 keeps all tokens (default: {settings.top_p})")
    parser.add_argument(
        "--seed", type=int, default=settings.seed, metavar="S", help="of the random draws (default: %(default)s)"
    )
    parser.add_argument(
        "--batch-size", type=int, default=settings.batch_size, metavar="B", help="rows at a time (default: %(default)s)"
    )
    parser.add_argument("--capacity", type=int, metavar="S", help="cache slots a row (default: what the prompts need)")
    parser.add_argument(
        "--prompt-slots",
        type=int,
        metavar="T",
        help="pad all prompts to T: with --capacity, one program for all lengths "
        "(default: the power of two that holds the longest)",
    )


def add_exact(parser: argparse.ArgumentParser) -> None:
    """Adds the flag of the exact mode."""
    parser.add_argument(
        "--exact",
        action="store_true",
        help="the same bits with and without accepted drafts, on CUDA GPUs in every program "
        "(docs/exactness.md); tested on this device at the start",
    )


def add_stream(parser: argparse.ArgumentParser) -> None:
    """Adds the flags that say how texts end early, and how often the rows are looked at."""
    chunk = Settings().calls_per_chunk
    parser.add_argument(
        "--stop",
        action="append",
        default=[],
        metavar="TEXT",
        help="end an answer where this text appears; may be repeated (default: none)",
    )
    parser.add_argument(
        "--calls-per-chunk",
        type=int,
        metavar="K",
        help=f"decode calls between two looks at the rows: then rows that ended get the next prompt "
        f"(default: {chunk}; 1 with --stream)",
    )


def _present(**values: Any) -> dict[str, Any]:
    return {name: value for name, value in values.items() if value is not None}


def settings(args: argparse.Namespace) -> Settings:
    """Gives the settings that the flags of `add_sampling` name, and those of other groups where the command has them."""
    return Settings(
        max_new_tokens=Settings().max_new_tokens if args.max_new_tokens is None else args.max_new_tokens,
        seed=args.seed,
        batch_size=args.batch_size,
        capacity=args.capacity,
        prompt_slots=args.prompt_slots,
        **_present(
            temperature=args.temperature,
            top_k=args.top_k,
            top_p=args.top_p,
            stop=tuple(args.stop) if hasattr(args, "stop") else None,
            calls_per_chunk=getattr(args, "calls_per_chunk", None),
            logprobs=True if getattr(args, "logprobs", None) is not None else None,
            top_logprobs=getattr(args, "logprobs", None),
            prompt_logprobs=getattr(args, "prompt_logprobs", None),
            is_exact=getattr(args, "exact", None),
            repetition_penalty=getattr(args, "repetition_penalty", None),
            presence_penalty=getattr(args, "presence_penalty", None),
            frequency_penalty=getattr(args, "frequency_penalty", None),
            min_tokens=getattr(args, "min_tokens", None),
            ignore_eos=getattr(args, "ignore_eos", None),
            stop_token_ids=tuple(getattr(args, "stop_token_id", None) or ()),
            logit_bias=penalties.logit_bias(getattr(args, "logit_bias", None)),
        ),
    )


def open_model(args: argparse.Namespace) -> Any:
    """Gives the `OpenedCheckpoint` that the flags of `add_model` name, its weights not yet read."""
    from checkpoints_convert import open_checkpoint  # it imports this package, so not at the top

    asked = {"dtype": args.dtype, "weights": args.weights, "eos_token_ids": args.eos_token_id}
    if not is_address(args.model):
        return open_checkpoint(args.model, revision=args.revision, **asked)
    if args.revision is not None:
        raise ValueError(f"--revision is of a hub id, and {args.model} is an address; leave it out.")
    copy = copied_model(Address(args.model), cache_folder() / "models")
    return dataclasses.replace(open_checkpoint(copy, **asked), name=args.model.rstrip("/"))


def load(args: argparse.Namespace, mesh: jax.sharding.Mesh | None = None) -> Checkpoint:
    """Loads the checkpoint that the flags of `add_model` name, onto a mesh where there is one."""
    checkpoint: Checkpoint = open_model(args).load(mesh)
    return checkpoint
