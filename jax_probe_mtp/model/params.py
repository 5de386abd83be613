"""The parameter tree: plain arrays in dicts, one entry a layer; its shapes are said here and nowhere else."""

from typing import Any

import chex
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from jax_probe_mtp.model.config import TENSOR, ModelConfig

Params = dict[str, Any]


def abstract_params(cfg: ModelConfig, dtype: jnp.dtype = jnp.float32) -> Params:
    """Gives the shape and dtype of every parameter, as a tree of `jax.ShapeDtypeStruct`.

    Every matrix has two axes, in the order in which products read it: with more, compilers copy it into an order that suits
    a neighbour, in every call. q, k and v are one matrix, which one product reads; its columns go by kv head, so that devices
    can split them.

    Args:
      cfg: the model.
      dtype: dtype of every leaf.

    Returns:
      `embed` [V, D]; `layers`, a list of L dicts; `final_norm` [D]; `head` [V, D] unless tied. Of a layer:
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
    if not cfg.is_tied:
        params["head"] = leaf(cfg.vocab_size, D)
    return params


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
    expected = abstract_params(cfg, dtype)
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


def partition_specs(cfg: ModelConfig) -> Params:
    """Says how each parameter is split over the devices of the axis `TENSOR`: by kv head, by F, by token; norms are not.

    Returns:
      A tree of `jax.sharding.PartitionSpec`, one a leaf of `abstract_params(cfg)`.
    """
    axis_of = {"embed": 0, "head": 0, "qkv": 1, "qkv_bias": 0, "out": 0, "gate": 1, "up": 1, "down": 0}

    def spec(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> PartitionSpec:
        name = path[-1].key
        return PartitionSpec(*[None] * axis_of[name], TENSOR) if name in axis_of else PartitionSpec()

    return jax.tree_util.tree_map_with_path(spec, abstract_params(cfg))


def random_params(cfg: ModelConfig, key: jax.Array, dtype: jnp.dtype = jnp.float32) -> Params:
    """Draws random parameters for tests and timing: normal, scaled by fan-in; norms near 1, so that none is the identity.

    Args:
      cfg: the model.
      key: PRNG key.
      dtype: dtype of every leaf.

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
    return jax.tree.unflatten(treedef, arrays)
