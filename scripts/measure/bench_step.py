"""What one decode call costs on this device: milliseconds a call of the forward alone and of the whole step, on random weights.

    python scripts/measure/bench_step.py --shape llama-3-8b --rows 1 30 60 --batch 1 --capacity 1024 --output R.json

Rows are those of a call: 1 is plain decoding, an even N a probe of one mask with N/2 - 1 drafts. Each number is the median
over repeats of a loop of calls inside one compiled program, after an untimed run. "Forward alone" is a block of as many rows
through the model, with the head and the argmax, in a loop that has no draft, tree, verification, commit or update.
"""

import argparse
import dataclasses
import functools
import itertools
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from shapes import SHAPES

from jax_probe_mtp.decoding import step as decode_loop
from jax_probe_mtp.decoding.batch import Request, check_settings
from jax_probe_mtp.decoding.block_layer import block_layer
from jax_probe_mtp.decoding.step import DecodeState
from jax_probe_mtp.drafting.draft_config import PLAIN, ProbeConfig
from jax_probe_mtp.errors import Parser, exit_status, positive
from jax_probe_mtp.files.questions import check_files, write_json
from jax_probe_mtp.measuring import call_cost
from jax_probe_mtp.measuring.environment import environment
from jax_probe_mtp.model import transformer
from jax_probe_mtp.model.config import ATTENTIONS, DecodeConfig, ModelConfig
from jax_probe_mtp.model.params import Params, random_params

DATA_SHEET = {"NVIDIA H200": 4.8e12, "NVIDIA H100 80GB HBM3": 3.35e12}  # bytes a second
COLUMNS = "rows batch slots | forward ms  step ms  step/forward | GB read  of bandwidth | compile s  cached s  temp MB"


def main() -> int:
    """Measures every combination that the flags name; prints a table and writes the record."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-3-8b")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 30, 60], metavar="N", help="1, or even numbers")
    parser.add_argument("--batch", type=positive, nargs="+", default=[1], metavar="B")
    parser.add_argument("--capacity", type=int, nargs="+", default=[1024], metavar="S")
    parser.add_argument("--in-use", type=int, default=500, metavar="TOKENS", help="tokens in the cache at the start")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P")
    parser.add_argument("--attention", choices=ATTENTIONS, default="auto", help="of decode calls")
    parser.add_argument("--layers", type=positive, metavar="L", help="another number of layers than the shape has")
    parser.add_argument("--calls", type=positive, default=64, help="of a loop")
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument(
        "--bandwidth-gb", type=float, default=8.0, metavar="GB", help="read by the bandwidth's reduction"
    )
    parser.add_argument(
        "--step-only", action="store_true", help="neither the forward alone nor compiling from the cache"
    )
    parser.add_argument("--output", type=Path, metavar="R.json")
    args = parser.parse_args()
    check_files({"--output": args.output}, [])
    with tempfile.TemporaryDirectory() as folder:  # empty, so that a first compilation is cold and a second one is not
        jax.config.update("jax_compilation_cache_dir", folder)
        jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
        try:
            record = measure(args)
        finally:
            jax.config.update("jax_compilation_cache_dir", None)
    if args.output:
        write_json(args.output, record)
    return 0


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """The record: environment, settings, bandwidth, and one entry a combination."""
    drafts = [_draft(rows) for rows in args.rows]
    cfg = dataclasses.replace(SHAPES[args.shape], **({"num_layers": args.layers} if args.layers else {}))
    device = jax.devices()[0]
    bandwidth, data_sheet = read_bandwidth(args.bandwidth_gb), DATA_SHEET.get(device.device_kind)
    params = random_params(cfg, jax.random.key(0), jnp.dtype(args.dtype))
    print(
        f"{device.device_kind} reads {bandwidth / 1e9:.0f} GB/s; weights {_bytes(params) / 1e9:.2f} GB\n{COLUMNS}",
        flush=True,
    )
    runs = []
    for capacity, batch, draft_cfg in itertools.product(args.capacity, args.batch, drafts):
        run = _run(params, cfg, draft_cfg, args, batch, capacity)
        bytes_a_second = run["bytes_read"] / run["step_ms"] * 1e3
        run["of_bandwidth"] = bytes_a_second / bandwidth
        run["of_data_sheet"] = bytes_a_second / data_sheet if data_sheet else None
        runs.append(run)
        print(_line(run), flush=True)
    return {
        "environment": environment(args.dtype),
        "settings": {name: value for name, value in vars(args).items() if name != "output"},
        "read_bytes_per_second": bandwidth,
        "data_sheet_bytes_per_second": data_sheet,
        "weight_bytes": _bytes(params),
        "runs": runs,
    }


def read_bandwidth(gigabytes: float) -> float:
    """Bytes a second of a reduction that only reads, the best of ten."""
    if not 4e-9 <= gigabytes < float("inf"):
        raise ValueError(f"--bandwidth-gb {gigabytes}: give a number above 0, such as 8.")
    values = jax.block_until_ready(jnp.ones(int(gigabytes * 1e9 / 4), jnp.float32))
    total = jax.jit(jnp.sum).lower(values).compile()
    seconds = []
    for _ in range(11):
        start = time.perf_counter()
        jax.block_until_ready(total(values))
        seconds.append(time.perf_counter() - start)
    return values.nbytes / min(seconds[1:])


def forward_loop(
    params: Params, request: Request, state: DecodeState, cfg: ModelConfig, num_rows: int, attention: str = "auto"
) -> DecodeState:
    """Block after block of a root and its children through model, head and argmax, whose tokens are the next block."""
    number_R = jnp.arange(num_rows)
    is_visible_RR = (number_R == 0) | (number_R == number_R[:, None])
    is_visible_BRR = jnp.broadcast_to(is_visible_RR, (state.length_B.shape[0], num_rows, num_rows))
    position_BR = state.length_B[:, None] + (number_R > 0)
    start = state.length_B if num_rows == 1 else state.cache.capacity
    num_slots = state.cache.k[0].shape[2]
    run_layer = block_layer(
        cfg,
        params["embed"].dtype,
        is_visible_BRR,
        position_BR,
        state.length_B,
        start,
        num_slots,
        attention,
        longest_path=1,
    )

    def body(carry: tuple[jax.Array, DecodeState]) -> tuple[jax.Array, DecodeState]:
        token_BR, state = carry
        hidden_BRD, cache = transformer.forward(
            params, cfg, transformer.embed(params, cfg, token_BR), position_BR, state.cache, run_layer
        )
        token_BR = jnp.argmax(transformer.logits(params, cfg, hidden_BRD), axis=-1).astype(jnp.int32)
        calls_B = state.calls_B + 1
        return token_BR, state.replace(cache=cache, calls_B=calls_B, is_done_B=calls_B >= request.max_new_tokens_B - 1)

    first_BR = jax.lax.dynamic_slice_in_dim(state.token_BT, 0, num_rows, axis=1)
    return jax.lax.while_loop(lambda carry: ~jnp.all(carry[1].is_done_B), body, (first_BR, state))[1]


def _run(
    params: Params, cfg: ModelConfig, draft_cfg: ProbeConfig, args: argparse.Namespace, batch: int, capacity: int
) -> dict[str, Any]:
    check_settings(
        cfg, draft_cfg, max_new_tokens=args.calls, temperature=args.temperature, top_k=0, top_p=args.top_p, mask_ema=0
    )
    decode_cfg = DecodeConfig(capacity=capacity, is_sampled=args.temperature > 0, attention=args.attention)

    def start() -> tuple[Request, DecodeState]:
        return call_cost.filled_state(
            params, cfg, draft_cfg, decode_cfg, batch_size=batch, in_use=args.in_use, new_tokens=args.calls,
            temperature=args.temperature, top_p=args.top_p,
        )  # fmt: skip

    step = functools.partial(decode_loop.run_steps, cfg=cfg, draft_cfg=draft_cfg, decode_cfg=decode_cfg)
    request, state = start()
    run: dict[str, Any] = {
        "rows": draft_cfg.num_rows,
        "batch": batch,
        "capacity": capacity,
        "bytes_read": _bytes_read(params, cfg, state, args.in_use),
        "weights_and_cache_bytes": _bytes(params) + _bytes(state.cache),
    }
    timing = call_cost.time_loop(step, params, request, state, repeats=args.repeats)
    run |= {"step_ms": timing.median_ms, "step_ms_repeats": timing.ms, "temp_bytes": timing.temp_bytes}
    run |= {"compile_seconds": timing.compile_seconds, "peak_bytes": _peak_bytes()}
    if args.step_only:
        return run
    del state  # it was donated
    jax.clear_caches()
    again = call_cost.time_loop(step, params, *start(), repeats=0)
    forward = functools.partial(forward_loop, cfg=cfg, num_rows=draft_cfg.num_rows, attention=args.attention)
    alone = call_cost.time_loop(forward, params, *start(), repeats=args.repeats)
    return run | {
        "compile_cached_seconds": again.compile_seconds,
        "forward_ms": alone.median_ms,
        "forward_ms_repeats": alone.ms,
    }


def _draft(rows: int) -> ProbeConfig:
    if rows == 1:
        return PLAIN
    if rows < 4 or rows % 2:
        raise ValueError(
            f"--rows {rows}: give 1 (plain decoding) or an even number from 4 on (one mask, N/2 - 1 drafts)."
        )
    return ProbeConfig(tree=(rows // 2 - 1,))


def _bytes_read(params: Params, cfg: ModelConfig, state: DecodeState, in_use: int) -> int:
    """What a call cannot do without: every weight once, of the embedding table a few rows, and the keys and values in use."""
    weights = _bytes(params) - (0 if cfg.is_tied else params["embed"].nbytes)
    slots = state.cache.k[0].shape[2]
    return weights + _bytes(state.cache) * in_use // slots


def _bytes(tree: Any) -> int:
    return sum(leaf.nbytes for leaf in jax.tree.leaves(tree))


def _peak_bytes() -> int | None:
    return (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


def _line(run: dict[str, Any]) -> str:
    forward, cached = run.get("forward_ms"), run.get("compile_cached_seconds")
    temp = run["temp_bytes"]
    return " ".join(
        [
            f"{run['rows']:4} {run['batch']:5} {run['capacity']:5} |",
            f"{forward:10.3f} {run['step_ms']:8.3f} {run['step_ms'] / forward:13.3f} |" if forward else
            f"{'':10} {run['step_ms']:8.3f} {'':13} |",
            f"{run['bytes_read'] / 1e9:7.2f} {run['of_bandwidth']:13.3f} | {run['compile_seconds']:9.1f}",
            f"{cached:9.1f}" if cached is not None else f"{'':9}",
            f"{temp / 1e6:8.1f}" if temp is not None else "",
        ]
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(exit_status(main))
