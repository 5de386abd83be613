"""`merge` as a command: the answers of several processes become one file."""

import argparse
import sys
from typing import Any

from jax_probe_mtp.files.merge import merge
from jax_probe_mtp.files.prompt_file import PromptFile
from jax_probe_mtp.files.records.record_fields import num_samples
from jax_probe_mtp.files.remote.address import file_address_or_stream, file_or_address
from jax_probe_mtp.files.remote.places import Places
from jax_probe_mtp.files.run_file import begun, run_path
from jax_probe_mtp.files.whole_files import check_files
from jax_probe_mtp.jobs.made_by import renewed_run


def add_command(commands: Any) -> None:
    """Adds the command to the parser's."""
    join = commands.add_parser("merge", allow_abbrev=False, help="one file of the answers of several processes")
    join.add_argument("parts", type=file_or_address, nargs="+", metavar="PART.jsonl", help="what the processes wrote")
    join.add_argument("--output", type=file_or_address, required=True, metavar="G.jsonl", help="the one file")
    join.add_argument(
        "--input",
        type=file_address_or_stream,
        metavar="F.jsonl",
        help="the prompts: puts the answers in their order (default: one part after the other)",
    )
    join.add_argument(
        "--n", type=num_samples, metavar="N", help="of --input: answers to each record that does not say (default: 1)"
    )
    join.add_argument(
        "--leave-out-others",
        action="store_true",
        help="of --input: leave out answers to records that it does not have, or asks otherwise (default: they are refused)",
    )
    join.set_defaults(command=_merge)


def _merge(args: argparse.Namespace) -> int:
    if args.leave_out_others and args.input is None:
        raise ValueError("--leave-out-others says what --input does not have; give --input too.")
    if args.n is not None and args.input is None:
        raise ValueError("--n says how many answers records of --input ask for; give --input too.")
    with Places() as places:
        args.input = places.read(args.input)
        parts = [places.read_answers(part, run_path) for part in args.parts]
        output, copy = places.write(args.output, lambda path: [run_path(path), path])
        assert output is not None
        check_files({"--output": output}, [args.input])
        by_line = any(before is not None and before.is_by_line for before in map(begun, parts))
        prompts = PromptFile(args.input, names_by_line=by_line, num_samples=args.n or 1) if args.input else None
        done = merge(parts, output, prompts, renewed_run, leaves_out_others=args.leave_out_others)
        copy.put_anew()
        named = places.named(args.input)
    print(f"{args.output} holds {done.num_written} records", file=sys.stderr)
    if done.num_left_out:
        print(f"{done.num_left_out} answers to other records were left out", file=sys.stderr)
    if done.num_by_id:
        print(
            f"{done.num_by_id} answers of an earlier version were taken by their ids: they do not say to which prompt",
            file=sys.stderr,
        )
    if done.num_missing:
        print(f"{done.num_missing} records of {named} have no answer", file=sys.stderr)
    return int(done.num_missing > 0)
