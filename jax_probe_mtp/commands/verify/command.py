"""`verify` as a command: its flags, and which of the two ways it takes."""

import argparse
from typing import Any

from jax_probe_mtp.commands import draft_options, model_defaults, options
from jax_probe_mtp.commands.flags import penalties
from jax_probe_mtp.commands.verify.file_flags import add_file_flags, refuse_without_outputs
from jax_probe_mtp.commands.verify.method import verify_method
from jax_probe_mtp.commands.verify.outputs import verify_outputs
from jax_probe_mtp.errors import local_file
from jax_probe_mtp.files.formats.known import AUTO, NAMES
from jax_probe_mtp.files.remote.address import STREAM, file_address_or_stream
from jax_probe_mtp.files.remote.places import Places
from jax_probe_mtp.files.whole_files import check_files

AGAINST = ("ar", "torch")


def add_command(commands: Any) -> None:
    """Adds the command to the parser's."""
    verify = commands.add_parser("verify", allow_abbrev=False, help="are these the tokens of plain decoding?")
    source = options.add_prompts(verify)
    source.required = False  # --outputs may stand alone, and beside --input
    verify.add_argument(
        "--outputs",
        type=file_address_or_stream,
        metavar="O.jsonl",
        help="outputs of any framework, to be checked instead; --input gives the prompts where they hold none",
    )
    verify.add_argument(
        "--format",
        choices=NAMES,
        metavar="F",
        help=f"of --outputs: {', '.join(NAMES)} (default: {AUTO}, by the first line)",
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
    add_file_flags(verify)
    verify.set_defaults(command=_verify)


def _verify(args: argparse.Namespace) -> int:
    if args.prompt is None and args.input is None and args.outputs is None:
        raise ValueError("one of the arguments --prompt --input --outputs is required.")
    if args.prompt is not None and args.outputs is not None:
        raise ValueError("argument --outputs: not allowed with argument --prompt.")
    if args.input == args.outputs == STREAM:
        raise ValueError("--input and --outputs cannot both be stdin; name a file for one of them.")
    if args.format is not None and args.outputs is None:
        raise ValueError("--format is for --outputs; leave it out.")
    refuse_without_outputs(args)
    with Places() as places:
        args.input, args.outputs, args.baseline = map(places.read, (args.input, args.outputs, args.baseline))
        written = {f"--{name}": getattr(args, name) for name in ("json", "markdown", "tokens", "figure")}
        check_files(written, [args.input, args.outputs, args.baseline, args.masks])
        return verify_outputs(args) if args.outputs else verify_method(args)
