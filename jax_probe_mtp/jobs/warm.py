"""What the rows of a job share and learn, kept beside its answers, so that a job that goes on is as warm as it was."""

import contextlib
import hashlib
import json
import logging
import os
import time
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from jax_probe_mtp.drafting.source import DraftSource
from jax_probe_mtp.model.mesh import mesh_of
from jax_probe_mtp.model.params import Params

FORMAT = 1
SECONDS_BETWEEN = 60.0  # as much may be learned again after a job was killed
_logger = logging.getLogger("jax_probe_mtp")


def warm_path(output: Path) -> Path:
    """Names the file that belongs to a file of answers."""
    return output.with_name(output.name + ".warm")


class WarmState:
    """The file `OUTPUT.warm`. It decides how fast a job is, never what it answers."""

    def __init__(self, output: Path, run: Mapping[str, Any], source: DraftSource, params: Params) -> None:
        """Reads and writes nothing yet.

        Args:
          output: the file of answers, of this process.
          run: what decides the answers.
          source: what learns.
          params: the model's, which lie where the run's arrays will.
        """
        self.path = warm_path(output)
        digest = hashlib.sha256(json.dumps(run, sort_keys=True, default=str).encode()).hexdigest()
        self._says = {"format": f"{FORMAT}.{source.shared_format}", "run": digest}
        mesh = mesh_of(params)
        # Two processes that share a group would each read a copy of its part, and the copies must never differ.
        groups: list[Any] = [] if mesh is None else list(mesh.devices)
        self._is_kept = source.learns_shared and all(
            len({device.process_index for device in group.flat}) == 1 for group in groups
        )
        self._saved = time.monotonic()

    def load(self, begun: Any) -> Any:
        """Gives what an earlier start of the same run has learned; else `begun`, and one line says why.

        Args:
          begun: what the rows begin to share. A group of devices that the file has no part of begins with its own.
        """
        if not self._is_kept or not self.path.exists():
            return begun
        try:
            return self._read(begun)
        except (ValueError, OSError, safetensors.SafetensorError) as error:
            why = str(error).splitlines()[0] if str(error) else type(error).__name__
            _logger.warning("%s is left out, drafts begin with nothing learned: %s", self.path, why)
            return begun

    def _read(self, begun: Any) -> Any:
        with safetensors.safe_open(self.path, framework="numpy") as file:
            said = file.metadata() or {}
            if {name: said.get(name) for name in self._says} != self._says:
                raise ValueError("it is of another run or version")
            parts = [file.get_tensor(name) for name in sorted(file.keys())]
        if said.get("digest") != _digest(parts):
            raise ValueError("it is damaged")
        expected, tree = jax.tree.flatten(begun)
        if len(parts) != len(expected):
            raise ValueError(f"it holds {len(parts)} arrays, not {len(expected)}")
        groups = json.loads(said.get("groups", "[]"))
        if not isinstance(groups, list) or not all(type(group) is int and group >= 0 for group in groups):
            raise ValueError(f"it is of the groups {groups!r:.40}, which are none")
        here = [i for i, group in enumerate(groups) if group < len(expected[0])]
        if not here:
            raise ValueError(f"it is of the groups {groups} of other devices")
        for part, own in zip(parts, expected, strict=True):
            if part.shape != (len(groups), *own.shape[1:]) or part.dtype != own.dtype:
                raise ValueError(f"it holds {part.dtype}{list(part.shape)} in place of {own.dtype}{list(own.shape)}")
        merged = [np.array(own) for own in expected]
        for whole, part in zip(merged, parts, strict=True):
            whole[[groups[i] for i in here]] = part[here]
        return jax.tree.unflatten(tree, merged)

    def save_sometimes(self, shared: Callable[[], Any]) -> None:
        """Writes the file where the last time is a while ago."""
        if self._is_kept and time.monotonic() - self._saved > SECONDS_BETWEEN:
            self.save(shared())

    def save(self, shared: Any) -> None:
        """Replaces the file by what is shared now, of the groups of this process's devices; one line where it cannot."""
        if not self._is_kept:
            return
        groups, parts = _own_groups(shared)
        says = self._says | {"groups": json.dumps(groups), "digest": _digest(parts)}
        data = safetensors.numpy.save({f"{i:03}": part for i, part in enumerate(parts)}, metadata=says)
        partial = self.path.with_name(self.path.name + ".partial")  # one name: a killed run leaves one file at most
        try:
            partial.write_bytes(data)
            os.replace(partial, self.path)
        except OSError as error:
            _logger.warning(
                "%s cannot be written (%s): a run that goes on will be less warm", self.path, error.strerror
            )
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
        self._saved = time.monotonic()


def _digest(arrays: Iterable[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).data)
    return digest.hexdigest()


def _own_groups(shared: Any) -> tuple[list[int], list[np.ndarray]]:
    """Gives which groups' parts lie on this process's devices, and of each array those parts."""
    groups: list[int] = []
    arrays = []
    for leaf in jax.tree.leaves(shared):
        if getattr(leaf, "is_fully_addressable", True):
            groups, array = list(range(len(leaf))), np.asarray(leaf)
        else:
            parts = {shard.index[0].start or 0: np.asarray(shard.data) for shard in leaf.addressable_shards}
            groups, array = sorted(parts), np.concatenate([parts[group] for group in sorted(parts)])
        arrays.append(array)
    return groups, arrays
