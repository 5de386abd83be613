"""The commands: flags in, library calls, text out on stdout and everything else on stderr."""

import argparse
import io
import os
import sys
from collections.abc import Sequence

import jax

from jax_probe_mtp.commands import bench as bench_cli
from jax_probe_mtp.commands import demo_model, options
from jax_probe_mtp.commands import generate as generate_cli
from jax_probe_mtp.commands import verify as verify_cli
from jax_probe_mtp.errors import Parser, exit_status, one_line
from jax_probe_mtp.files.prompt_file import Record
from jax_probe_mtp.generation.decoder import DEFAULT_DRAFT, Settings
from jax_probe_mtp.jobs import job as jobs
from jax_probe_mtp.sameness import verdicts
from jax_probe_mtp.sameness.compare import compare

DEMO_PROMPTS = ("Write a Python function that adds two numbers.", "What is the capital of France?")
DEMO_TOKENS = 48


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Returns 0; 1 where `verify` found a difference; 2 for bad input, with one line on stderr."""
    args = _parser().parse_args(bench_cli.join_command(sys.argv[1:] if argv is None else argv))

    def run() -> int:
        _set_up_process()
        return int(args.command(args))

    return exit_status(run)


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="jax-probe-mtp", description="Lossless multi-token prediction for Llama and Qwen models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    generate_cli.add_commands(commands)
    verify_cli.add_command(commands)
    bench_cli.add_commands(commands)
    demo = commands.add_parser("demo", help="fetch SmolLM2-135M-Instruct, answer two prompts, show the proof")
    demo.set_defaults(command=_demo)
    return parser


def _demo(args: argparse.Namespace) -> int:
    from checkpoints_convert import convert_gguf

    folder = demo_model.cache_folder()
    converted = folder / "SmolLM2-135M-Instruct"
    if not converted.exists():
        print(f"fetching SmolLM2-135M-Instruct (98 MB) into {folder}", file=sys.stderr)
        convert_gguf(demo_model.fetch(folder), converted)
    checkpoint = options.load(converted, "float32")
    records = [Record(index=i, id=i, prompt=prompt) for i, prompt in enumerate(DEMO_PROMPTS)]
    print("decoding twice, plainly and with one mask and 14 drafts a call, and comparing every token", file=sys.stderr)
    found = compare(
        checkpoint,
        [jobs.encode(record, checkpoint.tokenizer, use_chat_template=True) for record in records],
        DEFAULT_DRAFT,
        Settings(max_new_tokens=DEMO_TOKENS),
        method="probe",
        show=lambda got: print(f"\n> {DEMO_PROMPTS[int(got.id)]}\n{got.text}\n"),
    )
    totals = verdicts.summary(verify_cli.show(found))
    if jax.default_backend() == "cpu":
        print(
            "(a CPU's call takes longer the more rows it has; fewer calls pay where reading the weights is the limit)",
            file=sys.stderr,
        )
    return verdicts.status_of(totals)


def _set_up_process() -> None:
    """Turns the persistent compilation cache on, unless the user has set it up already; hushes transformers."""
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")  # it warns of a missing torch, which is not needed here
    if isinstance(sys.stdout, io.TextIOWrapper):  # an answer may hold what the terminal's encoding does not
        sys.stdout.reconfigure(errors="backslashreplace")
    if not os.environ.get("JAX_COMPILATION_CACHE_DIR"):
        folder = demo_model.cache_folder() / "compiled"
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            print(f"compiled programs are not kept: {one_line(error)}", file=sys.stderr)
        else:
            jax.config.update("jax_compilation_cache_dir", str(folder))
