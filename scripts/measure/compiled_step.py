"""Compiles the prefill and the decode step for a platform, which need not be here, and reads what the compiler made of them.

    python scripts/measure/compiled_step.py --topology v6e:2x2 --shape llama-3.2-3b --drafts plain probe:14 --output R.json
    python scripts/measure/compiled_step.py --topology v5e:2x4 --shape llama-3-8b --mesh tensor=8 --batch 8
    python scripts/measure/compiled_step.py --topology h100 --shape smollm2-135m --drafts plain merged:16 --programs steps
    python scripts/measure/compiled_step.py --shape smollm2-135m --dtype float32

Without --topology it compiles for this machine's own device. TPUs are compiled for by libtpu (pip install "jax[tpu]"), one
H100 by JAX's CUDA plugin (pip install "jax[cuda13]"), without one: nothing is run, and XLA times no kernels to choose among
them. Of each loop the table says, for one pass: the bytes of weights and cache that it carries, the bytes of them that it
copies, converts or transposes, what is gathered from other devices, and what all else writes to main memory; then the moves,
largest first.
"""

import argparse
import contextlib
import dataclasses
import itertools
import os
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")  # else libtpu looks for a TPU's own server

import compiled_text
import jax
import jax.numpy as jnp
from jax.experimental import topologies
from jax.sharding import SingleDeviceSharding
from shapes import SHAPES

from jax_probe_mtp.decoding.config import DecodeConfig
from jax_probe_mtp.decoding.loop import prefill, run_steps
from jax_probe_mtp.decoding.request import Request, idle_request
from jax_probe_mtp.decoding.state import DecodeState
from jax_probe_mtp.drafting.source import DraftSource
from jax_probe_mtp.drafting.spec import draft_name, parse_draft
from jax_probe_mtp.errors import Parser, exit_status, positive
from jax_probe_mtp.files.whole_files import check_files, write_json
from jax_probe_mtp.generation.programs import REQUEST, ROWS, Programs
from jax_probe_mtp.jobs import memory
from jax_probe_mtp.measuring.environment import environment
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.mesh import check_mesh, make_mesh, parse_mesh, sharded_params
from jax_probe_mtp.model.params import WEIGHTS, Params, abstract_params, format_name


@dataclasses.dataclass(frozen=True)
class Chip:
    """One chip by its data sheet: bytes a second of its memory, bytes of it, and cycles a second."""

    bandwidth: float
    memory: float
    clock: float


H100 = "h100"
CHIPS = {
    "v5e": Chip(819e9, 16e9, 1.5e9),
    "v6e": Chip(1640e9, 32e9, 1.75e9),
    "v5p": Chip(2765e9, 95e9, 1.75e9),
    H100: Chip(3350e9, 80e9, 1.98e9),
}
# What XLA asks about a GPU that is not here.
TARGET = """
gpu_device_info {
  threads_per_block_limit: 1024 threads_per_warp: 32 threads_per_core_limit: 2048
  shared_memory_per_block: 49152 shared_memory_per_block_optin: 232448 shared_memory_per_core: 233472
  core_count: 132 fpus_per_core: 128 registers_per_core_limit: 65536 registers_per_block_limit: 65536
  block_dim_limit_x: 2147483647 block_dim_limit_y: 65535 block_dim_limit_z: 65535
  memory_bandwidth: 3352320000000 l2_cache_size: 52428800 clock_rate_ghz: 1.98 device_memory_size: 84978434048
  cuda_compute_capability { major: 9 minor: 0 }
}
platform_name: "CUDA"
dnn_version_info { major: 9 minor: 8 }
runtime_version { major: 12 minor: 8 }
device_description_str: "NVIDIA H100 80GB HBM3"
"""
PROGRAMS = ("decode", "prefill", "steps")
COLUMNS = (
    "program loop | weights cache GB | moved MB: weights cache gathered other | written MB | bound ms  compiler's ms"
)


def main() -> int:
    """Compiles every combination that the flags name; prints a table and writes the record."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--topology", metavar="NAME", help="v6e:2x2 or such of TPUs, or h100 (default: this machine's device)"
    )
    parser.add_argument("--mesh", metavar="M", help="such as data=2,tensor=4 (default: one chip)")
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-3.2-3b")
    parser.add_argument("--layers", type=positive, metavar="L", help="another number of layers than the shape has")
    parser.add_argument("--drafts", nargs="+", default=["plain"], metavar="DRAFT")
    parser.add_argument("--batch", type=positive, nargs="+", default=[1], metavar="B")
    parser.add_argument("--capacity", type=positive, default=1024, metavar="S")
    parser.add_argument("--prompt", type=positive, default=513, metavar="T", help="tokens of the padded prompts")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--weights", choices=WEIGHTS, help="matrices of eight bits (default: of the dtype)")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=["decode"], help="decode: both in one")
    parser.add_argument("--largest", type=positive, default=4, metavar="N", help="moves that are listed of each loop")
    parser.add_argument("--text", type=Path, metavar="FOLDER", help="keeps the compiled texts")
    parser.add_argument("--output", type=Path, metavar="R.json")
    args = parser.parse_args()
    check_files({"--output": args.output}, [])
    drafts = [parse_draft(draft) for draft in args.drafts]
    if args.prompt > args.capacity + 1:
        raise ValueError(f"--prompt {args.prompt} needs --capacity {args.prompt - 1} or more, got {args.capacity}.")
    cfg = dataclasses.replace(SHAPES[args.shape], **({"num_layers": args.layers} if args.layers else {}))
    devices = topology_devices(args.topology)
    print(COLUMNS)
    runs = []
    for source, batch, program in itertools.product(drafts, args.batch, args.programs):
        runs.append(measure(args, cfg, source, batch, program, devices))
        print_run(runs[-1], args.largest)
    if args.output:
        settings = {name: value for name, value in vars(args).items() if name not in ("output", "text")}
        write_json(
            args.output,
            {"environment": environment(format_name(args.dtype, args.weights)), "settings": settings, "runs": runs},
        )
    return 0


def topology_devices(name: str | None) -> list[Any]:
    """Gives the devices to compile for.

    Raises:
      ValueError: in one line, where what compiles for it is missing, or knows no such topology.
    """
    if name is None:
        return jax.devices()
    if name == H100:
        os.environ["XLA_FLAGS"] = (
            f"{os.environ.get('XLA_FLAGS', '')} --xla_gpu_autotune_level=0"  # nothing is there to time
        )
        try:
            found = topologies.get_topology_desc(platform="cuda", topology="1x1x1", target_config=TARGET)
        except Exception as error:
            says = 'GPUs are compiled for by JAX\'s CUDA plugin: pip install "jax[cuda13]"'
            raise ValueError(f"--topology {name}: {str(error).splitlines()[0]} ({says})") from None
        return list(found.devices)
    if name.split(":")[0] not in CHIPS:
        tpus = ", ".join(chip for chip in CHIPS if chip != H100)
        raise ValueError(f"--topology must be h100, or one of {tpus} and its chips, such as v6e:2x2, got {name!r}.")
    try:
        return list(topologies.get_topology_desc(platform="tpu", topology_name=name).devices)
    except Exception as error:
        first = str(error).splitlines()[0]
        if "libtpu" in first or "tpu" not in first.lower():
            first += ' (TPUs are compiled for by libtpu: pip install "jax[tpu]")'
        raise ValueError(f"--topology {name}: {first}") from None


def measure(
    args: argparse.Namespace, cfg: ModelConfig, source: DraftSource, batch: int, program: str, devices: list[Any]
) -> dict[str, Any]:
    """Compiles one program and reads it."""
    data, tensor = parse_mesh(args.mesh) if args.mesh else (1, 1)
    check_mesh(cfg, batch, data, tensor)
    chip = CHIPS.get((args.topology or "").split(":")[0])
    needed = memory.estimate(
        cfg,
        source,
        dtype=args.dtype,
        weights=args.weights,
        batch_size=batch,
        capacity=args.capacity,
        data=data,
        tensor=tensor,
    )
    if chip and needed.total > chip.memory:
        raise ValueError(
            f"{args.shape} needs {needed}, but a chip has {chip.memory / 2**30:.1f} GiB; split the weights with --mesh "
            f"tensor=T or lower --capacity."
        )
    start = time.perf_counter()
    with _as_if_here(args.topology):
        compiled = compile_program(cfg, source, program, devices, data=data, tensor=tensor, batch=batch, args=args)
    seconds = time.perf_counter() - start
    text, sizes = compiled.as_text(), compiled.memory_analysis()
    assert text is not None
    assert sizes is not None
    if args.text:
        args.text.mkdir(parents=True, exist_ok=True)
        name = f"{args.topology or 'here'}-{args.shape}-{args.mesh or 'one'}-{draft_name(source)}-{batch}-{program}.txt"
        (args.text / name.replace(":", "_")).write_text(text)
    slots = args.capacity + source.num_rows
    read = compiled_text.Program(text, [batch // data * cfg.num_kv_heads // tensor * slots * cfg.head_dim])
    return {
        "program": program,
        "draft": draft_name(source),
        "rows": source.num_rows,
        "batch": batch,
        "compile_seconds": seconds,
        "temp_bytes": sizes.temp_size_in_bytes,
        "argument_bytes": sizes.argument_size_in_bytes,
        "estimated_bytes": needed.total,
        "loops": [_loop(loop, chip) for loop in read.loops() if loop.reads],
        "once": [dataclasses.asdict(move) for move in read.once() if move.kind in ("weights", "cache")],
    }


def compile_program(
    cfg: ModelConfig,
    source: DraftSource,
    program: str,
    devices: list[Any],
    *,
    data: int,
    tensor: int,
    batch: int,
    args: argparse.Namespace,
) -> jax.stages.Compiled:
    """Compiles for the first devices of a list; nothing is allocated."""
    dtype = jnp.dtype(args.dtype)
    if data * tensor > 1:
        params = sharded_params(cfg, make_mesh(data, tensor, devices), dtype, args.weights)
        sharding = None
    else:
        sharding = SingleDeviceSharding(devices[0])
        params = _on(abstract_params(cfg, dtype, args.weights), sharding)
    decode_cfg = DecodeConfig(capacity=args.capacity)
    prompt_BT = jax.ShapeDtypeStruct((batch, args.prompt), jnp.int32)
    prompt_BT, request = _on((prompt_BT, idle_request(batch, [0])), sharding)
    programs = Programs(SimpleNamespace(params=params, config=cfg), source)  # type: ignore[arg-type]
    how: dict[str, Any] = {"gives": programs.state, "decode_cfg": decode_cfg}
    if program != "steps":
        function = prefill if program == "prefill" else decode
        return programs.get(function, prompt_BT, request, takes=(ROWS, REQUEST), **how)
    state = jax.eval_shape(
        lambda params, prompt_BT, request: prefill(params, prompt_BT, request, cfg, source, decode_cfg),
        _on(abstract_params(cfg, dtype, args.weights), None), prompt_BT, request,
    )  # fmt: skip
    return programs.get(run_steps, request, _on(state, sharding), donate=(2,), **how)


def decode(params: Params, prompt_BT: jax.Array, request: Request, **static: Any) -> DecodeState:
    """Decodes a batch: what `decoding.loop.decode` does, its state as the result."""
    return run_steps(params, request, prefill(params, prompt_BT, request, **static), **static)


def _as_if_here(topology: str | None) -> contextlib.AbstractContextManager[Any]:
    """Lets Pallas's kernels be lowered for a GPU that is not here."""
    if topology != H100:
        return contextlib.nullcontext()
    device = jax.sharding.AbstractDevice(device_kind="NVIDIA H100 80GB HBM3", num_cores=132, platform="gpu")
    axis_types = (jax.sharding.AxisType.Auto,)
    mesh = jax.sharding.AbstractMesh((1,), ("x",), axis_types=axis_types, abstract_device=device)
    return jax.sharding.use_abstract_mesh(mesh)


def _on(tree: Any, sharding: Any) -> Any:
    return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree)


def _loop(loop: compiled_text.Loop, chip: Chip | None) -> dict[str, Any]:
    must = sum(loop.reads.values())
    return {
        "name": loop.name,
        "reads": loop.reads,
        "moved": {kind: loop.moved(kind) for kind in ("weights", "cache", "gathered", "other")},
        "written": loop.writes,
        "bound_ms": must / chip.bandwidth * 1e3 if chip else None,
        "compiler_ms": loop.cycles / chip.clock * 1e3 if chip else None,
        "moves": [dataclasses.asdict(move) for move in loop.moves],
    }


def print_run(run: dict[str, Any], largest: int) -> None:
    """Prints a compiled program: a line for each loop, the largest moves below it."""
    print(f"{run['draft']}, {run['rows']} rows, batch {run['batch']}: {run['program']}, {run['compile_seconds']:.0f} s")
    for loop in run["loops"]:
        moved = " ".join(f"{size / 1e6:9.3f}" for size in loop["moved"].values())
        reads = " ".join(f"{loop['reads'].get(kind, 0) / 1e9:6.3f}" for kind in ("weights", "cache"))
        times = " ".join("-" if loop[key] is None else f"{loop[key]:7.3f}" for key in ("bound_ms", "compiler_ms"))
        print(f"  {loop['name'][:28]:28s} | {reads} | {moved} | {loop['written'] / 1e6:8.3f} | {times}")
        for move in loop["moves"][:largest]:
            print(f"      {move['bytes'] / 1e6:9.3f} MB {move['opcode']:12s} {move['result']:28s} {move['what'][-70:]}")
    for move in run["once"][:largest]:
        print(f"  once {move['bytes'] / 1e6:9.3f} MB {move['opcode']:12s} {move['result']:28s} {move['what'][-70:]}")
    print(
        f"  temporary {run['temp_bytes'] / 2**30:.3f} GiB, arguments {run['argument_bytes'] / 2**30:.3f}, estimated "
        f"{run['estimated_bytes'] / 2**30:.3f}",
        flush=True,
    )


if __name__ == "__main__":
    sys.exit(exit_status(main))
