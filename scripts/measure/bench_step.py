"""Measures a decode call on this device: milliseconds of the forward alone and of the whole step, on random weights.

    python scripts/measure/bench_step.py --shape llama-3-8b --rows 1 30 60 --batch 1 --capacity 1024 --output R.json

--rows counts the rows of a call: 1 is plain decoding, an even N a probe of one mask with N/2 - 1 drafts; --drafts names other
ways of drafting. Each number is the
median over repeats of a loop of calls inside one compiled program, after an untimed run. The forward alone takes a block of
as many rows through the model, the head and the argmax, in a loop without draft, tree, verification, commit and update.
"""

import argparse
import dataclasses
import functools
import itertools
import math
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
from shapes import SHAPES

from jax_probe_mtp.decoding.block import Block
from jax_probe_mtp.decoding.block_layer import block_layer
from jax_probe_mtp.decoding.config import ATTENTIONS, DecodeConfig
from jax_probe_mtp.decoding.loop import run_steps
from jax_probe_mtp.decoding.request import Request
from jax_probe_mtp.decoding.settings import Settings
from jax_probe_mtp.decoding.state import DecodeState
from jax_probe_mtp.drafting.source import DraftSource
from jax_probe_mtp.drafting.spec import PLAIN, draft_name, parse_draft
from jax_probe_mtp.errors import Parser, exit_status, positive
from jax_probe_mtp.files.whole_files import check_files, write_json
from jax_probe_mtp.generation.groups import split_params
from jax_probe_mtp.generation.programs import Programs
from jax_probe_mtp.jobs import memory
from jax_probe_mtp.measuring import call_cost
from jax_probe_mtp.measuring.environment import environment
from jax_probe_mtp.model import transformer
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.mesh import check_mesh, make_mesh, parse_mesh, random_sharded_params
from jax_probe_mtp.model.params import WEIGHTS, Params, abstract_params, format_name, weights_of

DATA_SHEET = {"NVIDIA H200": 4.8e12, "NVIDIA H100 80GB HBM3": 3.35e12}  # bytes a second
COLUMNS = "rows batch slots | forward ms  step ms  step/forward | GB read  of bandwidth | compile s  cached s  temp MB  /estim."

OF_DTYPE = "dtype"  # weights of no other kind
EXACT = "anchored"  # the order of sums of the exact mode


def main() -> int:
    """Measures every combination that the flags name; prints a table and writes the record."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-3-8b")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 30, 60], metavar="N", help="1, or even numbers")
    parser.add_argument("--drafts", nargs="*", default=[], metavar="DRAFT", help="such as merged:64@warm=1")
    parser.add_argument("--batch", type=positive, nargs="+", default=[1], metavar="B")
    parser.add_argument("--capacity", type=int, nargs="+", default=[1024], metavar="S")
    parser.add_argument("--in-use", type=int, default=500, metavar="TOKENS", help="tokens in the cache at the start")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument(
        "--weights",
        nargs="+",
        choices=(OF_DTYPE, *WEIGHTS),
        default=[OF_DTYPE],
        help="one after the other (default: dtype)",
    )
    parser.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 is greedy")
    parser.add_argument("--top-p", type=float, default=1.0, metavar="P")
    parser.add_argument("--attention", choices=(*ATTENTIONS, EXACT), default="auto", help="of decode calls")
    parser.add_argument("--layers", type=positive, metavar="L", help="another number of layers than the shape has")
    parser.add_argument("--mesh", metavar="M", help="such as data=2,tensor=4, with --step-only (default: one device)")
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
    if args.mesh and not args.step_only:
        raise ValueError("--mesh measures whole steps alone: give --step-only as well.")
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
    """Makes the record: environment, settings, bandwidth, and one entry per combination."""
    drafts = [*map(_draft, args.rows), *map(parse_draft, args.drafts)]
    cfg = dataclasses.replace(SHAPES[args.shape], **({"num_layers": args.layers} if args.layers else {}))
    data, tensor = parse_mesh(args.mesh) if args.mesh else (1, 1)
    for batch in args.batch:
        check_mesh(cfg, batch, data, tensor)
    mesh = make_mesh(data, tensor)
    device = jax.devices()[0]
    bandwidth, data_sheet = read_bandwidth(args.bandwidth_gb), DATA_SHEET.get(device.device_kind)
    print(f"{device.device_kind} reads {bandwidth / 1e9:.0f} GB/s\n{COLUMNS}", flush=True)
    runs = []
    for kind in args.weights:
        weights = None if kind == OF_DTYPE else kind
        params = random_sharded_params(cfg, jax.random.key(0), mesh, jnp.dtype(args.dtype), weights)
        print(f"{format_name(args.dtype, weights)}: {_bytes(params) / 1e9:.2f} GB", flush=True)
        for capacity, batch, source in itertools.product(args.capacity, args.batch, drafts):
            run = _run(params, cfg, source, args, batch, capacity)
            run |= {"weights": weights, "weight_bytes": _bytes(params)}
            bytes_a_second = run["bytes_read"] / run["step_ms"] * 1e3  # of one device
            run["of_bandwidth"] = bytes_a_second / bandwidth
            run["of_data_sheet"] = bytes_a_second / data_sheet if data_sheet else None
            runs.append(run)
            print(_line(run), flush=True)
        del params  # before the next are made
    return {
        "environment": environment(args.dtype),
        "settings": {name: value for name, value in vars(args).items() if name != "output"},
        "read_bytes_per_second": bandwidth,
        "data_sheet_bytes_per_second": data_sheet,
        "runs": runs,
    }


def read_bandwidth(gigabytes: float) -> float:
    """Times a reduction that only reads, and gives the bytes a second of the best of ten."""
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
    params: Params, request: Request, state: DecodeState, cfg: ModelConfig, num_rows: int, decode_cfg: DecodeConfig
) -> DecodeState:
    """Runs block after block, each a root and its children, through model, head and argmax, whose tokens are the next block."""
    number_R = jnp.arange(num_rows)
    is_visible_RR = (number_R == 0) | (number_R[None] == number_R[:, None])
    block = Block(
        position_BR=state.length_B[:, None] + (number_R > 0)[None],
        is_visible_BRR=jnp.broadcast_to(is_visible_RR, (state.length_B.shape[0], num_rows, num_rows)),
        length_B=state.length_B,
        start=state.length_B if num_rows == 1 else state.cache.capacity,
        longest_path=1,
    )
    run_layer = block_layer(params, cfg, block, state.cache.k[0].shape[2], decode_cfg)

    def body(carry: tuple[jax.Array, DecodeState]) -> tuple[jax.Array, DecodeState]:
        token_BR, state = carry
        hidden_BRD, cache = transformer.forward(
            params, cfg, transformer.embed(params, cfg, token_BR), block.position_BR, state.cache, run_layer
        )
        token_BR = jnp.argmax(transformer.logits(params, cfg, hidden_BRD), axis=-1).astype(jnp.int32)
        calls_B = state.calls_B + 1
        return token_BR, state.replace(cache=cache, calls_B=calls_B, is_done_B=calls_B >= request.max_new_tokens_B - 1)

    first_BR = jax.lax.dynamic_slice_in_dim(state.token_BT, 0, num_rows, axis=1)
    return jax.lax.while_loop(lambda carry: ~jnp.all(carry[1].is_done_B), body, (first_BR, state))[1]


def _run(
    params: Params, cfg: ModelConfig, source: DraftSource, args: argparse.Namespace, batch: int, capacity: int
) -> dict[str, Any]:
    Settings(max_new_tokens=args.calls, temperature=args.temperature, top_p=args.top_p).check(cfg, source)
    decode_cfg, weights = _decode_config(capacity, args.attention), weights_of(params)
    shapes, groups = abstract_params(cfg, jnp.dtype(args.dtype), weights), split_params(params)

    def part(own: Params) -> tuple[Callable[..., DecodeState], Params, Request, DecodeState]:
        """Gives the loop of a group of devices and what it takes."""
        programs = Programs(SimpleNamespace(params=own, config=cfg), source)  # type: ignore[arg-type]
        with jax.default_device(min(own["embed"].devices(), key=lambda device: device.id)):
            request, state = call_cost.filled_state(
                shapes, cfg, source, decode_cfg, batch_size=batch // len(groups), in_use=args.in_use,
                new_tokens=args.calls, temperature=args.temperature, top_p=args.top_p,
            )  # fmt: skip
        request, state = programs.place(request), programs.place(state, programs.state)
        step = programs.bind(run_steps, request, state, gives=programs.state, decode_cfg=decode_cfg)
        return step, own, request, state

    parts = list(map(part, groups))
    state = parts[0][-1]
    run: dict[str, Any] = {
        "draft": draft_name(source),
        "rows": source.num_rows,
        "batch": batch,
        "capacity": capacity,
        "bytes_read": _bytes_read(groups[0], state, args.in_use),
        "weights_and_cache_bytes": _bytes(groups[0]) + _bytes(state.cache),
    }
    in_use = _memory("bytes_in_use")
    timing = call_cost.time_side_by_side(parts, repeats=args.repeats)
    run |= {"step_ms": timing.median_ms, "step_ms_repeats": timing.ms, "temp_bytes": timing.temp_bytes}
    data, tensor = parse_mesh(args.mesh) if args.mesh else (1, 1)
    expected = memory.estimate(
        cfg, source, dtype=args.dtype, weights=weights, batch_size=batch, capacity=capacity, data=data, tensor=tensor
    )
    # The peak is that of drawing random weights.
    run |= {"compile_seconds": timing.compile_seconds, "peak_bytes": _memory("peak_bytes_in_use")}
    run |= {"used_bytes": in_use and in_use + (timing.temp_bytes or 0), "estimated_bytes": expected.total}
    if args.step_only:
        return run
    parts = []  # their states were donated
    jax.clear_caches()
    again = call_cost.time_loop(*part(groups[0]), repeats=0)
    forward = functools.partial(forward_loop, cfg=cfg, num_rows=source.num_rows, decode_cfg=decode_cfg)
    alone = call_cost.time_loop(forward, *part(groups[0])[1:], repeats=args.repeats)
    return run | {
        "compile_cached_seconds": again.compile_seconds,
        "forward_ms": alone.median_ms,
        "forward_ms_repeats": alone.ms,
    }


def _decode_config(capacity: int, attention: str) -> DecodeConfig:
    if attention == EXACT:
        return DecodeConfig(capacity=capacity, is_exact=True)
    return DecodeConfig(capacity=capacity, attention=attention)


def _draft(rows: int) -> DraftSource:
    if rows == 1:
        return parse_draft(PLAIN)
    if rows < 4 or rows % 2:
        raise ValueError(
            f"--rows {rows}: give 1 (plain decoding) or an even number from 4 on (one mask, N/2 - 1 drafts)."
        )
    return parse_draft(f"probe:{rows // 2 - 1}")


def _bytes_read(params: Params, state: DecodeState, in_use: int) -> int:
    """Counts what a call must read: each weight once, but of the embedding table a few rows, and the keys and values in use."""
    weights = _bytes(params) - (_bytes(params["embed"]) if "head" in params else 0)
    slots = state.cache.k[0].shape[2]
    return weights + _bytes(state.cache) * in_use // slots


def _bytes(tree: Any) -> int:
    """Counts what one device holds."""
    return sum(math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _memory(what: str) -> int | None:
    return (jax.devices()[0].memory_stats() or {}).get(what)


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
            f"{temp / 1e6:8.1f}" if temp is not None else f"{'':8}",
            f"{run['used_bytes'] / run['estimated_bytes']:9.3f}" if run["used_bytes"] else "",
        ]
    )  # fmt: skip


if __name__ == "__main__":
    sys.exit(exit_status(main))
