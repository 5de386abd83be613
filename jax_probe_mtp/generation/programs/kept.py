"""Compiled programs kept on disk, found by what they are made of: a process that finds one neither traces nor compiles.

JAX's own persistent cache is keyed by the lowered program, so each process traces and lowers before it asks. Here the key is
what decides the program: this package's source, the static arguments, the arguments' shapes, the device, the versions, and
JAX's and XLA's settings. What the key cannot tell is not kept: draft sources of other modules, several devices, and a process
that runs an older source than the files hold.
"""

import contextlib
import dataclasses
import functools
import hashlib
import logging
import os
import pickle
import platform
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import flax
import jax
import jaxlib
import numpy as np
import optax
import psutil
from jax.experimental import serialize_executable

from jax_probe_mtp.files.whole_files import write_files

PACKAGE = Path(__file__).parents[2]
OTHERS = {"optax": optax.__version__}  # whose trees of arrays our states hold
MOST_BYTES = 4 << 30  # of all kept programs; those that were not used the longest go first

_BEGAN = min(time.time(), psutil.Process().create_time())  # a fork has the modules of the process it came from
_SETTINGS_ELSEWHERE = (
    "XLA_",
    "JAX_",
    "LIBTPU_",
    "TF_",
    "CUDA_",
    "NVIDIA_",
)  # environment variables that compilers read
_logger = logging.getLogger("jax_probe_mtp")
_folder: Path | None = None

_LEAST_SECONDS = "jax_persistent_cache_min_compile_time_secs"  # of compilation, so that JAX's cache keeps a program
_lock, _num_compiling, _least_seconds = threading.Lock(), 0, 1.0


class Unknown(Exception):
    """Something decides a program that a key cannot tell."""


def keep_programs(folder: Path | None) -> None:
    """Keeps what is compiled from now on in a folder, and takes from there what an earlier process has compiled.

    Args:
      folder: made if need be. Whoever can write there can have code of theirs run here: it should be the user's own. None
        ends it.

    Raises:
      OSError: if it cannot be made.
    """
    global _folder
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _folder = folder


def kept_or_compiled(
    make: Callable[[str], jax.stages.Compiled],
    function: Callable[..., Any],
    static: Mapping[str, Any],
    *args: Any,
    **how: Any,
) -> jax.stages.Compiled:
    """Gives the program of `function`, from the folder of `keep_programs` where it is there.

    Args:
      make: compiles it under a name.
      function: what it computes.
      static: its static arguments.
      args: its arrays, or their shapes.
      how: what else decides how it is compiled.
    """
    name = function.__name__
    if _folder is None:
        return make(name)
    try:
        named = key(function, static, args, how)
    except Exception as error:  # `Unknown`, or a JAX whose settings or trees are not what they were
        _logger.debug("%s is not kept: %s", name, error)
        return make(name)
    path = _folder / f"{named}.program"
    program = _read(path, _device(args))
    if program is None:
        # A name of its own, so that JAX's cache does not have it: what that gives on a CPU cannot be kept again, a function of
        # the program is missing (jaxlib 0.10.2).
        with _only_here():
            program = make(f"{name}_{named[:12]}")
        _write(path, program)
    return program


@contextlib.contextmanager
def _only_here() -> Iterator[None]:
    """Has JAX's own cache keep nothing; what another thread compiles meanwhile is not kept either."""
    global _num_compiling, _least_seconds
    with _lock:
        if not _num_compiling:
            _least_seconds = getattr(jax.config, _LEAST_SECONDS)
            jax.config.update(_LEAST_SECONDS, float("inf"))
        _num_compiling += 1
    try:
        yield
    finally:
        with _lock:
            _num_compiling -= 1
            if not _num_compiling:
                jax.config.update(_LEAST_SECONDS, _least_seconds)


def key(function: Callable[..., Any], static: Mapping[str, Any], args: Any, how: Mapping[str, Any]) -> str:
    """Gives a name that two programs share only if they are the same.

    Raises:
      Unknown: if something decides it that cannot be told.
    """
    leaves, tree = jax.tree.flatten(args)
    shapes = [(leaf.shape, str(leaf.dtype), bool(getattr(leaf, "weak_type", False))) for leaf in leaves]
    parts = _text(function), _text(static), _tree_text(tree), _text(shapes), _text(how), _around(_device(args))
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()


def _device(args: Any) -> jax.Device:
    devices = {device for leaf in jax.tree.leaves(args) if isinstance(leaf, jax.Array) for device in leaf.devices()}
    if len(devices) != 1:
        raise Unknown(f"{len(devices)} devices")
    return devices.pop()


def _around(device: jax.Device) -> str:
    """Writes what decides a program besides itself."""
    versions = (
        jax.__version__,
        jaxlib.__version__,
        flax.__version__,
        np.__version__,
        device.client.platform_version,
        OTHERS,
    )
    # As an attribute, a setting is what `with` blocks of this thread make of it.
    settings = {
        name: repr(getattr(jax.config, name, value))
        for name, value in sorted(jax.config.values.items())
        if "cache" not in name  # where programs are kept, and when, decides none
    }
    elsewhere = {name: text for name, text in sorted(os.environ.items()) if name.startswith(_SETTINGS_ELSEWHERE)}
    of_cpu = _cpu() if device.platform == "cpu" else ""
    return _text((source_digest(PACKAGE, _BEGAN), versions, device.device_kind, device.id, of_cpu, settings, elsewhere))


@functools.cache
def source_digest(package: Path, began: float) -> str:
    """Gives a digest of all files of a package.

    Raises:
      Unknown: if one has changed since a process began that may have read it before.
    """
    digest = hashlib.sha256()
    for path in sorted(path for path in package.rglob("*") if path.is_file() and "__pycache__" not in path.parts):
        status = path.stat()
        if max(status.st_mtime, status.st_ctime) > began:
            raise Unknown(f"{path.name} has changed since this process began")
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
    if name.split(".")[0] not in {PACKAGE.name, *OTHERS} or "<" in name:
        raise Unknown(f"{name} is not of this package")
    if kind is value:
        return name
    if not dataclasses.is_dataclass(value):
        raise Unknown(f"{name} is not made of fields")
    return f"{name}({', '.join(f'{field.name}={_text(getattr(value, field.name))}' for field in dataclasses.fields(value))})"


def _tree_text(tree: Any) -> str:
    """Writes the nodes of a tree of arrays, with what they hold besides arrays."""
    node = tree.node_data()
    if node is None:
        return "leaf"
    kind, told = node
    named = kind.__name__ if kind in (tuple, list, dict, type(None)) else _text(kind)
    return f"{named}<{_text(told)}>({', '.join(map(_tree_text, tree.children()))})"


def _read(path: Path, device: jax.Device) -> jax.stages.Compiled | None:
    """Reads a program; None where there is none that is whole."""
    try:
        digest, content = (data := path.read_bytes())[:32], data[32:]
        if hashlib.sha256(content).digest() != digest:
            raise ValueError("not whole")
        serialized, takes, gives = pickle.loads(content)
        program = serialize_executable.deserialize_and_load(serialized, takes, gives, device.client, [device])
        os.utime(path)  # it was used now
    except FileNotFoundError:
        return None
    except Exception as error:  # of another kind with each version of JAX and each device: then it is compiled again
        _logger.info("%s is compiled again: %s", path, error)
        return None
    return program


def _write(path: Path, program: jax.stages.Compiled) -> None:
    """Keeps a program, and no more than fit: a folder that cannot be written, or a program that cannot, ends no run."""
    try:
        content = pickle.dumps(serialize_executable.serialize(program))
        write_files(path.parent, {path.name: hashlib.sha256(content).digest() + content})
        files = sorted(path.parent.glob("*.program"), key=lambda file: file.stat().st_mtime)
        excess = sum(file.stat().st_size for file in files) - MOST_BYTES
        for file in files:
            if excess <= 0:
                break
            excess -= file.stat().st_size
            file.unlink()
    except Exception as error:  # as above; another process may take files away, too
        _logger.info("%s is not kept: %s", path, error)
