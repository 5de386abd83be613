"""Compiled programs kept on disk, found by what they are made of: a process that finds one neither traces nor compiles.

JAX's own persistent cache is keyed by the lowered program, so each process traces and lowers before it asks. Here the key is
what decides the program: this package's source, the static arguments, the arguments' shapes, the device, the versions, and
JAX's and XLA's settings. Not kept are programs of draft sources of other modules, of hosts with several devices, and of a
process that began before a source file changed.
"""

import contextlib
import hashlib
import logging
import os
import pickle
import threading
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
from jax.experimental import serialize_executable

from jax_probe_mtp.files.whole_files import write_files
from jax_probe_mtp.generation.programs.key import BEGAN, PACKAGE, device_of, key, source_digest

MOST_BYTES = 4 << 30  # of all kept programs; those that were not used the longest go first

_logger = logging.getLogger("jax_probe_mtp")
_folder: Path | None = None

_LEAST_SECONDS = "jax_persistent_cache_min_compile_time_secs"  # of compilation, so that JAX's cache keeps a program
_lock, _num_compiling, _least_seconds = threading.Lock(), 0, 1.0


def keep_programs(folder: Path | None) -> None:
    """Keeps what is compiled from now on in a folder, and takes from there what an earlier process has compiled.

    Args:
      folder: made if need be, for the user alone: whoever can write there can have code of theirs run here. None ends it.

    Raises:
      OSError: if it cannot be made, or is not the user's own.
    """
    global _folder
    if folder is not None:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        status = folder.stat()
        if hasattr(os, "getuid") and (status.st_uid != os.getuid() or status.st_mode & 0o022):
            raise OSError(f"{folder} can be written by others; chmod 700 it if it is yours, or set XDG_CACHE_HOME")
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
    program = _read(path, device_of(args))
    if program is None:
        # A program that JAX's cache gives on a CPU lacks a function and cannot be kept (jaxlib 0.10.2). So this one gets a name
        # which that cache has never seen.
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


def _read(path: Path, device: jax.Device) -> jax.stages.Compiled | None:
    """Reads a program; None where there is none that is whole."""
    try:
        digest, content = (data := path.read_bytes())[:32], data[32:]
        if _checksum(path, content) != digest:
            raise ValueError("not whole")
        serialized, takes, gives = pickle.loads(content)
        program = serialize_executable.deserialize_and_load(serialized, takes, gives, device.client, [device])
    except FileNotFoundError:
        return None
    except Exception as error:  # of another kind with each version of JAX and each device: then it is compiled again
        _logger.info("%s is compiled again: %s", path, error)
        return None
    with contextlib.suppress(OSError):
        os.utime(path)  # it was used now
    return program


def _write(path: Path, program: jax.stages.Compiled) -> None:
    """Keeps a program, and no more than fit: a folder that cannot be written, or a program that cannot, ends no run."""
    try:
        source_digest(PACKAGE, BEGAN)  # some modules are imported while a program is traced
        if not path.parent.is_dir():
            raise FileNotFoundError("its folder is gone")
        content = pickle.dumps(serialize_executable.serialize(program))
        write_files(path.parent, {path.name: _checksum(path, content) + content})
        files = sorted(path.parent.iterdir(), key=lambda file: file.stat().st_mtime)
        excess = sum(file.stat().st_size for file in files) - MOST_BYTES
        for file in files:
            if excess <= 0:
                break
            excess -= file.stat().st_size
            file.unlink()
    except Exception as error:  # as above; another process may take files away, too
        _logger.info("%s is not kept: %s", path, error)


def _checksum(path: Path, content: bytes) -> bytes:
    return hashlib.sha256(path.name.encode() + content).digest()
