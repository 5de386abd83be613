"""Prompt files of any length: checked as a whole before anything runs, then read record by record."""

import dataclasses
import hashlib
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jax_probe_mtp.files.ids import Keys, KeySet, id_key, nameless_key, occurrence_of
from jax_probe_mtp.files.records.record import Record, parsed_records
from jax_probe_mtp.files.records.record_fields import FIELDS

MAX_UNUSED_FIELDS = 10


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
