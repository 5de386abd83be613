"""Runs the command `checkpoints-convert`."""

from collections.abc import Sequence
from typing import Any

from checkpoints_convert.convert import convert_gguf, convert_hf
from checkpoints_convert.info import read_info
from checkpoints_convert.mapping.ends import add_flag
from checkpoints_convert.params.fill import DTYPES
from jax_probe_mtp.errors import Parser, exit_status, local_path
from jax_probe_mtp.model.params import WEIGHTS


def _parser() -> Parser:
    parser = Parser(
        prog="checkpoints-convert",
        description="Converts Llama and Qwen checkpoints for jax-probe-mtp, and describes them.",
    )
    parser.add_version()
    commands = parser.add_subparsers(dest="command", required=True, parser_class=Parser)
    dtype_help = "dtype of the parameters (default: the file's; float32 for float16, mixed and quantized files)"
    weights_help = "round the layers' matrices and the head to eight bits (default: keep them)"
    hf = commands.add_parser("hf", help="convert a Hugging Face folder or hub id with safetensors")
    hf.add_argument("source", metavar="SRC", help="folder with config.json and safetensors, or a hub id org/name")
    hf.add_argument("destination", type=local_path, metavar="DST", help="folder to make; must not exist")
    hf.add_argument("--dtype", choices=DTYPES, help=dtype_help)
    hf.add_argument("--weights", choices=WEIGHTS, help=weights_help)
    hf.add_argument("--revision", help="branch, tag or commit of a hub id (default: its main branch)")
    gguf = commands.add_parser("gguf", help="convert a GGUF file")
    gguf.add_argument("source", metavar="FILE", help="the .gguf file")
    gguf.add_argument("destination", type=local_path, metavar="DST", help="folder to make; must not exist")
    gguf.add_argument("--dtype", choices=DTYPES, help=dtype_help)
    gguf.add_argument("--weights", choices=WEIGHTS, help=weights_help)
    add_flag(hf)
    add_flag(gguf)
    info = commands.add_parser("info", help="describe a checkpoint without loading its weights")
    info.add_argument("path", metavar="DIR_OR_FILE", help="converted folder, Hugging Face folder or GGUF file")
    add_flag(info)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the command; returns its exit status: 0, or 2 where the input is at fault."""
    args = _parser().parse_args(argv)

    def how() -> dict[str, Any]:
        return {"dtype": args.dtype, "weights": args.weights, "eos_token_ids": args.eos_token_id}

    def run() -> int:
        if args.command == "hf":
            convert_hf(args.source, args.destination, revision=args.revision, **how())
        elif args.command == "gguf":
            convert_gguf(args.source, args.destination, **how())
        else:
            print(read_info(args.path, eos_token_ids=args.eos_token_id), flush=True)
        return 0

    return exit_status(run)
