"""Prompt files of any length: checked as a whole before anything runs, then read record by record."""

import dataclasses
import math
import sys
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from jax_probe_mtp.files.ids import IdSet, id_digest
from jax_probe_mtp.files.json_lines import check_id, excerpt, json_lines

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
    continue_final_message: bool | None = None
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


def parsed_records(path: Path) -> Iterator[tuple[Record, dict[str, Any], int, str]]:
    """Gives each record with its JSON object, the line's number and its name for messages."""
    for index, (number, where, fields) in enumerate(json_lines(path)):
        given_fields = fields.items() if isinstance(fields, dict) else ()
        values = {field: value for field, value in given_fields if field in _RULES and value is not None}
        given = [field for field in _SOURCES if field in values]
        if not given:
            asked = 'an object with a text "prompt", or "messages" or "prompt_ids"'
            raise ValueError(f"{where} must be {asked}, got {excerpt(fields)}.")
        if len(given) > 1:
            raise ValueError(f"{where} has {' and '.join(given)}; give one of them.")
        name = fields.get("id", number)
        check_id(where, name)
        for field, value in values.items():
            is_good, rule = _RULES[field]
            if not is_good(value):
                raise ValueError(f"{where}: {field} must be {rule}, got {excerpt(value)}.")
        if values.get("continue_final_message"):
            _check_continues(where, values.get("messages"))
        for field in values.keys() & {"temperature", "top_p"}:
            values[field] = float(values[field])
        if "stop" in values:
            values["stop"] = (values["stop"],) if isinstance(values["stop"], str) else tuple(values["stop"])
        yield Record(index=index, id=name, **values), fields, number, where


def _check_continues(where: str, messages: list[dict[str, str]] | None) -> None:
    if messages is None or messages[-1]["role"] != "assistant":
        there = "there are no messages" if messages is None else f"the last one is {excerpt(messages[-1]['role'])}'s"
        raise ValueError(
            f'{where}: continue_final_message is for messages that end with one of "assistant", but {there}; leave it out.'
        )


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
    "continue_final_message": (lambda value: isinstance(value, bool), "true or false"),
    "max_new_tokens": (lambda value: _is_whole(value, 1), "a whole number of at least 1"),
    "temperature": (lambda value: _is_number(value) and 0 <= value <= sys.float_info.max, "a number of at least 0"),
    "top_p": (lambda value: _is_number(value) and 0 < value <= 1, "a number above 0 and at most 1"),
    "top_k": (lambda value: _is_whole(value, 0), "a whole number of at least 0"),
    "seed": (lambda value: _is_whole(value, 0, 2**32 - 1), "a whole number from 0 to 2**32 - 1"),
    "stop": (_is_stop, f"a text or a list of at most {MAX_STOPS} texts, none of them empty"),
}
_FIELDS = {"id", *_RULES}
