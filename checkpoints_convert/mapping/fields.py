"""Reads named values out of JSON or GGUF fields, checking the type of each: files are input, not ours to trust."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints_convert.errors import CheckpointError
from jax_probe_mtp.errors import one_line

MAX_BYTES = 1 << 20  # of a configuration, an index or a header: ten times what the largest models of our families need
MAX_VALUES = 1 << 15  # in a JSON file, about: each takes up to 230 bytes in memory, and 2 in the file
MAX_DEPTH = 64  # of objects and lists within each other

_REQUIRED: Any = object()


def read_json(path: Path, *, most_bytes: int = MAX_BYTES, most_values: int = MAX_VALUES) -> dict[str, Any]:
    """Reads the object in a JSON file.

    Args:
      path: the file.
      most_bytes: it may have.
      most_values: it may have, about.

    Raises:
      CheckpointError: if the file is missing, too large, not UTF-8 JSON, not an object, nested deeper than `MAX_DEPTH`, or
        names a key twice.
    """

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) != len(pairs):
            repeated = first_repeated([key for key, _ in pairs])
            raise CheckpointError(f"{path} names {repeated!r} twice; remove one of the two entries.")
        return found

    try:
        if path.exists() and not path.is_file():  # opening a pipe would wait for its writer
            raise CheckpointError(f"{path} is not a file; a model folder must hold it.")
        with path.open("rb") as file:
            raw = file.read(most_bytes + 1)
        if len(raw) > most_bytes:
            raise CheckpointError(f"{path} has more than {most_bytes} bytes, too many for what it is.")
        if sum(raw.count(sign) for sign in (b",", b"[", b"{")) > most_values:
            raise CheckpointError(f"{path} has more than {most_values} values, too many for what it is.")
        values = json.loads(raw.decode("utf-8"), object_pairs_hook=unique)
    except FileNotFoundError:
        raise CheckpointError(f"{path} is missing; a model folder must hold it.") from None
    except CheckpointError:
        raise
    except (OSError, ValueError, RecursionError) as error:
        raise CheckpointError(f"{path} is not readable JSON ({one_line(error)}); fetch the file again.") from None
    if not isinstance(values, dict):
        raise CheckpointError(f"{path} must hold a JSON object, got {type(values).__name__}; fetch the file again.")
    level: list[Any] = [values]
    for _ in range(MAX_DEPTH):
        level = [item for node in level for item in (node.values() if isinstance(node, dict) else node)]
        level = [item for item in level if isinstance(item, dict | list)]
    if level:  # showing or comparing it could run out of stack
        raise CheckpointError(f"{path} is nested more than {MAX_DEPTH} deep; fetch the file again.")
    return values


def writable(values: Mapping[str, Any]) -> dict[str, Any]:
    """Gives those of some JSON values that a report can hold again: no infinite numbers, no halves of characters."""

    def is_writable(value: Any) -> bool:
        try:
            json.dumps(value, allow_nan=False, ensure_ascii=False).encode()
        except ValueError:
            return False
        return True

    return {name: value for name, value in values.items() if is_writable(value)}


def first_repeated(items: list[str]) -> str:
    """Finds the first item that stands in the list before; there must be one."""
    seen: set[str] = set()
    for item in items:
        if item in seen:
            return item
        seen.add(item)
    raise ValueError("no item is repeated")


def shortest_float(value: float) -> float:
    """Gives the shortest decimal that rounds to the same float32: GGUF stores 1e-6 as 9.99999997e-07, we mean 1e-6."""
    return float(str(np.float32(value)))


class Fields:
    """Typed access to a mapping of named values; every error names the key, the value and the file.

    Args:
      values: the mapping.
      where: the file, for messages.
    """

    list_types: tuple[type, ...] = (list,)  # what counts as a list

    def __init__(self, values: Mapping[str, Any], where: str) -> None:
        self.values = values
        self.where = where

    def __contains__(self, key: str) -> bool:
        return self.values.get(key) is not None

    def get(self, key: str, kind: type | tuple[type, ...], wanted: str, default: Any = _REQUIRED) -> Any:
        """Gives the value of `key`, which must be of `kind`; `default` where the key is absent or null."""
        value = self.values.get(key)
        if value is None:
            if default is _REQUIRED:
                raise CheckpointError(f"{self.where} has no {key!r}; it must give {wanted}.")
            return default
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            raise CheckpointError(f"{self.where}: {key!r} must be {wanted}, got {str(value)[:80]!r}.")
        return value

    def integer(self, key: str, default: Any = _REQUIRED) -> Any:
        value = self.get(key, int, "a whole number", default)
        if isinstance(value, int) and value.bit_length() > 63:  # no array has such an axis, and a float may not hold it
            raise CheckpointError(f"{self.where}: {key!r} must be a whole number within 64 bits, got {value}.")
        return value

    def number(self, key: str, default: Any = _REQUIRED) -> Any:
        value = self.get(key, (int, float), "a number", default)
        if value is None:
            return None
        if not abs(value) <= float(np.finfo(np.float32).max):  # true of nan too; compared as Python numbers of any size
            raise CheckpointError(f"{self.where}: {key!r} must be finite in float32, got {value!r}.")
        return float(value)

    def flag(self, key: str, default: Any = _REQUIRED) -> Any:
        return self.get(key, bool, "true or false", default)

    def text(self, key: str, default: Any = _REQUIRED) -> Any:
        return self.get(key, str, "a text", default)

    def items(self, key: str, default: Any = _REQUIRED) -> Any:
        """Gives a list, one of `list_types`."""
        return self.get(key, self.list_types, "a list", default)
