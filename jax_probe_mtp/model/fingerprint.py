"""Tells two models apart, by digests of all that decides the tokens of their texts: two that agree in them are one model."""

import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.mesh import mesh_of
from jax_probe_mtp.model.params import Params, abstract_params, by_head, weights_of


def identity(checkpoint: Checkpoint) -> dict[str, Any]:
    """Gives the model's name, its end-of-text ids, and digests of its shape, every weight, the tokenizer and its template."""
    return {
        **model_identity(checkpoint),
        "weights": weights_digest(checkpoint.params),
        "eos_token_ids": sorted(checkpoint.eos_token_ids),
        **text_identity(checkpoint.tokenizer),
    }


def text_identity(tokenizer: Any) -> dict[str, str]:
    """Gives digests of what decides the tokens of a text: the tokenizer, and its chat template with what it may print."""
    tokenizer("a")  # a tokenizer.json may bring padding or truncation, which the first call takes away
    template = [tokenizer.chat_template, sorted(map(repr, tokenizer.special_tokens_map.items()))]
    parts = {"tokenizer": tokenizer.backend_tokenizer.to_str(), "chat_template": repr(template)}
    return {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in parts.items()}


def weights_digest(params: Params) -> str:
    """Gives a digest over every bit of every weight, the same however they lie on devices: padding by zeros is not seen."""
    names = [jax.tree_util.keystr(path) for path, _ in jax.tree_util.tree_leaves_with_path(params)]
    return _hash([names, _bit_sums(jax.tree.leaves(params))])


def local_weights_digest(params: Params) -> tuple[str, str]:
    """Gives which parts of the weights this process holds, and a digest of their bits."""
    parts = {
        (jax.tree_util.keystr(path), str(shard.index)): shard.data
        for path, leaf in jax.tree_util.tree_leaves_with_path(params)
        for shard in leaf.addressable_shards
    }
    names = sorted(parts)
    return _hash(names), _hash(_bit_sums([parts[name] for name in names]))


def _hash(values: object) -> str:
    return hashlib.sha256(repr(values).encode()).hexdigest()[:16]


def _bit_sums(leaves: Sequence[jax.Array]) -> list[int]:
    """Adds up the bits of all values of each array, each times a factor of its place, modulo 2**32: in any order the same."""
    sums = [_weighted_sum(leaf, [_factors(size) for size in leaf.shape]) for leaf in leaves]
    return [int(each) for each in jax.device_get(sums)]


@jax.jit
def _weighted_sum(leaf: jax.Array, factors: Sequence[jax.Array]) -> jax.Array:
    bits = jax.lax.bitcast_convert_type(leaf, jnp.dtype(f"uint{leaf.dtype.itemsize * 8}")).astype(jnp.uint32)
    bits = (bits ^ (bits >> 16)) * np.uint32(
        0x85EBCA6B
    )  # spreads bits upward: the highest would vanish from an even sum
    bits = bits ^ (bits >> 13)
    for axis, each in enumerate(factors):
        bits *= jnp.expand_dims(each, [other for other in range(leaf.ndim) if other != axis])
    return jnp.sum(bits, dtype=jnp.uint32)


@functools.cache
def _factors(size: int) -> np.ndarray:
    """Gives odd numbers as if drawn, uint32 [size]; those of a longer axis begin with those of a shorter one."""
    return np.random.Generator(np.random.PCG64(0)).integers(2**31, size=size, dtype=np.uint32) * np.uint32(
        2
    ) + np.uint32(1)


def model_identity(checkpoint: Checkpoint) -> dict[str, str]:
    """Gives the model's name and a hash over its shape and a few values of every weight, which tells two models apart."""
    cfg = checkpoint.config
    # These models had not when the first of these hashes went into files.
    later = ("" if cfg.rope_scale == 1 else str(cfg.rope_scale)) + (
        str(cfg.no_rope_layers) if cfg.no_rope_layers else ""
    )
    digest = hashlib.sha256(f"{cfg}{later}".encode())
    mesh = mesh_of(checkpoint.params)
    on_all_devices = None if mesh is None else NamedSharding(mesh, PartitionSpec())  # where every process can read it

    # As weights lay when the first of these hashes went into files: gate and up one array, heads with axes of their own.
    shape_of = by_head(checkpoint.config)
    both = {"gate": ("gate_up", (checkpoint.config.width, 2, checkpoint.config.mlp_width))}

    def first_values(params: Params) -> Params:
        return jax.tree.map(lambda leaf: leaf[(0,) * (leaf.ndim - 1)][:16].astype(jnp.float32), params)

    values = jax.jit(first_values, out_shardings=on_all_devices)(checkpoint.params)
    shapes = abstract_params(checkpoint.config, weights=weights_of(checkpoint.params))
    for (path, leaf), shape in zip(jax.tree_util.tree_leaves_with_path(values), jax.tree.leaves(shapes), strict=True):
        if path[-1] == jax.tree_util.DictKey("up"):
            continue
        if not isinstance(path[-1], jax.tree_util.DictKey):  # of a matrix of eight bits
            digest.update(f"{jax.tree_util.keystr(path)} {shape.shape}".encode())
            digest.update(np.asarray(leaf)[: shape.shape[-1]].tobytes())
            continue
        name, then = both.get(path[-1].key, (path[-1].key, shape_of.get(path[-1].key, shape.shape)))
        digest.update(f"{jax.tree_util.keystr((*path[:-1], jax.tree_util.DictKey(name)))} {then}".encode())
        digest.update(np.asarray(leaf)[: then[-1]].tobytes())
    return {"name": Path(checkpoint.name).name, "fingerprint": digest.hexdigest()[:16]}
