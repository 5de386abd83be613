"""The commands: flags in, library calls, text out on stdout and everything else on stderr."""

import argparse
import io
import os
import sys
from collections.abc import Sequence

import jax

from jax_probe_mtp.commands import align, bench, demo, generate, merge, tune_masks
from jax_probe_mtp.commands.cache_folder import cache_folder
from jax_probe_mtp.commands.verify import command as verify
from jax_probe_mtp.errors import Parser, exit_status, one_line
from jax_probe_mtp.generation.programs import CompileClock, keep_programs

NEWEST_JAX = (0, 12)  # that the tests pass on


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Returns 0; 1 where `verify` found a difference; 2 for bad input, with one line on stderr."""
    args = _parser().parse_args(bench.join_command(sys.argv[1:] if argv is None else argv))

    def run() -> int:
        _set_up_process()
        return int(args.command(args))

    status = exit_status(run)
    if CompileClock.waiting:
        print("waiting for a program that is still being compiled", file=sys.stderr)
    return status


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="jax-probe-mtp", description="Lossless multi-token prediction for Llama and Qwen models.")
    parser.add_version()
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    generate.add_command(commands)
    merge.add_command(commands)
    verify.add_command(commands)
    bench.add_commands(commands)
    tune_masks.add_command(commands)
    align.add_command(commands)
    demo.add_command(commands)
    return parser


def _set_up_process() -> None:
    """Has compiled programs kept, unless the user has set JAX's compilation cache up already; hushes transformers.

    A JAX newer than any that was tested gets one line.
    """
    if jax.__version_info__[:2] > NEWEST_JAX:
        newest = ".".join(map(str, NEWEST_JAX))
        print(f"JAX {jax.__version__} is newer than {newest}, the newest that was tested", file=sys.stderr)
    os.environ.setdefault(
        "TRANSFORMERS_VERBOSITY", "error"
    )  # what it has to say is of models, which are not its own here
    if isinstance(sys.stdout, io.TextIOWrapper):  # an answer may hold what the terminal's encoding does not
        sys.stdout.reconfigure(errors="backslashreplace")
    known = jax.config.values  # which JAX takes from the environment, too
    if known["jax_enable_compilation_cache"] and not known["jax_compilation_cache_dir"]:
        folder = cache_folder() / "compiled"
        try:
            folder.mkdir(parents=True, exist_ok=True)
            keep_programs(cache_folder() / "programs")
        except OSError as error:
            print(f"compiled programs are not kept: {one_line(error)}", file=sys.stderr)
        else:
            jax.config.update("jax_compilation_cache_dir", str(folder))
