"""Prompt files of any length: checked as a whole before anything runs, then read record by record."""

import dataclasses
import hashlib
import json
import math
import stat
import sys
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

MAX_LINE_BYTES = 16 * 2**20
MAX_STOPS = 16
MAX_UNUSED_FIELDS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One line of a prompt file. Exactly one of `prompt`, `messages` and `prompt_ids` is set.

    Of the others, None leaves the choice to the run.
    """

    index: int  # among the records of the file, from 0
    id: str | int
    prompt: str | None = None
    messages: list[dict[str, str]] | None = None
    prompt_ids: list[int] | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] | None = None


class PromptFile:
    """A file with one JSON object a line. Building it checks each line; iterating reads the file anew each time.

    Args:
      path: the file.

    Attributes:
      path: the file.
      num_records: lines that are not blank.
      ids: the id of each record, as `IdSet`.
      max_temperature: the largest one that a record gives, None if none does.
      unused_fields: names of fields that nothing reads, the first ten of them in sorted order.

    Raises:
      ValueError: names the file, the line and what is wrong with it; iterating raises it if the file has changed.
      OSError: if the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.max_temperature: float | None = None
        digests = array("Q")
        unused: set[str] = set()
        for record, fields, _, _ in parsed_records(path):
            digests.append(id_digest(record.id))
            if record.temperature is not None:
                self.max_temperature = max(record.temperature, self.max_temperature or 0.0)
            if new := fields.keys() - _FIELDS - unused:
                unused = set(sorted(unused | {name[:60] for name in new})[:MAX_UNUSED_FIELDS])
        if not digests:
            raise ValueError(f"{path} holds no records; give one JSON object a line.")
        self.num_records = len(digests)
        self.unused_fields = tuple(sorted(unused))
        self.ids = IdSet(digests)
        for digest in self.ids.repeated():
            _check_ids_differ(path, digest)

    def __iter__(self) -> Iterator[Record]:
        for record, *_ in parsed_records(self.path):
            yield record


class IdSet:
    """Ids by their digests, 8 bytes each. Two ids share a digest once in about n * n / 2**65 files of n ids.

    Args:
      digests: of `id_digest`; the set takes them over and sorts them in place.
    """

    def __init__(self, digests: "array[int]") -> None:
        self._digests = np.asarray(digests)  # the same memory
        self._digests.sort()

    def __len__(self) -> int:
        return len(self._digests)

    def __contains__(self, name: object) -> bool:
        # np.uint64: beside a Python int the whole array would be turned into float64, which rounds
        digest = np.uint64(id_digest(name))
        index = np.searchsorted(self._digests, digest)
        return bool(index < len(self._digests) and self._digests[index] == digest)

    def repeated(self) -> list[int]:
        """The digests that are there more than once."""
        return np.unique(self._digests[1:][self._digests[1:] == self._digests[:-1]]).tolist()


def id_digest(name: object) -> int:
    """64 bits that stand for an id; 1 and "1" are the same id, since they would draw the same noise."""
    return int.from_bytes(hashlib.blake2b(str(name).encode(), digest_size=8).digest(), "little")


def json_lines(path: Path) -> Iterator[tuple[int, str, Any]]:
    """Number, name for messages and JSON value of each line that is not blank; one line in memory at a time.

    Raises:
      ValueError: for what is no regular file, and for a line that is too long, not UTF-8 or not JSON.
      OSError: if the file cannot be read.
    """
    check_is_file(path)
    with path.open("rb") as file:
        offset, number = 0, 0
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            where = f"{path}, line {number}"
            if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                raise ValueError(f"{where} is longer than {MAX_LINE_BYTES} bytes; shorten it.")
            try:
                text = line.decode().removesuffix("\n")
            except UnicodeDecodeError as error:
                byte = offset + error.start
                raise ValueError(f"{where} is not UTF-8 (byte {byte} of the file); convert it first.") from None
            offset += len(line)
            if number == 1:
                text = text.removeprefix("\ufeff")
            if text.strip():
                yield number, where, _value(where, text)


def check_is_file(path: Path) -> None:
    """Refuses what cannot be read twice, without opening it: a pipe would wait for its other end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path} is not a file but a folder, a pipe or a device; name a file.")


def check_id(where: str, name: object) -> None:
    """Raises ValueError unless `name` is a text or a whole number."""
    if not isinstance(name, str | int) or isinstance(name, bool):
        raise ValueError(f"{where}: id must be a text or a whole number, got {start(name)}.")


def start(value: object) -> str:
    """The first characters of a JSON value, for messages."""
    try:
        return json.dumps(value)[:60]
    except RecursionError:  # reading it took less of the stack than writing it does
        return "a value that is nested deeply"


def _value(where: str, text: str) -> Any:
    try:
        value = json.loads(text)
        if "\\u" in text:  # nothing else can make half of a pair
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where} holds half of a surrogate pair, which is no character; write it whole.") from None
    except (ValueError, RecursionError) as error:  # a number or a nesting too large for Python among them
        raise ValueError(f"{where} is not JSON that can be read ({error}).") from None
    return value


def parsed_records(path: Path) -> Iterator[tuple[Record, dict[str, Any], int, str]]:
    """Each record with its JSON object, the line's number and its name for messages."""
    for index, (number, where, fields) in enumerate(json_lines(path)):
        given_fields = fields.items() if isinstance(fields, dict) else ()
        values = {field: value for field, value in given_fields if field in _RULES and value is not None}
        given = [field for field in _SOURCES if field in values]
        if not given:
            asked = 'an object with a text "prompt", or "messages" or "prompt_ids"'
            raise ValueError(f"{where} must be {asked}, got {start(fields)}.")
        if len(given) > 1:
            raise ValueError(f"{where} has {' and '.join(given)}; give one of them.")
        name = fields.get("id", number)
        check_id(where, name)
        for field, value in values.items():
            is_good, rule = _RULES[field]
            if not is_good(value):
                raise ValueError(f"{where}: {field} must be {rule}, got {start(value)}.")
        for field in values.keys() & {"temperature", "top_p"}:
            values[field] = float(values[field])
        if "stop" in values:
            values["stop"] = (values["stop"],) if isinstance(values["stop"], str) else tuple(values["stop"])
        yield Record(index=index, id=name, **values), fields, number, where


def _check_ids_differ(path: Path, digest: int) -> None:
    """Reads the file once more for the ids of one digest: two different ones may share it by chance."""
    line_of: dict[str, int] = {}
    for record, fields, number, where in parsed_records(path):
        name = str(record.id)
        if id_digest(name) != digest:
            continue
        if name in line_of:
            shown = f"{record.id!r}"[:60]
            says = f"has the id {shown}" if "id" in fields else f"has no id, and its number {shown} is the id"
            raise ValueError(f"{where} {says} of line {line_of[name]}; ids must differ.")
        line_of[name] = number


def _is_whole(value: object, least: int, most: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_message(value: Any) -> bool:
    is_object = isinstance(value, dict) and value.keys() == {"role", "content"}
    return is_object and all(isinstance(text, str) for text in value.values())


def _is_stop(value: object) -> bool:
    texts = [value] if isinstance(value, str) else value
    return isinstance(texts, list) and len(texts) <= MAX_STOPS and all(isinstance(text, str) and text for text in texts)


_SOURCES = ("prompt", "messages", "prompt_ids")
# field -> what is asked of its value, and how a message says so
_RULES: dict[str, tuple[Callable[[Any], object], str]] = {
    "prompt": (lambda value: isinstance(value, str), "a text"),
    "messages": (
        lambda value: isinstance(value, list) and value and all(map(_is_message, value)),
        'a list of objects, at least one, each of a text "role" and a text "content" alone',
    ),
    "prompt_ids": (
        lambda value: isinstance(value, list) and all(_is_whole(item, 0) for item in value),
        "a list of whole numbers from 0",
    ),
    "max_new_tokens": (lambda value: _is_whole(value, 1), "a whole number of at least 1"),
    "temperature": (lambda value: _is_number(value) and 0 <= value <= sys.float_info.max, "a number of at least 0"),
    "top_p": (lambda value: _is_number(value) and 0 < value <= 1, "a number above 0 and at most 1"),
    "top_k": (lambda value: _is_whole(value, 0), "a whole number of at least 0"),
    "seed": (lambda value: _is_whole(value, 0, 2**32 - 1), "a whole number from 0 to 2**32 - 1"),
    "stop": (_is_stop, f"a text or a list of at most {MAX_STOPS} texts, none of them empty"),
}
_FIELDS = {"id", *_RULES}
