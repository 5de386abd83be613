"""Tells two models apart: a model's name, and a hash that is cheap however many weights there are."""

import hashlib
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec

from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.mesh import mesh_of
from jax_probe_mtp.model.params import Params, abstract_params


def model_identity(checkpoint: Checkpoint) -> dict[str, str]:
    """Gives the model's name and a hash over its shape and a few values of every weight, which tells two models apart."""
    digest = hashlib.sha256(repr(checkpoint.config).encode())
    mesh = mesh_of(checkpoint.params)
    on_all_devices = None if mesh is None else NamedSharding(mesh, PartitionSpec())  # where every process can read it

    def first_values(params: Params) -> Params:
        return jax.tree.map(lambda leaf: leaf[(0,) * (leaf.ndim - 1)][:16].astype(jnp.float32), params)

    values = jax.jit(first_values, out_shardings=on_all_devices)(checkpoint.params)
    shapes = abstract_params(checkpoint.config)
    for (path, leaf), shape in zip(jax.tree_util.tree_leaves_with_path(values), jax.tree.leaves(shapes), strict=True):
        digest.update(f"{jax.tree_util.keystr(path)} {shape.shape}".encode())
        digest.update(np.asarray(leaf).tobytes())
    return {"name": Path(checkpoint.name).name, "fingerprint": digest.hexdigest()[:16]}
