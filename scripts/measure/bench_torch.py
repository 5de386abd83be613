"""What decoding costs with transformers on torch, for the table of ours: the same shapes, prompts and limits.

    python scripts/measure/bench_torch.py step --shape llama-3-8b --batch 1 --capacity 1024 --output R.json
    python scripts/measure/bench_torch.py generate --model MODEL --questions F.jsonl --per-category 2 --output R.json

`step`, on random weights: milliseconds of a call that decodes one token a row, over rounds of `--calls` calls that begin
with `--in-use` tokens in the cache. eager is a DynamicCache and a plain forward; static is a StaticCache of `--capacity`
slots and torch.compile(model.forward, mode="reduce-overhead", fullgraph=True), as transformers' guide to static caches has
it. The host reads no token between calls and draws up no masks, which flatters torch. model.generate does both, with a
StaticCache: on CUDA it compiles the forward itself.

`generate`, on a checkpoint: seconds and tokens of greedy `model.generate`, question by question with the modes in turns.
static gets one StaticCache, which fits every question and is reset between them: `cache_implementation="static"` allocates
another one for each, perhaps elsewhere than the CUDA graph was recorded for. generate compiles it on CUDA alone.

What compiles or runs first is not timed: a round of `step`, and each mode's first question, run once before.
"""

import argparse
import dataclasses
import functools
import os
import platform
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
from shapes import SHAPES

from checkpoints_convert import load_checkpoint
from checkpoints_convert.compare import torch_model
from jax_probe_mtp.errors import Parser, exit_status, one_line, positive
from jax_probe_mtp.files.questions import check_files, read_questions, write_json
from jax_probe_mtp.measuring.bench import read_prompts
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.fingerprint import model_identity

WARM_UP_CALLS = 5  # compile, record a CUDA graph, replay it, and two more
LOOKUP_TOKENS = 10  # the value of transformers' guide
Record = dict[str, Any]


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
            for record in args.measure(args):
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


def measure_steps(args: argparse.Namespace) -> Iterator[Record]:
    """The record after each mode."""
    import torch

    calls = max(args.calls, WARM_UP_CALLS)
    if args.in_use + calls > args.capacity:
        raise ValueError(
            f"the cache holds {args.capacity} tokens, but {args.in_use} in use + {calls} calls need {args.in_use + calls}; "
            f"raise --capacity, or lower --in-use or --calls."
        )
    cfg = SHAPES[args.shape]
    if args.layers:
        cfg = dataclasses.replace(cfg, num_layers=args.layers)
    model = random_model(cfg, args.dtype, args.device)
    prompt_BT = torch.randint(cfg.vocab_size, (args.batch, args.in_use), device=args.device)
    record = _header(args) | {"runs": []}
    print(f"{args.shape}, batch {args.batch}, {args.dtype}, {record['environment']['device']}")
    print(f"{'mode':14}  ms a call        min        max  warm-up s  peak GB", flush=True)
    for mode in args.modes:
        run = _steps(model, prompt_BT, mode, args)
        record["runs"].append(run)
        peak = "" if run["peak_bytes"] is None else f"{run['peak_bytes'] / 1e9:.2f}"
        ms = " ".join(f"{run[name]:10.3f}" for name in ("step_ms", "step_ms_min", "step_ms_max"))
        print(f"{mode:14} {ms} {run['warm_up_seconds']:10.1f} {peak:>8}", flush=True)
        yield record


def random_model(cfg: ModelConfig, dtype: str, device: str) -> Any:
    """The transformers model of a shape, its weights drawn on the device; the same ones each time."""
    import torch
    import transformers

    config = transformers.AutoConfig.for_model(
        cfg.family, vocab_size=cfg.vocab_size, hidden_size=cfg.width, intermediate_size=cfg.mlp_width,
        num_hidden_layers=cfg.num_layers, num_attention_heads=cfg.num_heads, num_key_value_heads=cfg.num_kv_heads,
        head_dim=cfg.head_dim, max_position_embeddings=cfg.context_length, rms_norm_eps=cfg.norm_eps,
        tie_word_embeddings=cfg.is_tied, rope_parameters={"rope_type": "default", "rope_theta": cfg.rope_theta},
    )  # fmt: skip
    torch.manual_seed(0)
    with torch.device(device):
        kwargs = {"dtype": getattr(torch, dtype), "attn_implementation": "sdpa"}
        return transformers.AutoModelForCausalLM.from_config(config, **kwargs).eval()


def _steps(model: Any, prompt_BT: Any, mode: str, args: argparse.Namespace) -> Record:
    """One mode's rounds, after one that is not timed."""
    import torch
    import transformers

    forward, static = model, None
    if mode == "static" and not args.no_compile:
        forward = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)
    if mode != "eager":
        static = transformers.StaticCache(config=model.config, max_cache_len=args.capacity)
    if mode == "model.generate":  # it looks for an end of text, which never comes
        model.generation_config = _greedy(disable_compile=args.no_compile, eos_token_id=model.config.vocab_size)
        time_calls = functools.partial(time_generate, model, static, prompt_BT)
    else:
        time_calls = functools.partial(time_round, model, forward, static, prompt_BT)
    if args.device == "cuda":
        torch.cuda.reset_peak_memory_stats()
    start = time.perf_counter()
    time_calls(max(args.calls, WARM_UP_CALLS))
    warm_up_seconds = time.perf_counter() - start
    rounds = [time_calls(args.calls) for _ in range(args.repeats)]
    ms = [milliseconds for milliseconds, _ in rounds]
    return {
        "mode": mode,
        "step_ms": statistics.median(ms),
        "step_ms_min": min(ms),
        "step_ms_max": max(ms),
        "step_ms_repeats": ms,
        "warm_up_seconds": warm_up_seconds,
        "peak_bytes": torch.cuda.max_memory_allocated() if args.device == "cuda" else None,
        "token_ids": rounds[-1][1],
    }


def time_round(
    model: Any, forward: Callable[..., Any], static: Any, prompt_BT: Any, calls: int
) -> tuple[float, list[list[int]]]:
    """Milliseconds a call, and each row's tokens; the prompt goes through the plain model first, untimed."""
    import torch
    import transformers

    cache = transformers.DynamicCache(config=model.config) if static is None else static
    cache.reset()  # in place: a CUDA graph knows a static cache's addresses
    token_B1 = model(prompt_BT, past_key_values=cache, logits_to_keep=1).logits.argmax(-1)
    tokens = [token_B1]
    wait = torch.cuda.synchronize if prompt_BT.is_cuda else lambda: None
    wait()
    start = time.perf_counter()
    for _ in range(calls):  # the cache counts the positions, on the device
        token_B1 = forward(token_B1, past_key_values=cache).logits.argmax(-1)
        tokens.append(token_B1)
    wait()
    seconds = time.perf_counter() - start
    return 1000 * seconds / calls, torch.cat(tokens, dim=1).tolist()


def time_generate(model: Any, static: Any, prompt_BT: Any, calls: int) -> tuple[float, list[list[int]]]:
    """Milliseconds a call of `model.generate`, from the prompt's logits to the last token, and each row's tokens."""
    import torch

    wait = torch.cuda.synchronize if prompt_BT.is_cuda else lambda: None
    starts: list[float] = []

    def note_start(_: Any, score_BV: Any) -> Any:
        if not starts:
            wait()
            starts.append(time.perf_counter())
        return score_BV

    static.reset()
    output_BT = model.generate(
        prompt_BT, attention_mask=torch.ones_like(prompt_BT), past_key_values=static, max_new_tokens=calls + 1,
        logits_processor=[note_start],
    )  # fmt: skip
    wait()
    seconds = time.perf_counter() - starts[0]
    return 1000 * seconds / calls, output_BT[:, prompt_BT.shape[1] :].tolist()


def _greedy(**settings: Any) -> Any:
    """A generation config without a checkpoint's sampling and penalties."""
    import transformers

    return transformers.GenerationConfig(do_sample=False, pad_token_id=0, **settings)


def measure_generate(args: argparse.Namespace) -> Iterator[Record]:
    """The record after each question."""
    import torch
    import transformers

    questions = read_questions(Path(args.questions), args.per_category)
    jax.config.update("jax_platforms", "cpu")  # it loads the checkpoint, and must leave the GPU's memory to torch
    checkpoint = load_checkpoint(args.model, dtype=args.dtype)
    prompts, skipped = read_prompts(checkpoint, questions, args.max_new_tokens, use_chat_template=True)
    for question, why in skipped.items():
        print(f"question {question} is skipped: {why}", file=sys.stderr)

    model = torch_model(checkpoint.config, checkpoint.params).to(args.device)
    for parameter in model.parameters():  # and no buffer: rope's frequencies stay float32, as in from_pretrained
        parameter.data = parameter.data.to(getattr(torch, args.dtype))
    model.set_attn_implementation("sdpa")
    model.generation_config = _greedy(
        max_new_tokens=args.max_new_tokens, disable_compile=args.no_compile,
        eos_token_id=list(checkpoint.eos_token_ids) or None,
    )  # fmt: skip
    slots = max(len(prompt.token_ids) for prompt in prompts) + args.max_new_tokens
    static = transformers.StaticCache(config=model.config, max_cache_len=slots)
    kwargs_of: dict[str, Record] = {
        "eager": {},
        "static": {"past_key_values": static},
        "prompt_lookup": {"prompt_lookup_num_tokens": LOOKUP_TOKENS},
    }

    def answer(mode: str, token_ids: list[int]) -> tuple[float, list[int]]:
        static.reset()
        prompt_1T = torch.tensor([token_ids], device=args.device)
        start = time.perf_counter()
        output_1T = model.generate(prompt_1T, attention_mask=torch.ones_like(prompt_1T), **kwargs_of[mode])
        new_ids = output_1T[0, len(token_ids) :].tolist()  # waits for the device
        return time.perf_counter() - start, new_ids

    warm_up_seconds = {mode: answer(mode, prompts[0].token_ids)[0] for mode in args.modes}
    by_question: dict[str, Record] = {mode: {} for mode in args.modes}
    record = _header(args) | {"model": model_identity(checkpoint), "static_slots": slots, "skipped": skipped}
    for prompt in prompts:
        for mode in args.modes:
            seconds, token_ids = answer(mode, prompt.token_ids)
            by_question[mode][str(prompt.id)] = {"seconds": seconds, "token_ids": token_ids}
        runs = [_summary(mode, warm_up_seconds[mode], by_question) for mode in args.modes]
        record |= {"is_complete": prompt is prompts[-1], "runs": runs}
        yield record
    print(f"{checkpoint.name}, {args.dtype}, {record['environment']['device']}, {len(prompts)} questions")
    print(f"{'mode':14}   seconds  tokens  tokens/s  warm-up s   texts equal to {args.modes[0]}'s")
    for run in record["runs"]:
        print(
            f"{run['mode']:14} {run['seconds']:9.2f} {run['tokens']:7} {run['tokens_per_second']:9.2f} "
            f"{run['warm_up_seconds']:10.1f}   {run['num_equal_to_first']}/{len(prompts)}"
        )


def _summary(mode: str, warm_up_seconds: float, by_question: dict[str, Record]) -> Record:
    mine, first = by_question[mode], next(iter(by_question.values()))
    tokens = sum(len(result["token_ids"]) for result in mine.values())
    seconds = sum(result["seconds"] for result in mine.values())
    return {
        "mode": mode,
        "seconds": seconds,
        "tokens": tokens,
        "tokens_per_second": tokens / seconds,
        "warm_up_seconds": warm_up_seconds,
        "num_equal_to_first": sum(mine[name]["token_ids"] == first[name]["token_ids"] for name in mine),
        "by_question": mine,
    }


def _header(args: argparse.Namespace) -> Record:
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
