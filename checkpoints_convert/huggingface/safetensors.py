"""Reads tensors of a Hugging Face folder: one safetensors file, or shards named by an index."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import safetensors

from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.mapping.fields import MAX_BYTES, read_json
from checkpoints_convert.mapping.tensor_source import TensorInfo
from jax_probe_mtp.errors import one_line

SINGLE, INDEX = "model.safetensors", "model.safetensors.index.json"
READABLE = ("F32", "F16", "BF16")
BUFFERS = r"(layers\.\d+\.self_attn\.)?rotary_emb\.inv_freq"  # saved by old versions, computed from the config
MAX_MAPPED = 8 << 20  # bytes read from a file before it is opened anew


class SafetensorsSource:
    """The tensors of a folder (a `TensorSource`).

    Raises:
      CheckpointError: if the folder has no safetensors, a file is damaged, or the index and the shards disagree.
    """

    readable: tuple[str, ...] = READABLE

    def __init__(self, folder: Path) -> None:
        self._tensors: dict[str, TensorInfo] = {}
        self._paths: dict[str, Path] = {}
        self._opened: tuple[Path, Any] | None = None
        self._mapped = 0
        if (folder / SINGLE).is_file():
            self.files = [folder / SINGLE]
            self._add(folder / SINGLE)
        elif (folder / INDEX).is_file():
            self._add_shards(folder)
        elif list(folder.glob("*.bin")) or list(folder.glob("*.pth")):
            raise CheckpointError(
                f"{folder} holds pickled weights, which can run code and are never read; save them as safetensors."
            )
        else:
            raise CheckpointError(f"{folder} has neither {SINGLE} nor {INDEX}; point at a folder with safetensors.")

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._tensors

    def read(self, name: str, start: int, stop: int, columns: range | None = None) -> np.ndarray:
        path = self._paths[name]
        block = (slice(start, stop),) if columns is None else (slice(start, stop), slice(columns.start, columns.stop))
        try:
            values = self._file(path).get_slice(name)[block]
        except (safetensors.SafetensorError, OSError) as error:
            raise CheckpointError(f"{path}: tensor {name!r} cannot be read ({one_line(error)}).") from None
        self._mapped += values.nbytes
        return values

    def _file(self, path: Path) -> Any:
        """Gives the open file.

        Opening reads the whole header, which takes too long to do for each of many small tensors; but the library maps
        the file, and pages stay counted as ours until it is closed.
        """
        if self._opened is None or self._opened[0] != path or self._mapped > MAX_MAPPED:
            self._opened = None  # closes it
            self._opened, self._mapped = (path, safetensors.safe_open(path, "np")), 0
        return self._opened[1]

    def _add(self, path: Path, known: Collection[str] | None = None) -> None:
        """Takes in a file's tensors, which an index, where there is one, must know."""
        try:
            _check_header_size(path)
            with safetensors.safe_open(path, "np") as file:
                for name in file.keys():  # noqa: SIM118 - not a dict
                    if known is not None and name not in known and not _is_buffer(name):
                        raise CheckpointError(f"{path}: tensor {name!r} is not in {path.parent / INDEX}; fetch both.")
                    tensor = file.get_slice(name)
                    if name in self._tensors:
                        raise CheckpointError(f"tensor {name!r} is in both {self._paths[name]} and {path}; keep one.")
                    shape = tuple(tensor.get_shape())
                    self._tensors[name] = TensorInfo(shape=shape, dtype=tensor.get_dtype(), file=str(path))
                    self._paths[name] = path
        except FileNotFoundError:
            raise CheckpointError(f"{path} is missing; fetch the model again.") from None
        except (safetensors.SafetensorError, OSError, ValueError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{path} is damaged or cut short ({one_line(error)}); fetch it again.") from None

    def _add_shards(self, folder: Path) -> None:
        index = folder / INDEX
        weight_map = read_json(index).get("weight_map")
        if not isinstance(weight_map, dict) or not weight_map:
            raise CheckpointError(f"{index} has no 'weight_map' from tensor names to files; fetch it again.")
        for name, shard in weight_map.items():
            if not isinstance(shard, str):
                raise CheckpointError(f"{index}: tensor {name!r} must name a file, got {shard!r}.")
        shards = sorted(set(weight_map.values()))
        self.files = [_inside(folder, shard, index) for shard in shards]
        for path in self.files:
            self._add(path, weight_map)
        for name, shard in weight_map.items():
            if _is_buffer(name):
                continue
            if name not in self._tensors:
                raise CheckpointError(f"{index} puts tensor {name!r} in {shard}, which does not hold it; fetch both.")
            if self._paths[name] != folder / shard:
                raise CheckpointError(f"{index} puts tensor {name!r} in {shard}, but it is in {self._paths[name]}.")


def _is_buffer(name: str) -> bool:
    return re.search(BUFFERS + r"\Z", name) is not None


def _check_header_size(path: Path) -> None:
    """Refuses a large header before the library reads it: its values in memory take many times their text."""
    with path.open("rb") as file:
        size = int.from_bytes(file.read(8), "little")
    if MAX_BYTES < size <= path.stat().st_size - 8:  # a larger size is damage, which the library names
        raise CheckpointError(f"{path} has a header of {size} bytes; more than {MAX_BYTES} is not supported.")


def _inside(folder: Path, shard: str, index: Path) -> Path:
    """Gives the path of a shard, which must lie in its folder: an index is input, and could name any file here."""
    name = PurePosixPath(shard)
    if name.is_absolute() or ".." in name.parts or "\\" in shard or "\0" in shard or shard in ("", "."):
        raise CheckpointError(f"{index} names {shard!r}, which is outside its folder; keep shards beside the index.")
    if name.suffix != ".safetensors":
        raise CheckpointError(f"{index} names {shard!r}; only .safetensors files are read.")
    try:
        return _real_file(folder, shard, index)
    except (OSError, ValueError) as error:  # a name that no file can have: too long, not Unicode
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{index} names {shard!r}, which cannot be a file ({one_line(error)}).") from None


def _real_file(folder: Path, shard: str, index: Path) -> Path:
    path = folder / shard
    roots = [folder.resolve()]
    if folder.parent.name == "snapshots":  # a Hugging Face cache: its snapshots are links into its blobs
        roots.append((folder.parent.parent / "blobs").resolve())
    real = path.resolve()
    if not any(real.is_relative_to(root) for root in roots):
        raise CheckpointError(f"{index} names {shard!r}, a link to {real}, outside its folder; copy the file instead.")
    if not real.is_file():
        raise CheckpointError(f"{index} names {shard!r}, but {path} is missing; fetch the model again.")
    return path
