"""Compares sums over GPUs by mailboxes with XLA's, bit for bit, and times both: a layer's sum, its addition and its norm.

    python scripts/stress/exchange.py --devices 2 --rows 1 64 --widths 4096 --output R.json

Each turn of a loop draws other parts on each device. Whatever the sums ever were enters a checksum of every place, which is
that of parts gathered and added in the order of the devices; norms are averaged and compared as numbers. With --skew devices
fall behind each other by chance. Of the times, in microseconds a turn, `psum` is XLA's sum and then the kernel `add_norm`,
and `alone` that kernel without a sum. The exit status is 1 where a checksum differs.
"""

import argparse
import functools
import itertools
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jax.sharding import PartitionSpec as P

from jax_probe_mtp.errors import Parser, exit_status, positive
from jax_probe_mtp.files.whole_files import check_files, write_json
from jax_probe_mtp.kernels.add_norm import add_norm
from jax_probe_mtp.kernels.exchange import Mail, allocate, exchange_add_norm
from jax_probe_mtp.measuring.environment import environment
from jax_probe_mtp.model.config import TENSOR
from jax_probe_mtp.model.mesh import can_exchange, make_mesh

EPS, REPEATS = 1e-5, 5
EACH, SPANS = 8, (20, 120)  # exchanges for each turn of a loop that is timed, and its turns in a round
ROUNDS = 4  # of turns; each begins with a sum by XLA, which no device leaves before all have their mailboxes
Turn = Callable[[jax.Array, jax.Array, jax.Array, Mail], tuple[jax.Array, jax.Array, Mail]]


def main() -> int:
    """Prints a line for each combination and writes the record."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--devices", type=positive, default=2, metavar="T")
    parser.add_argument("--rows", type=positive, nargs="+", default=[1, 7, 30, 64, 128], metavar="M")
    parser.add_argument("--widths", type=positive, nargs="+", default=[896, 4096, 8192], metavar="D")
    parser.add_argument("--dtypes", nargs="+", choices=("bfloat16", "float32"), default=["bfloat16", "float32"])
    parser.add_argument("--turns", type=positive, default=3000)
    parser.add_argument("--skew", action="store_true")
    parser.add_argument("--output", type=Path, metavar="R.json")
    args = parser.parse_args()
    check_files({"--output": args.output}, [])
    mesh = make_mesh(1, args.devices)
    if not can_exchange(mesh):
        raise ValueError("these devices cannot write into each other's memory from kernels.")
    runs = []
    for width, dtype, rows in itertools.product(args.widths, args.dtypes, args.rows):
        run = {"rows": rows, "width": width, "dtype": dtype, **measure(mesh, args, rows, width, jnp.dtype(dtype))}
        runs.append(run)
        print(
            *(f"{name}={value:.4g}" if isinstance(value, float) else f"{name}={value}" for name, value in run.items()),
            flush=True,
        )
        if args.output:
            settings = {name: value for name, value in vars(args).items() if name != "output"}
            write_json(args.output, {"environment": environment("of each run"), "settings": settings, "runs": runs})
    return int(any(run["wrong"] for run in runs))


def measure(mesh: Mesh, args: argparse.Namespace, rows: int, width: int, dtype: jnp.dtype) -> dict[str, Any]:
    """Compares and times one size."""
    x_MD = jax.random.normal(jax.random.key(0), (rows, width), dtype)
    weight_D = 1 + 0.1 * jax.random.normal(jax.random.key(1), (width,), dtype)

    def program(loop: Callable[..., Any]) -> jax.stages.Compiled:
        on_mesh = jax.shard_map(loop, mesh=mesh, in_specs=(P(), P()), out_specs=P(TENSOR), check_vma=False)
        return jax.jit(on_mesh).lower(x_MD, weight_D).compile()

    checks = [functools.partial(_check, turn=turn, args=args) for turn in (_exchange, _gather)]
    (got, got_norm), (want, want_norm) = (map(np.asarray, program(check)(x_MD, weight_D)) for check in checks)
    run = {"wrong": int(np.sum(got != want)), "norm_error": float(np.abs(got_norm - want_norm).max())}
    if args.skew:
        return run
    for name, turn in (("exchange", _exchange), ("psum", _psum), ("alone", _alone)):
        few, many = (
            _seconds(program(functools.partial(_time, turn=turn, turns=turns)), x_MD, weight_D) for turns in SPANS
        )
        run[f"{name}_us"] = (
            (many - few) / (ROUNDS * EACH * (SPANS[1] - SPANS[0])) * 1e6
        )  # without what a loop's start takes
    return run


def _seconds(program: jax.stages.Compiled, *args: jax.Array) -> float:
    taken = []
    for _ in range(1 + REPEATS):
        start = time.perf_counter()
        jax.block_until_ready(program(*args))
        taken.append(time.perf_counter() - start)
    return statistics.median(taken[1:])


def _exchange(
    x_MD: jax.Array, parts_PMD: jax.Array, weight_D: jax.Array, mail: Mail
) -> tuple[jax.Array, jax.Array, Mail]:
    return exchange_add_norm(x_MD, parts_PMD, weight_D, mail, eps=EPS)


def _gather(
    x_MD: jax.Array, parts_PMD: jax.Array, weight_D: jax.Array, mail: Mail
) -> tuple[jax.Array, jax.Array, Mail]:
    part_MD = functools.reduce(jnp.add, parts_PMD)
    if x_MD.dtype == jnp.bfloat16:  # as it is sent
        bits_MD = jax.lax.bitcast_convert_type(part_MD, jnp.int32) & ~0xFF
        part_MD = jax.lax.bitcast_convert_type(bits_MD, jnp.float32)
    summed_MD = functools.reduce(jnp.add, jax.lax.all_gather(part_MD, TENSOR, axis=0))
    return *add_norm(x_MD, summed_MD[None], weight_D, eps=EPS), mail


def _psum(x_MD: jax.Array, parts_PMD: jax.Array, weight_D: jax.Array, mail: Mail) -> tuple[jax.Array, jax.Array, Mail]:
    return *add_norm(x_MD, jax.lax.psum(parts_PMD, TENSOR), weight_D, eps=EPS), mail


def _alone(x_MD: jax.Array, parts_PMD: jax.Array, weight_D: jax.Array, mail: Mail) -> tuple[jax.Array, jax.Array, Mail]:
    return *add_norm(x_MD, parts_PMD, weight_D, eps=EPS), mail


def _check(
    x_MD: jax.Array, weight_D: jax.Array, *, turn: Turn, args: argparse.Namespace
) -> tuple[jax.Array, jax.Array]:
    """Takes turns with random parts; gives checksums of all sums, and the mean of the norms."""
    (M, D), dtype, short = x_MD.shape, x_MD.dtype, jnp.int16 if x_MD.dtype == jnp.bfloat16 else jnp.int32

    def body(i: jax.Array, carry: Any) -> Any:
        x_MD, mail, checksum_MD, norm_MD = carry
        if args.skew:
            late = jnp.where(_noise(i, 1, (1, 128))[0, 0] > 0.5, 40, 0)
            x_MD += jax.lax.fori_loop(0, late, lambda _, zero: zero * 0.5, jnp.zeros((), dtype))
        x_MD, normed_MD, mail = turn(x_MD, _noise(i, 0, (2, M, D)), weight_D, mail)
        bits_MD = jax.lax.bitcast_convert_type(x_MD, short).astype(jnp.int32)
        norm_MD += normed_MD.astype(jnp.float32) / args.turns
        return x_MD * jnp.asarray(0.5, dtype), mail, checksum_MD * 31 + bits_MD, norm_MD

    begun = x_MD, allocate(M, D, dtype, TENSOR), jnp.zeros((M, D), jnp.int32), jnp.zeros((M, D))
    *_, checksum_MD, norm_MD = _in_rounds(body, begun, args.turns // ROUNDS)
    return checksum_MD[None], norm_MD[None]


def _time(x_MD: jax.Array, weight_D: jax.Array, *, turn: Turn, turns: int) -> jax.Array:
    """Takes turns, several for each turn of a loop, whose parts are the norms of the turn before."""

    def body(i: jax.Array, carry: Any) -> Any:
        x_MD, normed_MD, mail = carry
        for _ in range(EACH):
            x_MD, normed_MD, mail = turn(x_MD, normed_MD[None], weight_D, mail)
        return x_MD, normed_MD, mail

    (M, D), dtype = x_MD.shape, x_MD.dtype
    begun = x_MD, x_MD, allocate(M, D, dtype, TENSOR)
    normed_MD: jax.Array = _in_rounds(body, begun, turns)[1]
    return normed_MD[None]


def _in_rounds(body: Callable[[jax.Array, Any], Any], begun: Any, turns: int) -> Any:
    def run(r: jax.Array, carry: Any) -> Any:
        x_MD = carry[0] + jax.lax.psum(_noise(r, 2, (1, 128))[0, 0], TENSOR).astype(carry[0].dtype)
        return jax.lax.fori_loop(r * turns, (r + 1) * turns, body, (x_MD, *carry[1:]))

    return jax.lax.fori_loop(0, ROUNDS, run, begun)


def _noise(i: jax.Array, kind: int, shape: tuple[int, ...]) -> jax.Array:
    """Draws float32 numbers in [-1, 1), others for each turn and device, by hashing where they stand."""
    number = jnp.arange(np.prod(shape), dtype=jnp.uint32).reshape(shape)
    here = i.astype(jnp.uint32) * 2 + jax.lax.axis_index(TENSOR).astype(jnp.uint32) * 977 + kind * 7919
    bits = number * np.uint32(2654435761) + here * 40503
    for factor in (2246822519, 3266489917):
        bits = (bits ^ (bits >> 15)) * np.uint32(factor)
    return (bits ^ (bits >> 16)).astype(jnp.int32).astype(jnp.float32) * 2.0**-31


if __name__ == "__main__":
    sys.exit(exit_status(main))
