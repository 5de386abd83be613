"""The commands: flags in, library calls, text out on stdout and everything else on stderr."""

import argparse
import io
import os
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import jax

from jax_probe_mtp import demo_model, exactness, records, tokenizer
from jax_probe_mtp.checkpoint import Checkpoint
from jax_probe_mtp.config import MASK_INITS, ProbeConfig
from jax_probe_mtp.generation import DEFAULT_PROBE, Decoder, Generation, Prompt, Settings
from jax_probe_mtp.messages import Parser, one_line

PLAIN = ProbeConfig()
DEMO_PROMPTS = ("Write a Python function that adds two numbers.", "What is the capital of France?")
DEMO_TOKENS = 48


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one command. Returns 0; 1 where `verify` found a difference; 2 for bad input, with one line on stderr."""
    args = _parser().parse_args(argv)
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
        print(
            "error: interrupted; answers so far are in the .partial file beside --output, if one was given",
            file=sys.stderr,
        )
        return 130


def _parser() -> argparse.ArgumentParser:
    parser = Parser(prog="jax-probe-mtp", description="Lossless multi-token prediction for Llama and Qwen models.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND", parser_class=Parser)
    generate = commands.add_parser("generate", allow_abbrev=False, help="answer a prompt, or a file of prompts")
    generate.add_argument("--method", choices=("probe", "ar"), default="probe", help="ar is plain decoding")
    generate.add_argument("--output", type=Path, metavar="G.jsonl", help="where the answers to --input go")
    generate.add_argument("--stats", action="store_true", help="tau, calls and tokens/s on stderr")
    generate.set_defaults(command=_generate)
    verify = commands.add_parser(
        "verify", allow_abbrev=False, help="compare this method's tokens with plain decoding's"
    )
    verify.set_defaults(command=_verify, method="probe")
    for command in (generate, verify):
        _add_model(command)
        _add_decoding(command)
    demo = commands.add_parser("demo", help="fetch SmolLM2-135M-Instruct, answer two prompts, show the proof")
    demo.set_defaults(command=_demo)
    return parser


def _add_model(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", required=True, help="converted folder, Hugging Face folder, .gguf file or hub id (org/name)"
    )
    parser.add_argument("--revision", help="commit, tag or branch of a hub id")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), help="the checkpoint's own when left out")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--prompt", help="one prompt")
    source.add_argument("--input", type=Path, metavar="F.jsonl", help='one {"id": ..., "prompt": ...} a line')
    parser.add_argument("--no-chat-template", action="store_true", help="take prompts as plain text")


def _add_decoding(parser: argparse.ArgumentParser) -> None:
    settings = Settings()
    parser.add_argument("--num-masks", type=int, metavar="K", help="mask tokens of each node, 1 to 3; 0 is plain")
    parser.add_argument("--tree", metavar="T", help="candidates by depth, such as 14 or 15,4, or 'dynamic' (14)")
    parser.add_argument("--block-complexity", type=int, metavar="BC", help="rows a call may have")
    parser.add_argument("--mask-init", choices=MASK_INITS, default="mean")
    parser.add_argument(
        "--mask-offset", type=float, default=PLAIN.mask_offset, metavar="C", help="of --mask-init offset"
    )
    parser.add_argument("--mask-ema", type=float, default=settings.mask_ema, metavar="L", help="lambda; 0 freezes")
    parser.add_argument("--no-prune", action="store_true", help="keep candidates that repeat their parent's token")
    parser.add_argument("--rank-without-noise", action="store_true", help="rank sampled drafts as the paper does")
    parser.add_argument("--max-new-tokens", type=int, default=settings.max_new_tokens, metavar="N")
    parser.add_argument("--temperature", type=float, default=settings.temperature, metavar="T", help="0 is greedy")
    parser.add_argument("--top-k", type=int, default=settings.top_k, metavar="K", help="0 keeps all tokens")
    parser.add_argument("--top-p", type=float, default=settings.top_p, metavar="P", help="1 keeps all tokens")
    parser.add_argument("--seed", type=int, default=settings.seed, metavar="S")
    parser.add_argument("--batch-size", type=int, default=settings.batch_size, metavar="B")
    parser.add_argument(
        "--capacity", type=int, metavar="S", help="cache slots a row; what the prompts need if left out"
    )


def _probe(args: argparse.Namespace) -> ProbeConfig:
    if args.method == "ar":
        given = (args.tree, args.num_masks, args.block_complexity, args.mask_init, args.no_prune)
        if given != (None, None, None, PLAIN.mask_init, False):
            raise ValueError("--method ar is plain decoding: leave the options of masks and trees out.")
        return PLAIN
    if args.num_masks == 0 and args.tree is None:
        return PLAIN
    if args.tree is None:
        for option, value in (("--num-masks", args.num_masks), ("--block-complexity", args.block_complexity)):
            if value is not None:
                raise ValueError(f"{option} {value} needs a --tree, such as --tree 14; --method ar is plain decoding.")
        tree: tuple[int, ...] | str = DEFAULT_PROBE.tree
    elif args.tree == "dynamic":
        tree = "dynamic"
    else:
        try:
            tree = tuple(int(width) for width in args.tree.split(","))
        except ValueError:
            raise ValueError(f"--tree must be numbers, such as 14 or 15,4, or dynamic, got {args.tree!r}.") from None
    return ProbeConfig(
        tree=tree,
        num_masks=args.num_masks,
        block_complexity=args.block_complexity,
        mask_init=args.mask_init,
        mask_offset=args.mask_offset,
        prune=not args.no_prune,
        rank_with_noise=not args.rank_without_noise,
    )


def _settings(args: argparse.Namespace) -> Settings:
    return Settings(
        max_new_tokens=args.max_new_tokens,
        temperature=args.temperature,
        top_k=args.top_k,
        top_p=args.top_p,
        seed=args.seed,
        mask_ema=args.mask_ema,
        batch_size=args.batch_size,
        capacity=args.capacity,
    )


def _load(model: str | Path, dtype: str | None, revision: str | None = None) -> Checkpoint:
    from checkpoints_convert import load_checkpoint  # it imports this package, so not at the top

    return load_checkpoint(model, dtype=dtype, revision=revision)


def _prompts(checkpoint: Checkpoint, raw: list[dict], *, use_chat_template: bool) -> list[Prompt]:
    def encode(text: str) -> list[int]:
        return tokenizer.encode(checkpoint.tokenizer, text, use_chat_template=use_chat_template)

    return [Prompt(id=r["id"], token_ids=encode(r["prompt"]), seed=r.get("seed")) for r in raw]


def _records(args: argparse.Namespace) -> list[dict]:
    """Reads the prompts before anything slow starts."""
    return records.read_prompts(args.input) if args.input else [{"id": 0, "prompt": args.prompt}]


def _generate(args: argparse.Namespace) -> int:
    if bool(args.input) != bool(args.output):
        raise ValueError("--input and --output go together: a file of prompts in, a file of answers out.")
    if args.output:
        records.check_output(args.output, args.input)
    probe, settings, raw = _probe(args), _settings(args), _records(args)
    checkpoint = _load(args.model, args.dtype, args.revision)
    prompts = _prompts(checkpoint, raw, use_chat_template=not args.no_chat_template)
    decoder = Decoder(checkpoint, probe)
    generations: Iterable[Generation] = decoder.run(prompts, settings)
    if args.output:
        for _ in _with_progress(records.write_generations(args.output, generations), len(raw)):
            pass
    else:
        for generation in generations:
            print(generation.text)
    if args.stats:
        print(f"{decoder.stats}; {probe.num_rows} rows a call", file=sys.stderr)
    return 0


def _with_progress(generations: Iterable[Generation], total: int) -> Iterator[Generation]:
    from tqdm import tqdm

    return iter(tqdm(generations, total=total, unit="record", file=sys.stderr, disable=None))


def _verify(args: argparse.Namespace) -> int:
    probe, settings, raw = _probe(args), _settings(args), _records(args)
    checkpoint = _load(args.model, args.dtype, args.revision)
    prompts = _prompts(checkpoint, raw, use_chat_template=not args.no_chat_template)
    return _compare(checkpoint, prompts, probe, settings, show=lambda _: None)


def _compare(
    checkpoint: Checkpoint,
    prompts: list[Prompt],
    probe: ProbeConfig,
    settings: Settings,
    *,
    show: Callable[[Generation], None],
) -> int:
    """Decodes with and without drafts, prints each record's verdict; 0 when all are the same or tied."""
    plain, drafted = Decoder(checkpoint, PLAIN), Decoder(checkpoint, probe)
    counts = {"same": 0, "tie": 0, "diverged": 0}
    pairs = zip(plain.run(prompts, settings), drafted.run(prompts, settings), prompts, strict=True)
    for expected, got, prompt in pairs:
        show(got)
        found = None
        if expected.token_ids != got.token_ids:
            draw = plain.request([prompt], settings)[1].sampling if settings.temperature > 0 else None
            found = exactness.first_difference(checkpoint, prompt.token_ids, expected.token_ids, got.token_ids, draw)
        verdict = "same" if found is None else "tie" if found.is_tie else "diverged"
        counts[verdict] += 1
        verdict_in_full = found or f"same {len(got.token_ids)} tokens"
        print(f"{got.id}: {verdict_in_full}; {got.calls} calls, plain decoding {expected.calls}", flush=True)
    print(", ".join(f"{count} {name}" for name, count in counts.items()), flush=True)
    print(f"plain: {plain.stats}", file=sys.stderr)
    print(f"probe: {drafted.stats}", file=sys.stderr)
    return int(counts["diverged"] > 0)


def _demo(args: argparse.Namespace) -> int:
    from checkpoints_convert import convert_gguf

    folder = demo_model.cache_folder()
    converted = folder / "SmolLM2-135M-Instruct"
    if not converted.exists():
        print(f"fetching SmolLM2-135M-Instruct (98 MB) into {folder}", file=sys.stderr)
        convert_gguf(demo_model.fetch(folder), converted)
    checkpoint = _load(converted, "float32")
    raw = [{"id": i, "prompt": prompt} for i, prompt in enumerate(DEMO_PROMPTS)]
    print("decoding twice, plainly and with one mask and 14 drafts a call, and comparing every token", file=sys.stderr)
    status = _compare(
        checkpoint,
        _prompts(checkpoint, raw, use_chat_template=True),
        DEFAULT_PROBE,
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
