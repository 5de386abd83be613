"""Several devices: a mesh of two axes, and how the model and a batch are split over it.

Weights are split over the axis `TENSOR` (kv heads with their queries, mlp width, vocabulary), batch rows over `DATA`. The
programs of `decoding/loop.py` run under `jax.shard_map`, each device on its part, with the sums that the split needs written
out in `model/transformer.py`: so a device's part of the weights is as fused, and its kernels are the same, as on one device.
"""

import ctypes
import dataclasses
import functools
import itertools
import re
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jax_probe_mtp.kernels import exchange
from jax_probe_mtp.model.config import DATA, TENSOR, ModelConfig
from jax_probe_mtp.model.params import Params, abstract_params, partition_specs


def parse_mesh(text: str) -> tuple[int, int]:
    """Sizes of `data` and `tensor` from a text such as "data=2,tensor=4"; what is left out is 1.

    Raises:
      ValueError: if the text is nothing of that kind.
    """
    sizes: dict[str, int] = {}
    for part in text.split(","):
        match = re.fullmatch(rf"\s*({DATA}|{TENSOR})\s*=\s*([1-9][0-9]{{0,5}})\s*", part)
        if match is None or match[1] in sizes:
            raise ValueError(f"--mesh must be like data=2,tensor=4, got {text!r}.")
        sizes[match[1]] = int(match[2])
    return sizes.get(DATA, 1), sizes.get(TENSOR, 1)


def make_mesh(data: int, tensor: int, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes a mesh of the first `data * tensor` devices (all of JAX's when left out), those that share weights side by side.

    Raises:
      ValueError: if there are not as many devices.
    """
    devices = jax.devices() if devices is None else devices
    if data * tensor > len(devices):
        raise ValueError(
            f"mesh data={data},tensor={tensor} needs {data * tensor} devices, but there are {len(devices)}; use a smaller one."
        )
    return Mesh(np.asarray(devices[: data * tensor]).reshape(data, tensor), (DATA, TENSOR))


def check_mesh(cfg: ModelConfig, batch_size: int, data: int, tensor: int) -> None:
    """Finds out whether a model and a batch can be split so.

    Raises:
      ValueError: one line that names the sizes that fit.
    """
    K, F = cfg.num_kv_heads, cfg.mlp_width
    if K % tensor or F % tensor:
        fits = [str(size) for size in range(1, K + 1) if K % size == 0 and F % size == 0]
        raise ValueError(
            f"tensor={tensor} must divide the model's {K} kv heads and mlp width {F}; tensor may be {', '.join(fits)}."
        )
    if batch_size % data:
        raise ValueError(f"batch size {batch_size} cannot be split over data={data}; use a multiple of {data}.")


def local_config(cfg: ModelConfig, mesh: Mesh) -> ModelConfig:
    """Gives the model as one device of the mesh computes it."""
    tensor = mesh.shape[TENSOR]
    return dataclasses.replace(
        cfg,
        num_heads=cfg.num_heads // tensor,
        num_kv_heads=cfg.num_kv_heads // tensor,
        mlp_width=cfg.mlp_width // tensor,
        is_sharded=True,
        has_mailboxes=can_exchange(mesh),
    )


def can_exchange(mesh: Mesh) -> bool:
    """Says whether the devices of a mesh may sum by `kernels/exchange.py`: GPUs of one process that reach each other's memory.

    They must be all of JAX's devices, in order: only JAX's first ones can write to each other (Mosaic GPU, jaxlib 0.11.2),
    and of several groups, as with `data=2`, one would round otherwise than the next.
    """
    devices = list(mesh.devices.flat)
    return (
        exchange.can_lower()
        and mesh.shape[DATA] == 1
        and len(devices) == jax.device_count() > 1
        and jax.process_count() == 1
        and [device.id for device in devices] == list(range(len(devices)))
        and all(exchange.runs_on(device) for device in devices)
        and _reach_each_other([device.local_hardware_id for device in devices])
    )


def _reach_each_other(ordinals: Sequence[int]) -> bool:
    """Asks CUDA whether kernels on each of these devices may write to the memory of each other one."""
    try:
        cuda = ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    can = ctypes.c_int(0)
    return all(
        cuda.cuDeviceCanAccessPeer(ctypes.byref(can), one, other) == 0 and can.value == 1
        for one, other in itertools.permutations(ordinals, 2)
    )


def sharded_params(cfg: ModelConfig, mesh: Mesh, dtype: jnp.dtype = jnp.float32, weights: str | None = None) -> Params:
    """Gives shape, dtype and sharding of every parameter on the mesh: `abstract_params`, the vocabulary padded to equal parts.

    Rows behind the vocabulary are zeros, their scales too; nothing reads them.
    """
    tensor = mesh.shape[TENSOR]

    def leaf(path: tuple[Any, ...], array: jax.ShapeDtypeStruct, spec: PartitionSpec) -> jax.ShapeDtypeStruct:
        shape = array.shape
        if path[0].key in ("embed", "head"):
            shape = (-(-cfg.vocab_size // tensor) * tensor, *shape[1:])
        return jax.ShapeDtypeStruct(shape, array.dtype, sharding=NamedSharding(mesh, spec))

    return jax.tree_util.tree_map_with_path(leaf, abstract_params(cfg, dtype, weights), partition_specs(cfg, weights))


def random_sharded_params(
    cfg: ModelConfig, key: jax.Array, mesh: Mesh, dtype: jnp.dtype = jnp.float32, weights: str | None = None
) -> Params:
    """Draws random parameters for timing, each device its parts: models that no single device holds.

    They are of the sizes of `params.random_params`, but not its numbers.
    """
    wanted, tree = jax.tree.flatten_with_path(sharded_params(cfg, mesh, dtype, weights))
    draws: dict[Any, Any] = {}

    def draw(key: jax.Array, path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> jax.Array:
        name = next(part.key for part in reversed(path) if hasattr(part, "key"))
        if leaf.dtype == jnp.int8:
            return jax.random.randint(key, leaf.shape, -127, 128, jnp.int8)
        noise = jax.random.normal(key, leaf.shape, leaf.dtype)
        if name.endswith("norm"):
            return 1 + 0.1 * noise
        if len(leaf.shape) == 1:  # a bias, or the scales of eight-bit columns
            return 0.1 * noise if name.endswith("bias") else jnp.full(leaf.shape, cfg.width**-0.5 / 73, leaf.dtype)
        return noise * leaf.shape[1 if name in ("embed", "head") else 0] ** -0.5

    arrays = []
    for (path, leaf), own_key in zip(wanted, jax.random.split(key, len(wanted)), strict=True):
        names = tuple(str(part) for part in path if not isinstance(part, jax.tree_util.SequenceKey))  # not the layer's
        what = names, leaf.shape, leaf.dtype, leaf.sharding
        if what not in draws:
            draws[what] = jax.jit(functools.partial(draw, path=path, leaf=leaf), out_shardings=leaf.sharding)
        arrays.append(draws[what](own_key))
    params: Params = jax.tree.unflatten(tree, arrays)
    return params


def mesh_of(params: Params) -> Mesh | None:
    """Finds the mesh that parameters of `sharded_params` lie on; None where they lie on one device."""
    sharding = getattr(params["embed"], "sharding", None)
    if isinstance(sharding, NamedSharding) and sharding.mesh.axis_names == (DATA, TENSOR):
        assert isinstance(sharding.mesh, Mesh)
        return sharding.mesh
    return None
