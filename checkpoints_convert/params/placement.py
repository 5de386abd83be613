"""Puts parameters on devices: each whole on the default device, or in the parts that a mesh asks for."""

from collections.abc import Callable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh

from checkpoints_convert.mapping.transforms import Part
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.mesh import sharded_params
from jax_probe_mtp.model.params import Params, abstract_params

ReadPart = Callable[[Part | None], np.ndarray]  # reads that part of a leaf; None is all of it


def wanted_params(cfg: ModelConfig, dtype: str, weights: str | None, mesh: Mesh | None) -> Params:
    """Gives shape, dtype and, on a mesh, sharding of every leaf to load."""
    if mesh is None:
        return abstract_params(cfg, jax.numpy.dtype(dtype), weights)
    return sharded_params(cfg, mesh, jax.numpy.dtype(dtype), weights)


def place(read: ReadPart, wanted: jax.ShapeDtypeStruct) -> jax.Array:
    """Reads a leaf onto the devices of this process, one part at a time and each part once.

    Not by `jax.make_array_from_callback`, which reads anew for each copy of a part, and holds all of them until the last.

    Args:
      read: reads a part of the leaf.
      wanted: its shape, padding included, its dtype and its sharding; without one it goes to the default device.

    Returns:
      The leaf.
    """
    if wanted.sharding is None:
        return _put(read(None), [None])[0]
    devices_of: dict[Part, list[jax.Device]] = {}
    for device, index in wanted.sharding.addressable_devices_indices_map(wanted.shape).items():
        part = tuple(range(n)[indices] for n, indices in zip(wanted.shape, index, strict=True))
        devices_of.setdefault(part, []).append(device)
    arrays: list[jax.Array] = []
    for part, devices in devices_of.items():
        arrays += _put(read(part), devices)
    return jax.make_array_from_single_device_arrays(wanted.shape, wanted.sharding, arrays)


def _put(values: np.ndarray, devices: Sequence[jax.Device | None]) -> list[jax.Array]:
    return jax.block_until_ready([jax.device_put(values, device) for device in devices])  # then the host's copy can go
