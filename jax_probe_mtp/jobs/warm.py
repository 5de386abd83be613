"""What the rows of a job share and learn, kept beside its answers, so that a job that goes on is as warm as it was."""

import hashlib
import json
import logging
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
import safetensors
import safetensors.numpy

from jax_probe_mtp.files.whole_files import write_files

FORMAT = 1
SECONDS_BETWEEN = 60.0  # as much may be learned again after a job was killed
_logger = logging.getLogger("jax_probe_mtp")


class WarmState:
    """The file `OUTPUT.warm`. It decides how fast a job is, never what it answers."""

    def __init__(self, output: Path, run: Mapping[str, Any]) -> None:
        """Reads and writes nothing yet.

        Args:
          output: the file of answers, of this process.
          run: what decides the answers.
        """
        self.path = output.with_name(output.name + ".warm")
        digest = hashlib.sha256(json.dumps(run, sort_keys=True, default=str).encode()).hexdigest()
        self._says = {"format": str(FORMAT), "run": digest}
        self._saved = time.monotonic()

    def load(self, begun: Any) -> Any:
        """Gives what an earlier start of the same run has learned; else `begun`, and one line says why.

        Args:
          begun: what the rows begin to share: arrays of the same shapes, of which another process's parts stay.
        """
        if not self.path.exists():
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
            groups = json.loads(said.get("groups", "[]"))
            leaves = [file.get_tensor(name) for name in sorted(file.keys())]
        expected, tree = jax.tree.flatten(begun)
        merged = []
        if len(leaves) != len(expected):
            raise ValueError(f"it holds {len(leaves)} arrays, not {len(expected)}")
        for got, own in zip(leaves, expected, strict=True):
            whole = np.array(own)
            if got.shape != (len(groups), *whole.shape[1:]) or got.dtype != whole.dtype:
                raise ValueError(f"it holds {got.dtype}{list(got.shape)} in place of {whole.dtype}{list(whole.shape)}")
            if not all(type(group) is int and 0 <= group < len(whole) for group in groups):
                raise ValueError(f"it is of the groups {groups} of other devices")
            whole[groups] = got
            merged.append(whole)
        return jax.tree.unflatten(tree, merged)

    def save_sometimes(self, shared: Any) -> None:
        """Writes the file where the last time is a while ago."""
        if time.monotonic() - self._saved > SECONDS_BETWEEN:
            self.save(shared)

    def save(self, shared: Any) -> None:
        """Replaces the file by what is shared now, of the groups of this process's devices; one line where it cannot."""
        groups, arrays = _own_groups(shared)
        names = {f"{i:03}": array for i, array in enumerate(arrays)}
        text = safetensors.numpy.save(names, metadata=self._says | {"groups": json.dumps(groups)})
        try:
            write_files(self.path.parent, {self.path.name: text})
        except OSError as error:
            _logger.warning("%s", error)
        self._saved = time.monotonic()


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
