"""Prompt files of any length: checked as a whole before anything runs, then read record by record."""

import dataclasses
import hashlib
from array import array
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jax_probe_mtp.files.foreign_settings import DO_SAMPLE, refuse_foreign
from jax_probe_mtp.files.ids import Keys, KeySet, content_digest, id_key, nameless_key, occurrence_of
from jax_probe_mtp.files.json_lines import check_id, excerpt, json_lines
from jax_probe_mtp.files.openai_forms import of_batch_line, plain_messages
from jax_probe_mtp.files.record_fields import FIELDS, LIMITS, NEUTRAL, OF_TEMPLATE, RULES, SETTINGS, SOURCES

MAX_UNUSED_FIELDS = 10


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One line of a prompt file. Exactly one of `prompt`, `messages` and `prompt_ids` is set.

    Of the others, None leaves the choice to the run. A record without an id is known by what it asks for.
    """

    index: int  # among the records of the file, from 0
    id: str | int  # the line's number where it has none
    content: int = dataclasses.field(default=0, compare=False)  # digest of all that it asks for, its id left out
    occurrence: int | None = None  # of a record without an id: which of its equals in the file it is, from 1
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    continue_final_message: bool | None = None
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    template_kwargs: dict[str, Any] | None = None
    prompt_ids: list[int] | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: tuple[int, ...] | None = None
    logit_bias: dict[str, float] | None = None

    @property
    def own_settings(self) -> dict[str, Any]:
        """Gives what the record sets in place of the run, as JSON has it."""
        own = {name: getattr(self, name) for name in SETTINGS if getattr(self, name) is not None}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in own.items()}

    @property
    def is_penalized(self) -> bool:
        """Says whether the record needs a program with penalties."""
        return any(getattr(self, name) not in (None, nothing) for name, nothing in NEUTRAL.items())

    @property
    def noise_name(self) -> str | None:
        """Gives the name that the record's noise is drawn by; None where that is its id."""
        return None if self.occurrence is None else f"{self.content:016x}.{self.occurrence}"

    def as_answered(self) -> dict[str, Any]:
        """Gives what an answer says of the record, so that it stays the answer to this record alone."""
        of_nameless = {} if self.occurrence is None else {"occurrence": self.occurrence}
        return {"content": f"{self.content:016x}", **of_nameless, **self.own_settings}

    def differs_from(self, answer: Mapping[str, Any]) -> str:
        """Says in what the record differs from the one of this id that was answered."""
        own, nothing = self.own_settings, "nothing of its own"
        then = {name: answer[name] for name in SETTINGS if name in answer}
        changed = [name for name in SETTINGS if then.get(name) != own.get(name)] if "content" in answer else []
        says = [f"{name} {then.get(name, nothing)!r} became {own.get(name, nothing)!r}" for name in changed]
        asked = {name: getattr(self, name) for name in RULES if name not in SETTINGS}
        with_then = {name: value for name, value in asked.items() if value is not None} | then
        if answer.get("content") != f"{content_digest(with_then):016x}":
            says.append("its prompt is another")
        return ", ".join(says)[:200]


class PromptFile:
    """A file with one JSON object a line. Building it checks each line; iterating reads the file anew each time.

    Args:
      path: the file.
      names_by_line: True where a record without an id is known by the number of its line, as runs of earlier versions did.

    Attributes:
      path: the file.
      num_records: lines that are not blank.
      keys: of each record, in the order of the file: of its id or, where it has none, of what it asks for.
      contents: of each record, the digest of what it asks for.
      max_temperature: the largest one that a record gives, None if none does.
      is_penalized: True where a record needs a program with penalties.
      unused_fields: names of fields that nothing reads, the first ten of them in sorted order.

    Raises:
      ValueError: names the file, the line and what is wrong with it; iterating raises it if the file has changed.
      OSError: if the file cannot be read.
    """

    def __init__(self, path: Path, *, names_by_line: bool = False) -> None:
        self.path = path
        self.max_temperature: float | None = None
        self.is_penalized = False
        self._names_by_line = names_by_line
        self._written = _written(path)
        self.contents = array("Q")
        keys, nameless = array("Q"), array("I")
        unused: set[str] = set()
        for record, fields, _, _ in parsed_records(path):
            self.contents.append(record.content)
            keys.append(id_key(record.id))
            if self._is_nameless(fields):
                nameless.append(record.index)
            if record.temperature is not None:
                self.max_temperature = max(record.temperature, self.max_temperature or 0.0)
            self.is_penalized |= record.is_penalized
            if new := fields.keys() - FIELDS - unused:
                unused = set(sorted(unused | {name[:60] for name in new})[:MAX_UNUSED_FIELDS])
        if not keys:
            raise ValueError(f"{path} holds no records; give one JSON object a line.")
        self.num_records = len(keys)
        self.unused_fields = tuple(sorted(unused))
        for key in KeySet(keys[:]).repeated():
            _check_ids_differ(path, key)
        if nameless:
            _set_nameless_keys(keys, self.contents, nameless)
        self.keys = Keys(keys)

    def __iter__(self) -> Iterator[Record]:
        """Gives all records; see `records`."""
        return self.records(lambda index: True)

    def records(self, is_wanted: Callable[[int], bool]) -> Iterator[Record]:
        """Gives the records whose index is wanted; the lines of the others are not looked into.

        Raises:
          ValueError: if one of them is not what it was when the file was checked, or there are fewer now.
        """
        num_records = 0

        def is_next_wanted(index: int) -> bool:
            nonlocal num_records
            num_records = index + 1
            return index < self.num_records and is_wanted(index)  # what was appended since is not this run's

        for record, fields, _, where in parsed_records(self.path, is_next_wanted):
            index = record.index
            key, occurrence = self.keys[index], None
            if self._is_nameless(fields):
                occurrence = occurrence_of(key, record.content)
            is_same = key == id_key(record.id) if occurrence is None else 1 <= occurrence <= self.num_records
            if not is_same or record.content != self.contents[index]:
                raise ValueError(f"{where} has changed since this run began; give the same command to go on.")
            yield record if occurrence is None else dataclasses.replace(record, occurrence=occurrence)
        if num_records < self.num_records:
            were = f"{num_records} records, but held {self.num_records} when this run began"
            raise ValueError(f"{self.path} holds {were}; give the same command to go on.")

    def digest(self) -> str:
        """Gives a digest of all records and their order."""
        digest = hashlib.sha256(self.contents)
        self.keys.add_to(digest)
        return digest.hexdigest()

    def has_changed(self) -> bool:
        """Says whether the file holds other records than when it was checked."""
        try:
            if _written(self.path) == self._written:
                return False
            now = PromptFile(self.path, names_by_line=self._names_by_line)
        except (ValueError, OSError):
            return True
        return (now.keys, now.contents) != (self.keys, self.contents)

    def _is_nameless(self, fields: dict[str, Any]) -> bool:
        return not self._names_by_line and "id" not in fields


def _written(path: Path) -> tuple[int, int, int]:
    """Gives what changes when a file is written or replaced."""
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns


def _set_nameless_keys(keys: "array[int]", contents: "array[int]", nameless: "array[int]") -> None:
    """Puts the keys of records without an id, at these places, where those of their lines' numbers are."""
    places = np.asarray(nameless)
    last, occurrence = None, 0
    for place in places[np.argsort(np.asarray(contents)[places], kind="stable")]:  # equals in the order of the file
        occurrence = occurrence + 1 if contents[place] == last else 1
        last = contents[place]
        keys[place] = nameless_key(last, occurrence)


def parsed_records(
    path: Path, is_wanted: Callable[[int], bool] | None = None
) -> Iterator[tuple[Record, dict[str, Any], int, str]]:
    """Gives each record with its JSON object, the line's number and its name for messages; `is_wanted` as in `json_lines`."""
    for index, number, where, line in json_lines(path, is_wanted):
        fields = of_batch_line(where, line)
        given_fields = fields.items() if isinstance(fields, dict) else ()
        values = {field: value for field, value in given_fields if field in RULES and value is not None}
        given = [field for field in SOURCES if field in values]
        if not given:
            asked = 'an object with a text "prompt", or "messages" or "prompt_ids"'
            raise ValueError(f"{where} must be {asked}, got {excerpt(fields)}.")
        if len(given) > 1:
            raise ValueError(f"{where} has {' and '.join(given)}; give one of them.")
        name = fields.get("id", number)
        check_id(where, name)
        for field, value in values.items():
            is_good, rule = RULES[field]
            if not is_good(value):
                raise ValueError(f"{where}: {field} must be {rule}, got {excerpt(value)}.")
        is_limit, _ = RULES["max_new_tokens"]
        for limit in LIMITS:
            if is_limit(fields.get(limit)):
                values.setdefault("max_new_tokens", fields[limit])
        refuse_foreign(where, fields | values)  # two limits that differ, among others
        if "messages" in values:
            values["messages"] = plain_messages(where, values["messages"])
        for field in [name for name in OF_TEMPLATE if name in values]:
            if "prompt_ids" in values:
                raise ValueError(
                    f"{where}: {field} is for the chat template, which prompt_ids do not pass; leave it out."
                )
            if not values[field]:
                del values[field]
        if fields.get(DO_SAMPLE) is False:
            values["temperature"] = 0.0  # also where the run has another
        if values.get("continue_final_message"):
            _check_continues(where, values.get("messages"))
        for field in values.keys() & {"temperature", "top_p"}:
            values[field] = float(values[field])
        if isinstance(values.get("stop"), str):
            values["stop"] = (values["stop"],)
        for field in values.keys() & {"stop", "stop_token_ids"}:
            values[field] = tuple(values[field])
        yield Record(index=index, id=name, content=content_digest(values), **values), fields, number, where


def _check_continues(where: str, messages: list[dict[str, Any]] | None) -> None:
    if messages is None or messages[-1]["role"] != "assistant":
        there = "there are no messages" if messages is None else f"the last one is {excerpt(messages[-1]['role'])}'s"
        raise ValueError(
            f'{where}: continue_final_message is for messages that end with one of "assistant", but {there}; leave it out.'
        )


def _check_ids_differ(path: Path, key: int) -> None:
    """Reads the file once more for the ids of one key: two different ones may share it by chance."""
    line_of: dict[str, int] = {}
    for record, fields, number, where in parsed_records(path):
        name = str(record.id)
        if id_key(name) != key:
            continue
        if name in line_of:
            shown = f"{record.id!r}"[:60]
            says = f"has the id {shown}" if "id" in fields else f"has no id, and its number {shown} is the id"
            way_out = "ids must differ"
            if "occurrence" in fields:  # answers to records without ids, by the lines of several runs
                way_out = "merge --input gives each answer the number of its line"
            raise ValueError(f"{where} {says} of line {line_of[name]}; {way_out}.")
        line_of[name] = number
