"""What a compiled program is made of, as one name: two programs share it only if they are the same."""

import concurrent.futures
import contextlib
import dataclasses
import functools
import hashlib
import os
import platform
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import flax
import jax
import jaxlib
import numpy as np
import optax
import psutil

PACKAGE = Path(__file__).parents[2]
BEGAN = min(time.time(), psutil.Process().create_time())  # a fork has the modules of the process it came from
VERSIONS = {module.__name__: module.__version__ for module in (jax, jaxlib, flax, np, optax)}

# Beginnings of the environment variables that compilers read.
_VARIABLES = ["XLA_", "JAX_", "LIBTPU_", "TPU_", "TF_", "CUDA_", "NVIDIA_", "TRITON_", "MOSAIC_", "PJRT_", "NPROC"]


class Unknown(Exception):
    """Something decides a program that a key cannot tell."""


def key(function: Callable[..., Any], static: Mapping[str, Any], args: Any, how: Mapping[str, Any]) -> str:
    """Gives a name that two programs share only if they are the same.

    Raises:
      Unknown: if something decides it that cannot be told.
    """
    leaves, tree = jax.tree.flatten(args)
    shapes = [(leaf.shape, str(leaf.dtype), bool(getattr(leaf, "weak_type", False))) for leaf in leaves]
    parts = _text(function), _text(static), _tree_text(tree), _text(shapes), _text(how), _around(device_of(args))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def device_of(args: Any) -> jax.Device:
    """Gives the one device that arrays lie on.

    Raises:
      Unknown: if there are several, or none.
    """
    devices = {device for leaf in jax.tree.leaves(args) if isinstance(leaf, jax.Array) for device in leaf.devices()}
    if len(devices) != 1:
        raise Unknown(f"{len(devices)} devices")
    return devices.pop()


def _around(device: jax.Device) -> str:
    """Writes what decides a program besides itself."""
    # A kept program is of one device by its number, and kernels ask for the first. JAX's cache serves all devices of a kind.
    if jax.device_count() > 1:
        raise Unknown(f"{jax.device_count()} devices")
    if not jax.sharding.get_abstract_mesh().empty:
        raise Unknown("a mesh that the caller has set")
    if _flags() != _first_flags():
        raise Unknown("compiler flags that were changed while this process ran")
    variables = {name: text for name, text in sorted(os.environ.items()) if name.startswith(tuple(_VARIABLES))}
    of_device = device.client.platform_version, device.device_kind, _cpu() if device.platform == "cpu" else ""
    return _text((source_digest(PACKAGE, BEGAN), VERSIONS, of_device, settings(), variables))


def _flags() -> list[str | None]:
    return [os.environ.get(name) for name in ("XLA_FLAGS", "LIBTPU_INIT_ARGS")]


@functools.cache
def _first_flags() -> list[str | None]:
    """Gives the compilers' flags as they were at the first key: a device that runs has read them, and reads them no more."""
    return _flags()


def settings() -> dict[str, str]:
    """Gives JAX's settings as they are for this thread, in its `with` blocks.

    Left out are those that say where and when programs are kept.
    """
    return {
        name: repr(getattr(jax.config, name, value))
        for name, value in sorted(jax.config.values.items())
        if "cache" not in name
    }


def has_own_settings() -> bool:
    """Says whether this thread is in a `with` block that changes JAX's settings, which other threads do not see."""
    with concurrent.futures.ThreadPoolExecutor(1) as another:
        return another.submit(settings).result() != settings()


def source_digest(package: Path, began: float) -> str:
    """Gives a digest of all files of a package.

    Raises:
      Unknown: if there are none, or one has changed since a process began that may have read it before.
    """
    files = tuple(sorted(path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts))
    if not files:
        raise Unknown(f"no files in {package}")
    for path in files:
        status = path.stat()
        if max(status.st_mtime, status.st_ctime) > began:
            raise Unknown(f"{path.name} has changed since this process began")
    return _digest(package, files)


@functools.cache
def _digest(package: Path, files: tuple[Path, ...]) -> str:
    digest = hashlib.sha256()
    for path in files:
        content = path.read_bytes()
        digest.update(f"{path.relative_to(package)} {len(content)}\n".encode() + content)
    return digest.hexdigest()


@functools.cache
def _cpu() -> str:
    """Writes what XLA compiles for on a CPU: its kind and features, and how many threads share the work."""
    with contextlib.suppress(OSError):
        lines = Path("/proc/cpuinfo").read_text().split("\n\n")[0].splitlines()
        told = [line for line in lines if line.startswith(("model", "flags", "Features", "CPU "))]
        return _text((told, len(os.sched_getaffinity(0))))
    return _text((platform.processor(), platform.node(), os.cpu_count()))


def _text(value: Any) -> str:
    """Writes a static value, with all that it holds."""
    match value:
        case None | bool() | int() | float() | str() | bytes():
            return f"{type(value).__name__} {value!r}"
        case tuple() | list() if type(value) in (tuple, list):
            return f"[{', '.join(map(_text, value))}]"
        case Mapping():
            return f"{{{', '.join(f'{_text(name)}: {_text(item)}' for name, item in value.items())}}}"
        case np.ndarray() | np.generic():
            return f"{value.dtype.name}{value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
        case np.dtype():
            return f"dtype {value.name}"
    kind = value if isinstance(value, type) or hasattr(value, "__qualname__") else type(value)
    name = f"{kind.__module__}.{kind.__qualname__}"
    # optax's trees of arrays are in the states of merged drafts.
    if name.split(".")[0] not in (PACKAGE.name, "optax") or not _is_named(kind):
        raise Unknown(f"{name} is not of this package")
    if kind is value:
        return name
    if not dataclasses.is_dataclass(value):
        raise Unknown(f"{name} is not made of fields")
    return f"{name}({', '.join(f'{field.name}={_text(getattr(value, field.name))}' for field in dataclasses.fields(value))})"


def _is_named(kind: Any) -> bool:
    """Says whether a class or function is what its name says, and not one that took that name."""
    found: Any = sys.modules.get(kind.__module__)
    for part in kind.__qualname__.split("."):
        found = getattr(found, part, None)
    return found is kind


def _tree_text(tree: Any) -> str:
    """Writes the nodes of a tree of arrays, with what they hold besides arrays."""
    node = tree.node_data()
    if node is None:
        return "leaf"
    kind, told = node
    named = kind.__name__ if kind in (tuple, list, dict, type(None)) else _text(kind)
    return f"{named}<{_text(told)}>({', '.join(map(_tree_text, tree.children()))})"
