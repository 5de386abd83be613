"""The commands: flags in, library calls, text out on stdout and everything else on stderr."""

import argparse
import io
import os
import sys
from collections.abc import Callable, Sequence

import jax

from jax_probe_mtp import bench_cli, demo_model, exactness, generate_cli, jobs, options
from jax_probe_mtp.checkpoint import Checkpoint
from jax_probe_mtp.draft_config import PLAIN, DraftConfig, draft_name
from jax_probe_mtp.generation import DEFAULT_DRAFT, Decoder, Generation, Prompt, Settings
from jax_probe_mtp.messages import Parser, one_line
from jax_probe_mtp.prompt_file import Record

DEMO_PROMPTS = ("Write a Python function that adds two numbers.", "What is the capital of France?")
DEMO_TOKENS = 48


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Returns 0; 1 where `verify` found a difference; 2 for bad input, with one line on stderr."""
    args = _parser().parse_args(bench_cli.join_command(sys.argv[1:] if argv is None else argv))
    try:
        _set_up_process()
        return int(args.command(args))
    except (ValueError, OSError) as error:
        print(f"error: {one_line(error)}", file=sys.stderr)
        return 2
    except jax.errors.JaxRuntimeError as error:
        print(f"error: the device gave up ({one_line(error)[:200]}); try a smaller --batch-size", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("error: interrupted", file=sys.stderr)
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="jax-probe-mtp", description="Lossless multi-token prediction for Llama and Qwen models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    generate_cli.add_commands(commands)
    verify = commands.add_parser(
        "verify", allow_abbrev=False, help="compare this method's tokens with plain decoding's"
    )
    drafting = [method for method in options.METHODS if method != "ar"]
    verify.add_argument("--method", choices=drafting, default="probe", help="what is compared with plain decoding")
    verify.set_defaults(command=_verify)
    generate_cli.add_prompts(verify)
    options.add_model(verify)
    options.add_draft(verify)
    options.add_sampling(verify)
    options.add_stream(verify)
    bench_cli.add_commands(commands)
    demo = commands.add_parser("demo", help="fetch SmolLM2-135M-Instruct, answer two prompts, show the proof")
    demo.set_defaults(command=_demo)
    return parser


def _verify(args: argparse.Namespace) -> int:
    draft, settings = options.draft_config(args, takes_auto=True), options.settings(args)
    records = generate_cli.read_records(args)  # before anything slow starts
    opened = options.open_model(args.model, args.dtype, args.revision)
    prompts = [jobs.encode(record, opened.tokenizer, use_chat_template=not args.no_chat_template) for record in records]
    checkpoint = opened.load()
    name = args.method
    if args.tree == options.AUTO:
        choice = generate_cli.choose_tree(checkpoint, prompts, draft, settings)
        print(f"auto: {choice}", file=sys.stderr)
        draft, name = choice.draft, draft_name(choice.draft)
    return _compare(checkpoint, prompts, name, draft, settings, show=lambda _: None)


def _compare(
    checkpoint: Checkpoint,
    prompts: list[Prompt],
    method: str,
    draft: DraftConfig,
    settings: Settings,
    *,
    show: Callable[[Generation], None],
) -> int:
    """Decodes with and without drafts, prints each record's verdict; 0 when all are the same or tied."""
    plain, drafted = Decoder(checkpoint, PLAIN), Decoder(checkpoint, draft)
    counts = {"same": 0, "tie": 0, "diverged": 0}
    pairs = zip(plain.run(prompts, settings), drafted.run(prompts, settings), prompts, strict=True)
    for expected, got, prompt in pairs:
        show(got)
        found = exactness.compare(plain, prompt, settings, expected, got)
        counts["same" if found is None else found.kind] += 1
        verdict_in_full = found or f"same {len(got.token_ids)} tokens"
        print(f"{got.id}: {verdict_in_full}; {got.calls} calls, plain decoding {expected.calls}", flush=True)
    print(", ".join(f"{count} {name}" for name, count in counts.items()), flush=True)
    print(f"plain: {plain.stats}", file=sys.stderr)
    print(f"{method}: {drafted.stats}", file=sys.stderr)
    return int(counts["diverged"] > 0)


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
    status = _compare(
        checkpoint,
        [jobs.encode(record, checkpoint.tokenizer, use_chat_template=True) for record in records],
        "probe",
        DEFAULT_DRAFT,
        Settings(max_new_tokens=DEMO_TOKENS),
        show=lambda got: print(f"\n> {DEMO_PROMPTS[int(got.id)]}\n{got.text}\n"),
    )
    if jax.default_backend() == "cpu":
        print(
            "(a CPU's call takes longer the more rows it has; fewer calls pay where reading the weights is the limit)",
            file=sys.stderr,
        )
    return status


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
