"""Gives a row the same bits whatever rows are beside it: pieces of the forward pass as GPU kernels whose sums have one order.

XLA and the libraries that it calls multiply by other tiles for another number of rows, and round otherwise. The kernels here
and in `model/fused_layer.py` cut a row's sums by the weight's shape alone. They are made for bfloat16 and float32.
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jax_probe_mtp.kernels import int8_product, product, tiles
from jax_probe_mtp.kernels.add_norm import add_norm
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.params import Int8, Params

DTYPES = (jnp.bfloat16, jnp.float32)


def lacking(params: Params, cfg: ModelConfig) -> list[str]:
    """Names what has no such kernel, such as "heads of 80"; gives an empty list where every piece has one."""
    dtype = params["embed"].dtype
    if dtype not in DTYPES:
        return [f"{dtype.name}"]
    found = [] if tiles.is_supported(cfg.head_dim, dtype) else [f"heads of {cfg.head_dim}"]
    matrices = {name: params["layers"][0][name] for name in ("qkv", "out", "gate", "up", "down")}
    for name, weight in {**matrices, "head": params.get("head", params["embed"])}.items():
        if isinstance(weight, Int8):
            num_out, num_in = weight.value.shape
            has_tiles = dtype == jnp.bfloat16 and int8_product.has_tiles(weight.value)
        else:
            num_in, num_out = weight.shape[::-1] if name == "head" else weight.shape
            has_tiles = product.choose_tiles(num_in, num_out, dtype=dtype) is not None
        if not has_tiles:
            found.append(f"{name} of {num_in} x {num_out}")
    return found


def norm(x_BTD: jax.Array, weight_D: jax.Array, *, eps: float, interpret: bool = False) -> jax.Array:
    """Computes `layers.rms_norm`, in the order of the norms between layers."""
    x_MD = x_BTD.reshape(-1, x_BTD.shape[-1])
    nothing_1MD = jnp.zeros((1, *x_MD.shape), jnp.float32)
    return add_norm(x_MD, nothing_1MD, weight_D, eps=eps, interpret=interpret)[1].reshape(x_BTD.shape)


def head(hidden_MD: jax.Array, head_VD: jax.Array | Int8, interpret: bool = False) -> jax.Array:
    """Computes logits, float32 [M, V]."""
    if not isinstance(head_VD, Int8):
        return product.head_product(hidden_MD, head_VD, interpret=interpret)
    parts_PNV = int8_product.product_parts(hidden_MD, head_VD, interpret=interpret)
    return functools.reduce(jnp.add, parts_PNV)[: len(hidden_MD)]


def differing(params: Params, num_rows: int) -> list[str]:
    """Names the products that give a row other bits in some place among `num_rows` rows than alone, on this device."""
    layer = params["layers"][0]

    def multiply(x_MD: jax.Array, *weights: jax.Array | Int8) -> jax.Array:
        module = int8_product if isinstance(weights[0], Int8) else product
        if len(weights) == 2:
            return module.gated_product(x_MD, *weights)[: len(x_MD)]
        return functools.reduce(jnp.add, module.product_parts(x_MD, *weights))[: len(x_MD)]

    pieces: dict[str, tuple[Any, ...]] = {name: (multiply, layer[name]) for name in ("qkv", "out", "down")}
    pieces["gate and up"] = multiply, layer["gate"], layer["up"]
    pieces["head"] = head, params.get("head", params["embed"])
    found = []
    for name, (run, *weights) in pieces.items():
        first = weights[0].value if isinstance(weights[0], Int8) else weights[0]
        num_in = first.shape[1] if isinstance(weights[0], Int8) or name == "head" else first.shape[0]
        x_1D = jax.random.normal(jax.random.key(0), (1, num_in)).astype(params["embed"].dtype)
        alone, everywhere = (jax.jit(run)(jnp.repeat(x_1D, n, axis=0), *weights) for n in (1, num_rows))
        if not bool(jnp.all(everywhere == alone)):
            found.append(name)
    return found
