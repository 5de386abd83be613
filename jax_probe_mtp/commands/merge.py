"""`merge` as a command: the answers of several processes become one file."""

import argparse
import sys
from pathlib import Path
from typing import Any

from jax_probe_mtp.files.merge import merge
from jax_probe_mtp.files.prompt_file import PromptFile
from jax_probe_mtp.files.whole_files import check_files
from jax_probe_mtp.jobs.job import renewed_run


def add_command(commands: Any) -> None:
    """Adds the command to the parser's."""
    join = commands.add_parser("merge", allow_abbrev=False, help="one file of the answers of several processes")
    join.add_argument("parts", type=Path, nargs="+", metavar="PART.jsonl", help="what the processes wrote")
    join.add_argument("--output", type=Path, required=True, metavar="G.jsonl", help="the one file")
    join.add_argument(
        "--input",
        type=Path,
        metavar="F.jsonl",
        help="the prompts: puts the answers in their order (default: one part after the other)",
    )
    join.set_defaults(command=_merge)


def _merge(args: argparse.Namespace) -> int:
    check_files({"--output": args.output}, [args.input])
    prompts = PromptFile(args.input) if args.input else None
    num_written, num_missing = merge(args.parts, args.output, prompts, renewed_run)
    print(f"{args.output} holds {num_written} records", file=sys.stderr)
    if num_missing:
        print(f"{num_missing} records of {args.input} have no answer", file=sys.stderr)
    return int(num_missing > 0)
