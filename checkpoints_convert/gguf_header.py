"""The header of a GGUF file, read strictly within the file's bounds.

The gguf package's own reader trusts every length (an array said to hold 2^40 numbers keeps it busy for hours) and makes
several objects a token; this walk takes each length from the file only after checking that so much is left.

Source: docs/gguf.md of ggml-org/ggml.
"""

import dataclasses
import math
import mmap
import struct
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType

from checkpoints_convert.errors import CheckpointError

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_AXES = 4


@dataclasses.dataclass(frozen=True)
class GGUFTensor:
    """Where a tensor lies: its name, type, shape (slowest axis first), first byte and size in bytes."""

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


class _Cursor:
    """A position in a file's bytes that never passes their end."""

    def __init__(self, data: Any, where: str) -> None:
        self.data, self.where, self.at = data, where, 0

    def take(self, size: int, what: str) -> bytes:
        if size > len(self.data) - self.at:
            raise CheckpointError(
                f"{self.where}: {what} at byte {self.at} needs {size} bytes, but {len(self.data) - self.at} are left; "
                "the file is damaged or cut short, fetch it again."
            )
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, code: str, what: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]

    def text(self, what: str) -> str:
        raw = self.take(self.number("Q", what), what)
        try:
            return raw.decode("utf-8")
        except UnicodeDecodeError:
            raise CheckpointError(f"{self.where}: {what} at byte {self.at - len(raw)} is not UTF-8 text.") from None

    def value(self, kind: int, what: str) -> Any:
        if kind == _STRING:
            return self.text(what)
        if kind == _ARRAY:
            return self.array(what)
        if kind not in _SCALARS:
            raise CheckpointError(f"{self.where}: {what} has the unknown type {kind}; the file is damaged.")
        return self.number(_SCALARS[kind], what)

    def array(self, what: str) -> list[Any]:
        kind, count = self.number("I", what), self.number("Q", what)
        if kind == _STRING:
            if count > (len(self.data) - self.at) // 8:  # each needs 8 bytes for its length alone
                raise CheckpointError(f"{self.where}: {what} claims {count} texts, more than the file can hold.")
            return [self.text(what) for _ in range(count)]
        if kind not in _SCALARS:
            raise CheckpointError(f"{self.where}: {what} is an array of type {kind}, which is not supported.")
        dtype = np.dtype("<" + _SCALARS[kind])
        return np.frombuffer(self.take(count * dtype.itemsize, what), dtype).tolist()


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, GGUFTensor]]:
    """The fields and the tensor list of a GGUF file.

    Args:
      path: the file.

    Returns:
      The fields by key (numbers, texts, lists) and the tensors by name.

    Raises:
      CheckpointError: if the file is not GGUF version 2 or 3, or any count, length or offset does not fit in it.
    """
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for its writer
            raise CheckpointError(f"{path} is not a file; give a .gguf file.")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            return _walk(_Cursor(data, str(path)))
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist.") from None
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} cannot be read as GGUF ({error}).") from None


def _walk(cursor: _Cursor) -> tuple[dict[str, Any], dict[str, GGUFTensor]]:
    if cursor.take(4, "magic") != b"GGUF":
        raise CheckpointError(f"{cursor.where} is not a GGUF file: it does not begin with 'GGUF'.")
    version = cursor.number("I", "version")
    if version not in (2, 3):
        raise CheckpointError(f"{cursor.where} is GGUF version {version}; little-endian 2 and 3 are supported.")
    num_tensors, num_fields = cursor.number("Q", "tensor count"), cursor.number("Q", "field count")
    fields: dict[str, Any] = {}
    for i in range(num_fields):
        key = cursor.text(f"key of field {i}")
        if key in fields:
            raise CheckpointError(f"{cursor.where} gives the field {key!r} twice.")
        fields[key] = cursor.value(cursor.number("I", key), key)
    alignment = fields.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise CheckpointError(f"{cursor.where}: general.alignment must be a power of two, got {alignment!r}.")
    listed = [_tensor(cursor, i) for i in range(num_tensors)]
    start = -(-cursor.at // alignment) * alignment
    tensors: dict[str, GGUFTensor] = {}
    end = start
    for tensor in sorted(listed, key=lambda tensor: tensor.offset):
        placed = dataclasses.replace(tensor, offset=start + tensor.offset)
        if tensor.name in tensors:
            raise CheckpointError(f"{cursor.where}: tensor {tensor.name!r} is listed twice.")
        if placed.offset < end:
            raise CheckpointError(f"{cursor.where}: tensor {tensor.name!r} overlaps another at byte {placed.offset}.")
        end = placed.offset + placed.num_bytes
        if end > len(cursor.data):
            raise CheckpointError(
                f"{cursor.where}: tensor {tensor.name!r} ends at byte {end}, but the file has {len(cursor.data)}; "
                "it is cut short, fetch it again."
            )
        tensors[tensor.name] = placed
    return fields, tensors


def _tensor(cursor: _Cursor, index: int) -> GGUFTensor:
    name = cursor.text(f"name of tensor {index}")
    num_axes = cursor.number("I", name)
    if not 1 <= num_axes <= _MAX_AXES:
        raise CheckpointError(f"{cursor.where}: tensor {name!r} has {num_axes} axes; 1 to {_MAX_AXES} are possible.")
    shape = tuple(reversed([cursor.number("Q", name) for _ in range(num_axes)]))  # the file has the fastest axis first
    number, offset = cursor.number("I", name), cursor.number("Q", name)
    try:
        kind = GGMLQuantizationType(number)
        block, block_bytes = GGML_QUANT_SIZES[kind]
    except (ValueError, KeyError):
        raise CheckpointError(f"{cursor.where}: tensor {name!r} has the unknown type {number}.") from None
    if 0 in shape or shape[-1] % block:
        raise CheckpointError(
            f"{cursor.where}: tensor {name!r} of shape {list(shape)} does not fill {kind.name} blocks of {block}."
        )
    return GGUFTensor(name, kind, shape, offset, math.prod(shape) // block * block_bytes)
