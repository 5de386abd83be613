"""Times decode calls of transformers on torch, of one token a row, on a model of random weights.

torch is imported where it is used: without it the command says in one line what to install.
"""

import argparse
import dataclasses
import functools
import statistics
import time
from collections.abc import Callable, Iterator
from typing import Any

from shapes import SHAPES

from jax_probe_mtp.model.config import ModelConfig

WARM_UP_CALLS = 5  # compile, record a CUDA graph, replay it, and two more
Record = dict[str, Any]


def measure_steps(args: argparse.Namespace, header: Record) -> Iterator[Record]:
    """Yields the record, which begins with `header`, after each mode."""
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
    record = header | {"runs": []}
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
    """Makes the transformers model of a shape, its weights drawn on the device; the same ones each time."""
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
    """Times the rounds of one mode, after one that is not timed."""
    import torch
    import transformers

    forward, static = model, None
    if mode == "static" and not args.no_compile:
        forward = torch.compile(model.forward, mode="reduce-overhead", fullgraph=True)
    if mode != "eager":
        static = transformers.StaticCache(config=model.config, max_cache_len=args.capacity)
    if mode == "model.generate":  # it looks for an end of text, which never comes
        model.generation_config = greedy(disable_compile=args.no_compile, eos_token_id=model.config.vocab_size)
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
    """Gives milliseconds a call, and each row's tokens; the prompt goes through the plain model first, untimed."""
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
    """Gives milliseconds a call of `model.generate`, from the prompt's logits to the last token, and each row's tokens."""
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


def greedy(**settings: Any) -> Any:
    """Makes a generation config without a checkpoint's sampling and penalties."""
    import transformers

    return transformers.GenerationConfig(do_sample=False, pad_token_id=0, **settings)
