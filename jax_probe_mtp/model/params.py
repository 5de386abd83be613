"""The parameter tree: arrays in dicts, one entry a layer; its shapes are said here and nowhere else."""

from typing import Any, NamedTuple

import chex
import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import PartitionSpec

from jax_probe_mtp.model.config import TENSOR, ModelConfig

Params = dict[str, Any]
INT8 = "int8"
WEIGHTS = (INT8,)  # what matrices may be instead of the model's dtype
MOST = 127  # -128 is left out, so that a weight and its opposite are both exact or neither
_OF_LAYER = ("qkv", "out", "gate", "up", "down")  # which of a layer are rounded


class Int8(NamedTuple):
    """A matrix rounded to eight bits, for I numbers in and O out: out = x value.T * scale.

    Attributes:
      value: int8 [O, I], from -127 to 127: a column's numbers side by side, as products read them.
      scale: float32 [O], what one of a column's values is worth; above 0 and finite.
    """

    value: Any
    scale: Any


def quantize(weight_OI: Any) -> Int8:
    """Rounds each weight to the nearest multiple of its column's scale, the largest size in the column over 127.

    Args:
      weight_OI: a matrix, float32 or bfloat16, its numbers out first; of NumPy or of JAX, which the result is of too.

    Returns:
      The matrix; of a column of zeros the scale is 1.
    """
    xp = weight_OI.__array_namespace__()
    weight_OI = weight_OI.astype(np.float32)
    most_O = xp.max(xp.abs(weight_OI), axis=1)
    # A scale below the smallest normal number would lose bits, or be 0.
    scale_O = xp.where(most_O > 0, xp.maximum(most_O / np.float32(MOST), np.finfo(np.float32).tiny), np.float32(1))
    # The quotient may be 127.00001: most / 127 was rounded.
    value_OI = xp.clip(xp.round(weight_OI / scale_O[:, None]), -MOST, MOST).astype(np.int8)
    return Int8(value_OI, scale_O)


def dequantize(weight: Int8) -> Any:
    """Gives the matrix that the values stand for, float32 [O, I]."""
    return weight.value.astype(np.float32) * weight.scale[:, None]


def quantize_params(params: Params) -> Params:
    """Rounds the matrices of `abstract_params(cfg)`, whole as on one device, to those of `weights="int8"`."""
    layers = [layer | {name: quantize(layer[name].T) for name in _OF_LAYER} for layer in params["layers"]]
    return params | {"layers": layers, "head": quantize(params.get("head", params["embed"]))}


def dequantize_params(params: Params) -> Params:
    """Gives what `quantize_params` rounded, in float32; a tied model keeps the head of its own."""
    layers = [layer | {name: dequantize(layer[name]).T for name in _OF_LAYER} for layer in params["layers"]]
    return params | {"layers": layers, "head": dequantize(params["head"])}


def is_int8(leaf: Any) -> bool:
    """Says whether a part of the parameter tree is a matrix of eight bits, for `jax.tree.map(..., is_leaf=is_int8)`."""
    return isinstance(leaf, Int8)


def weights_of(params: Params) -> str | None:
    """Gives "int8" where the matrices are so, None where they have the model's dtype."""
    return INT8 if is_int8(params["layers"][0]["qkv"]) else None


def format_name(dtype: str, weights: str | None) -> str:
    """Names a dtype, and what weights are instead."""
    return f"{dtype}, {weights} weights" if weights else dtype


def abstract_params(cfg: ModelConfig, dtype: jnp.dtype = jnp.float32, weights: str | None = None) -> Params:
    """Gives the shape and dtype of every parameter, as a tree of `jax.ShapeDtypeStruct`.

    Every matrix has two axes, in the order in which products read it: with more, compilers copy it into an order that suits
    a neighbour, in every call. q, k and v are one matrix, which one product reads; its columns go by kv head, so that devices
    can split them.

    Args:
      cfg: the model.
      dtype: dtype of every leaf, but of what `weights` changes.
      weights: "int8" for `Int8` in place of each layer's matrices and the head, whose shape its value has; a tied model then
        has a head too: the table in eight bits, for products alone. None is for arrays.

    Returns:
      `embed` [V, D]; `layers`, a list of L dicts; `final_norm` [D]; `head` [V, D] unless tied. A layer has
      `attn_norm` [D]; `qkv` [D, K (G + 2) h], for each kv head its G queries, its key, its value; `qkv_bias`
      [K (G + 2) h] and `q_norm`, `k_norm` [h] where the model has them; `out` [K G h, D]; `mlp_norm` [D];
      `gate` and `up` [D, F]; `down` [F, D].
    """

    def leaf(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct(shape, dtype)

    D, F, K, G, h = cfg.width, cfg.mlp_width, cfg.num_kv_heads, cfg.queries_per_kv, cfg.head_dim
    layer = {
        "attn_norm": leaf(D),
        "qkv": leaf(D, K * (G + 2) * h),
        "out": leaf(K * G * h, D),
        "mlp_norm": leaf(D),
        "gate": leaf(D, F),
        "up": leaf(D, F),
        "down": leaf(F, D),
    }
    if cfg.has_qkv_bias:
        layer["qkv_bias"] = leaf(K * (G + 2) * h)
    if cfg.has_qk_norm:
        layer |= {"q_norm": leaf(h), "k_norm": leaf(h)}
    params: Params = {
        "embed": leaf(cfg.vocab_size, D),
        "layers": [dict(layer) for _ in range(cfg.num_layers)],
        "final_norm": leaf(D),
    }
    if not cfg.is_tied or weights:
        params["head"] = leaf(cfg.vocab_size, D)
    if weights:
        for each in params["layers"]:
            each |= {name: _abstract_int8(*reversed(each[name].shape)) for name in _OF_LAYER}
        params["head"] = _abstract_int8(cfg.vocab_size, D)
    return params


def _abstract_int8(num_out: int, num_in: int) -> Int8:
    return Int8(jax.ShapeDtypeStruct((num_out, num_in), jnp.int8), jax.ShapeDtypeStruct((num_out,), jnp.float32))


def by_head(cfg: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Gives shapes in which heads have an index: of `qkv` [D, K, G + 2, h], `qkv_bias` [K, G + 2, h], `out` [K, G, h, D]."""
    D, K, G, h = cfg.width, cfg.num_kv_heads, cfg.queries_per_kv, cfg.head_dim
    return {"qkv": (D, K, G + 2, h), "qkv_bias": (K, G + 2, h), "out": (K, G, h, D)}


def check_params(params: Params, cfg: ModelConfig) -> None:
    """Checks parameters that come from no checkpoint against `abstract_params`: names, shapes and one dtype.

    Args:
      params: a tree of arrays or of `jax.ShapeDtypeStruct`; whole, as seen from outside `jax.shard_map`.
      cfg: the model.

    Raises:
      ValueError: one line that names the first parameter that is missing, unknown, misshapen or of another dtype.
    """
    dtype = getattr(params.get("embed") if isinstance(params, dict) else None, "dtype", None)
    if dtype not in (jnp.float32, jnp.bfloat16):
        raise ValueError(f"params['embed'] must be an array of float32 or bfloat16, got {dtype}.")
    try:
        weights = weights_of(params)
    except (KeyError, IndexError, TypeError):  # what is missing is named below
        weights = None
    expected = abstract_params(cfg, dtype, weights)
    names = [{jax.tree_util.keystr(path) for path, _ in jax.tree.leaves_with_path(tree)} for tree in (expected, params)]
    for wrong, names_of in (("is missing", names[0] - names[1]), ("is unknown", names[1] - names[0])):
        if names_of:
            raise ValueError(f"params{min(names_of)} {wrong}; abstract_params(cfg) says which there are.")
    for (path, leaf), like in zip(jax.tree.leaves_with_path(params), jax.tree.leaves(expected), strict=True):
        try:
            chex.assert_shape(leaf, like.shape)
            chex.assert_type(leaf, like.dtype)
        except (AssertionError, TypeError, ValueError):
            name, got = jax.tree_util.keystr(path), f"{getattr(leaf, 'dtype', type(leaf).__name__)}"
            raise ValueError(
                f"params{name} must be {like.dtype} {like.shape}, got {got} {getattr(leaf, 'shape', '')}."
            ) from None


def partition_specs(cfg: ModelConfig, weights: str | None = None) -> Params:
    """Says how each parameter is split over the devices of the axis `TENSOR`: by kv head, by F, by token; norms are not.

    Returns:
      A tree of `jax.sharding.PartitionSpec`, one a leaf of `abstract_params(cfg, weights=weights)`.
    """
    axis_of = {"embed": 0, "head": 0, "qkv": 1, "qkv_bias": 0, "out": 0, "gate": 1, "up": 1, "down": 0}

    def spec(path: tuple[Any, ...], leaf: Any) -> Any:
        name = path[-1].key
        if is_int8(leaf):  # a layer's matrices lie the other way round
            by_out = name == "head" or axis_of[name] == 1
            return Int8(*((PartitionSpec(TENSOR),) * 2 if by_out else (PartitionSpec(None, TENSOR), PartitionSpec())))
        return PartitionSpec(*[None] * axis_of[name], TENSOR) if name in axis_of else PartitionSpec()

    return jax.tree_util.tree_map_with_path(spec, abstract_params(cfg, weights=weights), is_leaf=is_int8)


def random_params(
    cfg: ModelConfig, key: jax.Array, dtype: jnp.dtype = jnp.float32, weights: str | None = None
) -> Params:
    """Draws random parameters for tests and timing: normal, scaled by fan-in; norms near 1, so that none is the identity.

    Args:
      cfg: the model.
      key: PRNG key.
      dtype: as for `abstract_params`.
      weights: as for `abstract_params`; the matrices are those of `dtype`, rounded.

    Returns:
      A tree of the shapes of `abstract_params`.
    """
    leaves, treedef = jax.tree.flatten_with_path(abstract_params(cfg, dtype))
    keys = iter(jax.random.split(key, len(leaves) - cfg.num_layers))
    arrays, ups = [], list[jax.Array]()
    for path, leaf in leaves:
        name = path[-1].key
        if name == "up":  # drawn with its gate
            noise = ups.pop()
        elif name == "gate":
            both_D2F = jax.random.normal(next(keys), (leaf.shape[0], 2, leaf.shape[1]), jnp.float32)
            noise = both_D2F[:, 0]
            ups.append(both_D2F[:, 1])
        else:
            noise = jax.random.normal(next(keys), leaf.shape, jnp.float32)
        if name.endswith("norm"):
            value = 1 + 0.1 * noise
        elif name in ("embed", "head"):
            value = noise * leaf.shape[1] ** -0.5
        elif name == "qkv_bias":
            value = 0.1 * noise
        else:
            value = noise * leaf.shape[0] ** -0.5
        arrays.append(value.astype(leaf.dtype))
    params: Params = jax.tree.unflatten(treedef, arrays)
    return quantize_params(params) if weights else params
