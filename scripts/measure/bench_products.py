"""Measures what the products of a layer and of the head cost in a decode call, by XLA's kernels and by ours, on random weights.

    python scripts/measure/bench_products.py --shape llama-3-8b --rows 1 30 60 --output R.json
    python scripts/measure/bench_products.py --shape llama-3-8b --rows 60 --products out gate_up --how kernel --search 40
    python scripts/measure/bench_products.py --shape smollm2-135m --dtype float32 --rows 1 10 30

--how is xla (its own kernels, the activation included), kernel (jax_probe_mtp/kernels/product.py) or int8 (int8_product.py
there, whose weights are rounded to eight bits; without the head). More rows than a kernel takes are left out. The kernels
leave parts of the sums, but for gate and up: the next kernel adds them up, and that is not timed. GB/s counts the weight alone.

Each product is timed over several weights in turn, --gigabytes of them, so that no cache holds them, in one compiled program
whose results take the places of the last call's; all results of the last call are compared with products in float32.
--search N tries up to N other tilings of each product by --how kernel as well, drawn at random. Elsewhere than on CUDA,
kernels run as JAX operations, to see that the script works. The record is written after every run.
"""

import argparse
import functools
import itertools
import random
import statistics
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from shapes import SHAPES

from jax_probe_mtp.errors import Parser, exit_status, one_line, positive
from jax_probe_mtp.files.whole_files import check_files, write_json
from jax_probe_mtp.kernels import int8_product
from jax_probe_mtp.kernels.product import (
    MAX_SMALL_ROWS,
    Tiles,
    choose_tiles,
    gated_product,
    head_product,
    product_parts,
)
from jax_probe_mtp.measuring.environment import environment
from jax_probe_mtp.model import layers
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.params import Int8, dequantize, quantize

PRODUCTS = ("qkv", "out", "gate_up", "down", "head")
HOWS = ("xla", "kernel", "int8")
# Of a norm. Bfloat16's rounding is 2e-3, and XLA rounds gate and up before it multiplies them; float32 sums up to 30,000.
MAX_ERROR = {"bfloat16": 1e-2, "float32": 1e-5}
Weight = tuple[jax.Array, ...]  # one, or gate and up; of int8 the values and scales of each, one behind the other
Product = Callable[..., jax.Array]  # x [M, D] and a weight's arrays -> [M, I], or parts of it [P, M, I]


def main(argv: Sequence[str] | None = None) -> int:
    """Measures, prints a table and writes the record; 1 where a result is wrong, or tiles that were not searched fail."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="llama-3-8b")
    parser.add_argument("--dtype", choices=sorted(MAX_ERROR), default="bfloat16", help="of the weights")
    parser.add_argument("--rows", type=int, nargs="+", default=[1, 30, 60], metavar="M")
    parser.add_argument("--products", choices=PRODUCTS, nargs="+", default=list(PRODUCTS))
    parser.add_argument("--how", choices=HOWS, nargs="+", default=["xla", "kernel"])
    parser.add_argument("--search", type=int, default=0, metavar="N", help="other tilings that are tried")
    parser.add_argument("--gigabytes", type=float, default=1.0, metavar="GB", help="of weights that take turns")
    parser.add_argument("--calls", type=positive, default=20, help="of the program, for a time")
    parser.add_argument("--repeats", type=positive, default=5)
    parser.add_argument("--output", type=Path, metavar="R.json")
    args = parser.parse_args(argv)
    check_files({"--output": args.output}, [])
    cfg = SHAPES[args.shape]
    if min(args.rows) < 1:
        raise ValueError(f"--rows are at least 1, got {args.rows}.")
    if args.search < 0 or not 0 < args.gigabytes < float("inf"):
        raise ValueError(f"--search is at least 0, --gigabytes above 0, got {args.search} and {args.gigabytes}.")
    if "int8" in args.how and args.dtype != "bfloat16":
        raise ValueError(f"--how int8 multiplies bfloat16 rows, got --dtype {args.dtype}: leave one of them out.")
    print(f"{args.shape}, {args.dtype}, {jax.devices()[0].device_kind}")
    print(f"{'product':8} rows how         us   GB/s  error  tiles")
    settings = {key: value for key, value in vars(args).items() if key != "output"}
    record: dict[str, Any] = {"environment": environment(args.dtype), "settings": settings, "runs": []}
    is_wrong = False
    for how, name in itertools.product(args.how, args.products):  # what may break the device comes last
        if how == "int8" and name == "head":
            continue
        weights = _weights(cfg, name, args.gigabytes, args.dtype)
        if how == "int8":
            in_eight_bits = jax.jit(quantize)
            weights = [tuple(part for array in weight for part in in_eight_bits(array.T)) for weight in weights]
        for rows in args.rows:
            if how == "kernel" and rows > MAX_SMALL_ROWS:
                continue
            if how == "int8" and not int8_product.is_supported(rows, jnp.dtype("bfloat16"), weights[0][0]):
                continue
            for run in _measure(how, name, weights, rows, args):
                record["runs"].append(run)
                print(_line(run), flush=True)
                is_wrong |= run["is_chosen"] if run["refused"] else not run["error"] <= MAX_ERROR[args.dtype]
                if args.output:
                    write_json(args.output, record)
    return int(is_wrong)


def _weights(cfg: ModelConfig, name: str, gigabytes: float, dtype: str) -> list[Weight]:
    heads, h = cfg.num_heads, cfg.head_dim
    shape: tuple[int, ...] = {
        "qkv": (cfg.width, (heads + 2 * cfg.num_kv_heads) * h),
        "out": (heads * h, cfg.width),
        "gate_up": (cfg.width, cfg.mlp_width),  # and another one
        "down": (cfg.mlp_width, cfg.width),
        "head": (cfg.vocab_size, cfg.width),
    }[name]
    draw = jax.jit(lambda key: (jax.random.normal(key, shape) * cfg.width**-0.5).astype(dtype))
    each = 2 if name == "gate_up" else 1
    first = tuple(draw(jax.random.key(i)) for i in range(each))
    count = max(2, round(gigabytes * 1e9 / _bytes(first)))
    return [first, *(tuple(draw(jax.random.key(each * i + j)) for j in range(each)) for i in range(1, count))]


def _bytes(weight: Weight) -> int:
    return sum(array.nbytes for array in weight)


def _measure(
    how: str, name: str, weights: list[Weight], rows: int, args: argparse.Namespace
) -> Iterator[dict[str, Any]]:
    shape = weights[0][0].shape[::-1] if how == "int8" or name == "head" else weights[0][0].shape
    x_MD = jax.random.normal(jax.random.key(7), (rows, shape[0])).astype(args.dtype)
    xs = [x_MD + 0 for _ in weights]  # one for each: XLA may join products that share a factor
    expected = [_in_float32(x_MD, *_wide(how, name, weight)) for weight in weights]
    for number, tiles in enumerate(_tilings(how, name, shape, args.search, args.dtype)):
        run: dict[str, Any] = {"product": name, "rows": rows, "how": how, "is_chosen": number == 0}
        run |= {"tiles": tiles._asdict() if tiles else None, "us": None, "error": None, "refused": None}
        try:
            results, us = _time(_product(how, name, tiles), xs, weights, args)
        except Exception as refused:  # of any kind, by either compiler: the next tiles may do
            yield run | {"refused": one_line(refused)[:200]}
            continue
        error = max(_error(got, expected_MI) for got, expected_MI in zip(results, expected, strict=True))
        median = statistics.median(us)
        bandwidth = _bytes(weights[0]) / median * 1e6
        yield run | {"us": median, "us_repeats": us, "bytes_per_second": bandwidth, "error": error}


def _wide(how: str, name: str, weight: Weight) -> Weight:
    """Gives the matrices [D, I] that a weight stands for."""
    if how != "int8":
        return (weight[0].T,) if name == "head" else weight
    return tuple(dequantize(Int8(*parts)).T for parts in zip(weight[::2], weight[1::2], strict=True))


def _in_float32(x_MD: jax.Array, *weight: jax.Array) -> jax.Array:
    """Makes the product in float32, [M, I], of two weights the gated one."""
    products = [jnp.matmul(x_MD, each, precision="highest", preferred_element_type=jnp.float32) for each in weight]
    return products[0] if len(products) == 1 else jax.nn.silu(products[0]) * products[1]


def _error(got: jax.Array, expected_MI: jax.Array) -> float:
    """Compares a product, or parts of it, with the expected one: the difference's norm over the norm."""
    got_MI = jnp.sum(got.astype(jnp.float32), axis=tuple(range(got.ndim - 2)))[: len(expected_MI)]
    return float(jnp.linalg.norm(got_MI - expected_MI) / jnp.linalg.norm(expected_MI))


def _tilings(how: str, name: str, shape: tuple[int, ...], search: int, dtype: str) -> list[Tiles | None]:
    """Lists the tiles that are in use, then others; gives one None where others choose, and nothing where no tiles fit."""
    if how != "kernel":
        return [None]
    num_weights, most_parts = (2 if name == "gate_up" else 1), (8 if name in ("qkv", "out", "down") else 1)
    chosen = choose_tiles(*shape, num_weights=num_weights, dtype=jnp.dtype(dtype))
    if chosen is None:
        return []
    if name == "head":
        chosen = chosen._replace(parts=1)
    at_least, at_most = (60, 400) if name != "head" else (60, shape[1])
    others: list[Tiles | None] = [
        tiles
        for columns in (16, 32, 64, 128, 256)
        for parts in (1, 2, 3, 4, 6, 8)
        for step in ((64,) if dtype == "bfloat16" else (32, 64))
        if parts <= most_parts and shape[1] % columns == 0 and shape[0] % (step * parts) == 0
        if columns * step * num_weights <= 2**14 and at_least <= shape[1] // columns * parts <= at_most
        for warps, stages in itertools.product((4, 8), (3, 4, 5, 6))
        if (tiles := Tiles(columns, parts, warps, stages, step)) != chosen
    ]
    return [chosen, *random.Random(0).sample(others, min(search, len(others)))]


def _product(how: str, name: str, tiles: Tiles | None) -> Product:
    is_gated = name == "gate_up"
    if how == "xla" and name == "head":
        return functools.partial(layers.product, "md,vd->mv", out_dtype=jnp.float32)
    if how == "xla":
        plain = functools.partial(layers.product, "md,di->mi")
        return (lambda x, gate, up: jax.nn.silu(plain(x, gate)) * plain(x, up)) if is_gated else plain
    interpret = jax.default_backend() != "gpu"
    if how == "int8" and is_gated:
        return lambda x, gate, gate_scale, up, up_scale: int8_product.gated_product(
            x, (gate, gate_scale), (up, up_scale), interpret=interpret
        )
    if how == "int8":
        return lambda x, value, scale: int8_product.product_parts(x, (value, scale), interpret=interpret)
    multiply: Product = gated_product if is_gated else head_product if name == "head" else product_parts
    return jax.jit(functools.partial(multiply, tiles=tiles, interpret=interpret))  # traced once for all weights


def _time(
    multiply: Product, xs: list[jax.Array], weights: list[Weight], args: argparse.Namespace
) -> tuple[list[jax.Array], list[float]]:
    """Gives the products of the last call, and microseconds of one product, a number per repeat."""

    def run_all(xs: list[jax.Array], weights: list[Weight], last: list[jax.Array] | None) -> list[jax.Array]:
        return [multiply(x, *weight) for x, weight in zip(xs, weights, strict=True)]

    shapes = jax.eval_shape(run_all, xs, weights, None)
    # Results stay where they are: a recorded graph of kernels would have to learn of new places at each call.
    run = jax.jit(run_all, donate_argnums=2, keep_unused=True).lower(xs, weights, shapes).compile()
    results = run(xs, weights, [jnp.zeros(shape.shape, shape.dtype) for shape in shapes])
    us = []
    for _ in range(args.repeats):
        jax.block_until_ready(results)
        start = time.perf_counter()
        for _ in range(args.calls):
            results = run(xs, weights, results)
        jax.block_until_ready(results)
        us.append((time.perf_counter() - start) * 1e6 / args.calls / len(weights))
    return results, us


def _line(run: dict[str, Any]) -> str:
    start = f"{run['product']:8} {run['rows']:4} {run['how']:6}"
    tiles = "" if run["tiles"] is None else " ".join(f"{k} {v}" for k, v in run["tiles"].items())
    if run["refused"]:
        return f"{start} {'-':>7} {tiles}: {run['refused'][:90]}"
    return f"{start} {run['us']:7.1f} {run['bytes_per_second'] / 1e9:6.0f} {run['error']:.0e}  {tiles}"


if __name__ == "__main__":
    sys.exit(exit_status(main))
