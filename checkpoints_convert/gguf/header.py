"""Reads the header of a GGUF file strictly within the file's bounds.

The gguf package's own reader trusts every length (an array said to hold 2^40 numbers keeps it busy for hours) and makes
several objects a token; this walk takes each length from the file only after checking that so much is left.

Source: docs/gguf.md of ggml-org/ggml.
"""

import contextlib
import dataclasses
import math
import mmap
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from gguf.constants import GGML_QUANT_SIZES, GGUF_DEFAULT_ALIGNMENT, GGMLQuantizationType

from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.mapping.fields import Fields

_SCALARS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}
_STRING, _ARRAY = 8, 9
_MAX_AXES = 4

# Python's objects take many times what these take in the file; the largest models of our families need a tenth or less.
_MAX_ENTRIES = 1 << 14  # fields, and tensors
_MAX_TEXT = 1 << 20  # bytes of all keys, names and texts, those in arrays left out


@dataclasses.dataclass(frozen=True, slots=True)
class GGUFTensor:
    """The place of a tensor: its name, type, shape (slowest axis first), first byte and size in bytes."""

    name: str
    kind: GGMLQuantizationType
    shape: tuple[int, ...]
    offset: int
    num_bytes: int


class _Cursor:
    """A position in a file's bytes that never passes their end."""

    def __init__(self, data: Any, path: Path, at: int = 0, most_text: int = _MAX_TEXT) -> None:
        self.data, self.path, self.where, self.at, self.most_text = data, path, str(path), at, most_text

    def skip(self, size: int, what: str) -> None:
        if size > len(self.data) - self.at:
            raise CheckpointError(
                f"{self.where}: {what} at byte {self.at} needs {size} bytes, but {len(self.data) - self.at} are left; "
                "the file is damaged or cut short, fetch it again."
            )
        self.at += size

    def take(self, size: int, what: str) -> bytes:
        self.skip(size, what)
        return self.data[self.at - size : self.at]

    def number(self, code: str, what: str) -> Any:
        return struct.unpack("<" + code, self.take(struct.calcsize("<" + code), what))[0]

    def text(self, what: str) -> str:
        size, start = self.number("Q", what), self.at
        self.skip(size, what)
        self.most_text -= size
        if self.most_text < 0:
            raise CheckpointError(f"{self.where}: with {what} its texts have more than {_MAX_TEXT} bytes, too many.")
        return self.decoded(start, what)

    def texts(self, count: int, what: str) -> Iterator[int]:
        """Goes through texts in a row, and gives where each begins; it ends at `at`. A vocabulary has 100,000 and more."""
        size_at, data, most = struct.Struct("<Q").unpack_from, self.data, len(self.data)
        for _ in range(count):
            start = self.at + 8
            if start <= most and start + (size := size_at(data, self.at)[0]) <= most:
                self.at = start + size
            else:
                self.skip(self.number("Q", what), what)  # says what is wrong
            yield start

    def decoded(self, start: int, what: str) -> str:
        """Reads the text from `start` to here."""
        try:
            return str(self.data[start : self.at], "utf-8")
        except UnicodeDecodeError:
            raise CheckpointError(f"{self.where}: {what} at byte {start} is not UTF-8 text.") from None

    def value(self, kind: int, what: str) -> Any:
        if kind == _STRING:
            return self.text(what)
        if kind == _ARRAY:
            return self.array(what)
        if kind not in _SCALARS:
            raise CheckpointError(f"{self.where}: {what} has the unknown type {kind}; the file is damaged.")
        return self.number(_SCALARS[kind], what)

    def array(self, what: str) -> "GGUFArray":
        kind, count = self.number("I", what), self.number("Q", what)
        start = self.at
        if kind == _STRING:
            if count > (len(self.data) - self.at) // 8:  # each needs 8 bytes for its length alone
                raise CheckpointError(f"{self.where}: {what} claims {count} texts, more than the file can hold.")
            for _ in self.texts(count, what):
                pass
        elif kind in _SCALARS:
            self.skip(count * struct.calcsize("<" + _SCALARS[kind]), what)
        else:
            raise CheckpointError(f"{self.where}: {what} is an array of type {kind}, which is not supported.")
        return GGUFArray(self.path, what, kind, count, start)


@dataclasses.dataclass(frozen=True)
class GGUFArray:
    """An array of a file: its length is known, its items are read when it is gone through.

    An item takes many times its bytes in memory, so that whoever needs the items looks at the length first.
    """

    path: Path
    key: str
    kind: int
    count: int
    start: int

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[Any]:
        with _mapped(self.path) as data:
            cursor = _Cursor(data, self.path, self.start, most_text=len(data))
            if self.kind == _STRING:
                for start in cursor.texts(self.count, self.key):
                    yield cursor.decoded(start, self.key)
            else:
                dtype = np.dtype("<" + _SCALARS[self.kind])
                yield from np.frombuffer(cursor.take(self.count * dtype.itemsize, self.key), dtype).tolist()


class GGUFFields(Fields):
    """The fields of a file, where a list may be a `GGUFArray`: whoever reads its items checks its length first."""

    list_types = (list, GGUFArray)


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[mmap.mmap]:
    """Maps the bytes of a file.

    Raises:
      CheckpointError: if it cannot be read.
    """
    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for its writer
            raise CheckpointError(f"{path} is not a file; give a .gguf file.")
        with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            yield data
    except FileNotFoundError:
        raise CheckpointError(f"{path} does not exist.") from None
    except (OSError, ValueError) as error:  # ValueError: an empty file cannot be mapped
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path} cannot be read as GGUF ({error}).") from None


def read_header(path: Path) -> tuple[dict[str, Any], dict[str, GGUFTensor]]:
    """Reads the fields and the tensor list of a GGUF file.

    Args:
      path: the file.

    Returns:
      The fields by key (numbers, texts, a `GGUFArray` each) and the tensors by name.

    Raises:
      CheckpointError: if the file is not GGUF version 2 or 3, or any count, length or offset does not fit in it.
    """
    with _mapped(path) as data:
        return _walk(_Cursor(data, path))


def _walk(cursor: _Cursor) -> tuple[dict[str, Any], dict[str, GGUFTensor]]:
    if cursor.take(4, "magic") != b"GGUF":
        raise CheckpointError(f"{cursor.where} is not a GGUF file: it does not begin with 'GGUF'.")
    version = cursor.number("I", "version")
    if version not in (2, 3):
        raise CheckpointError(f"{cursor.where} is GGUF version {version}; little-endian 2 and 3 are supported.")
    num_tensors, num_fields = cursor.number("Q", "tensor count"), cursor.number("Q", "field count")
    fields: dict[str, Any] = {}
    for i in range(num_fields):
        _check_entries(cursor, i, f"{num_fields} fields")
        key = cursor.text(f"key of field {i}")
        if key in fields:
            raise CheckpointError(f"{cursor.where} gives the field {key!r} twice.")
        fields[key] = cursor.value(cursor.number("I", key), key)
    alignment = fields.get("general.alignment", GGUF_DEFAULT_ALIGNMENT)
    if not isinstance(alignment, int) or alignment < 1 or alignment & (alignment - 1):
        raise CheckpointError(f"{cursor.where}: general.alignment must be a power of two, got {alignment!r}.")
    listed = [_tensor(cursor, i, num_tensors) for i in range(num_tensors)]
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


def _check_entries(cursor: _Cursor, index: int, claimed: str) -> None:
    if index == _MAX_ENTRIES:  # not at once: a damaged count is best named by what is missing first
        raise CheckpointError(f"{cursor.where} claims {claimed}; more than {_MAX_ENTRIES} are not supported.")


def _tensor(cursor: _Cursor, index: int, count: int) -> GGUFTensor:
    _check_entries(cursor, index, f"{count} tensors")
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
