"""Measures what decoding costs with transformers on torch, at the shapes, prompts and limits that ours is measured at.

    python scripts/measure/bench_torch.py step --shape llama-3-8b --batch 1 --capacity 1024 --output R.json
    python scripts/measure/bench_torch.py generate --model MODEL --questions F.jsonl --per-category 2 --output R.json

`step` times, on random weights, the milliseconds of a call that decodes one token a row, over rounds of `--calls` calls that
begin with `--in-use` tokens in the cache. eager is a DynamicCache and a plain forward; static is a StaticCache of `--capacity`
slots and torch.compile(model.forward, mode="reduce-overhead", fullgraph=True), as in transformers' guide to static caches.
The host neither reads a token between calls nor makes masks, which flatters torch. model.generate does both, with a
StaticCache: on CUDA it compiles the forward itself.

`generate` counts, on a checkpoint, seconds and tokens of greedy `model.generate`, question by question with the modes in turns.
static gets one StaticCache, which fits every question and is reset between them: `cache_implementation="static"` allocates
another one for each, perhaps elsewhere than the CUDA graph was recorded for. generate compiles it on CUDA alone.

A round of `step`, and each mode's first question, run once before they are timed, so that nothing is compiled within.
"""

import argparse
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from shapes import SHAPES
from torch_generate import measure_generate
from torch_step import Record, measure_steps

from jax_probe_mtp.errors import Parser, exit_status, one_line, positive
from jax_probe_mtp.files.whole_files import check_files, write_json


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints a table and writes the record."""
    args = _parser().parse_args(argv)
    try:
        import torch
        import transformers  # noqa: F401
    except ImportError as error:
        raise ValueError(f"{one_line(error)}; pip install '.[torch]' from a checkout installs it.") from error
    torch.set_float32_matmul_precision("highest")  # no TF32: float32 runs are compared token for token
    questions = getattr(args, "questions", None)
    check_files({"--output": args.output}, [Path(questions)] if questions else [])
    if args.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"torch {torch.__version__} finds no CUDA device; pass --device cpu, or install a CUDA build.")
    try:
        with torch.no_grad():
            for record in args.measure(args, _header(args)):
                if args.output:
                    write_json(args.output, record)
    except torch.OutOfMemoryError as error:
        raise ValueError(f"{one_line(error)} Take a smaller shape, --batch or --capacity.") from error
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True, metavar="step|generate")
    step = commands.add_parser("step", help="one token a call, on random weights")
    step.add_argument("--shape", choices=sorted(SHAPES), default="llama-3-8b")
    step.add_argument("--layers", type=positive, metavar="L", help="another number of layers than the shape has")
    step.add_argument("--batch", type=positive, default=1, metavar="B")
    step.add_argument("--capacity", type=positive, default=1024, metavar="S", help="slots of the static cache")
    step.add_argument("--in-use", type=positive, default=500, metavar="TOKENS", help="in the cache at the start")
    step.add_argument("--calls", type=positive, default=50, help="of a round")
    step.add_argument("--repeats", type=positive, default=5, help="rounds")
    step.set_defaults(measure=measure_steps)
    generate = commands.add_parser("generate", help="model.generate on the questions of a benchmark")
    generate.add_argument("--model", required=True, help="converted folder, Hugging Face folder, .gguf file or hub id")
    generate.add_argument("--questions", required=True, metavar="F.jsonl")
    generate.add_argument("--per-category", type=positive, metavar="N", help="all if left out")
    generate.add_argument("--max-new-tokens", type=positive, default=100, metavar="N")
    generate.set_defaults(measure=measure_generate)
    for command, modes in (
        (step, ("eager", "static", "model.generate")),
        (generate, ("eager", "static", "prompt_lookup")),
    ):
        command.add_argument("--modes", choices=modes, nargs="+", default=list(modes))
        command.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
        command.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
        command.add_argument("--no-compile", action="store_true", help="run the static cache without torch.compile")
        command.add_argument("--output", type=Path, metavar="R.json")
    return parser


def _header(args: argparse.Namespace) -> Record:
    """Makes the part of the record that says where and with which settings it was measured."""
    import torch
    import transformers

    is_cuda = args.device == "cuda"
    environment = {
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "python": platform.python_version(),
        "cuda": torch.version.cuda if is_cuda else None,
        "device": torch.cuda.get_device_name() if is_cuda else f"{platform.machine()}, {os.cpu_count()} cores",
        "attention": "sdpa",
    }
    settings = {name: value for name, value in vars(args).items() if name not in ("measure", "output")}
    settings |= {name: Path(settings[name]).name for name in ("model", "questions") if name in settings}
    return {"environment": environment, "settings": settings}


if __name__ == "__main__":
    sys.exit(exit_status(main))
