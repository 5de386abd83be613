"""`verify` as a command: its flags, and which of the two ways it takes."""

import argparse
from typing import Any

from jax_probe_mtp.commands import draft_options, model_defaults, options
from jax_probe_mtp.commands.flags import penalties
from jax_probe_mtp.commands.verify.method import verify_method
from jax_probe_mtp.commands.verify.outputs import verify_outputs
from jax_probe_mtp.errors import local_file
from jax_probe_mtp.files.remote.address import file_address_or_stream
from jax_probe_mtp.files.remote.places import Places
from jax_probe_mtp.files.whole_files import check_files

AGAINST = ("ar", "torch")


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


def _verify(args: argparse.Namespace) -> int:
    with Places() as places:
        args.input, args.outputs = places.read(args.input), places.read(args.outputs)
        check_files({"--json": args.json, "--markdown": args.markdown}, [args.input, args.outputs, args.masks])
        return verify_outputs(args) if args.outputs else verify_method(args)
