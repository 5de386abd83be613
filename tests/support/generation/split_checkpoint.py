"""Checkpoints on meshes of devices."""

import dataclasses

import jax
import numpy as np

from jax_probe_mtp.model.mesh import make_mesh, sharded_params
from jax_probe_mtp.model.params import weights_of


def split(checkpoint, data, tensor):
    """Lays a checkpoint out on a mesh, its vocabulary padded with zeros."""

    def leaf(wanted, array):
        padding = [(0, after - before) for before, after in zip(array.shape, wanted.shape, strict=True)]
        return jax.device_put(np.pad(np.asarray(array), padding), wanted.sharding)

    wanted = sharded_params(checkpoint.config, make_mesh(data, tensor), weights=weights_of(checkpoint.params))
    return dataclasses.replace(checkpoint, params=jax.tree.map(leaf, wanted, checkpoint.params))
