"""Prompt files of any length: checked as a whole before anything runs, then read record by record."""

import dataclasses
import hashlib
import itertools
from array import array
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from jax_probe_mtp.files.ids import Keys, KeySet, id_key, nameless_key, occurrence_of, sample_key, sample_name
from jax_probe_mtp.files.records.record import Record, parsed_records
from jax_probe_mtp.files.records.record_fields import FIELDS

MAX_UNUSED_FIELDS = 10
MAX_RECORDS = 2**32 - 1  # their places have 32 bits


class PromptFile:
    """A file with one JSON object a line. Building it checks each line; iterating reads the file anew each time.

    Args:
      path: the file.
      names_by_line: True where a record without an id is known by the number of its line, as runs of earlier versions did.
      num_samples: answers to each line that does not say how many it asks for.
      are_answers: True where each line holds an answer, which says what `sample` it is.

    Attributes:
      path: the file.
      num_lines: lines that are not blank.
      num_records: answers that they ask for; each is a record of its own.
      keys: of each record, in the order of the file: of its id or, where it has none, of what it asks for.
      contents: of each record, the digest of what it asks for.
      max_temperature: the largest one that a record gives, None if none does.
      is_penalized: True where a record needs a program with penalties.
      unused_fields: names of fields that nothing reads, the first ten of them in sorted order.

    Raises:
      ValueError: names the file, the line and what is wrong with it; iterating raises it if the file has changed.
      OSError: if the file cannot be read.
    """

    def __init__(
        self, path: Path, *, names_by_line: bool = False, num_samples: int = 1, are_answers: bool = False
    ) -> None:
        self.path = path
        self.max_temperature: float | None = None
        self.is_penalized = False
        self._names_by_line, self._num_samples = names_by_line, num_samples
        self._are_answers = are_answers
        self._written = _written(path)
        keys, contents, nameless = array("Q"), array("Q"), array("I")
        self._first = array("I", [0])  # record of each line, and behind the last one
        unused: set[str] = set()
        for record, fields, _, where in self._lines():
            contents.append(record.content)
            keys.append(sample_key(id_key(record.id), record.sample))
            if self._first[-1] + record.n > MAX_RECORDS:
                raise ValueError(f"{path}, up to {where}, asks for more than {MAX_RECORDS} answers; split it.")
            self._first.append(self._first[-1] + record.n)
            if self._is_nameless(fields):
                nameless.append(record.index)
            if record.temperature is not None:
                self.max_temperature = max(record.temperature, self.max_temperature or 0.0)
            self.is_penalized |= record.is_penalized
            if new := fields.keys() - FIELDS - unused:
                unused = set(sorted(unused | {name[:60] for name in new})[:MAX_UNUSED_FIELDS])
        if not keys:
            raise ValueError(f"{path} holds no records; give one JSON object a line.")
        self.num_lines, self.num_records = len(keys), self._first[-1]
        self.unused_fields = tuple(sorted(unused))
        for key in KeySet(keys[:]).repeated():
            self._check_ids_differ(key)
        if nameless:
            _set_nameless_keys(keys, contents, nameless)
        if self.num_records > self.num_lines:
            keys, contents = _of_samples(keys, contents, self._first)
        self.keys, self.contents = Keys(keys), contents

    def __iter__(self) -> Iterator[Record]:
        """Gives all records; see `records`."""
        return self.records(lambda index: True)

    def records(self, is_wanted: Callable[[int], bool]) -> Iterator[Record]:
        """Gives the records whose index is wanted; the lines of the others are not looked into.

        Raises:
          ValueError: if one of them is not what it was when the file was checked, or there are fewer now.
        """
        num_lines = 0

        def is_next_wanted(line: int) -> bool:
            nonlocal num_lines
            num_lines = line + 1
            return line < self.num_lines and any(map(is_wanted, self._records_of(line)))  # none that was appended since

        for record, fields, _, where in self._lines(is_next_wanted):
            indices, occurrence = self._records_of(record.index), None
            key = self.keys[indices.start]
            if self._is_nameless(fields):
                occurrence = occurrence_of(key, record.content)
                is_same = 1 <= occurrence <= self.num_lines
            else:
                is_same = key == sample_key(id_key(record.id), record.sample)
            if not is_same or record.content != self.contents[indices.start] or record.n != len(indices):
                raise ValueError(f"{where} has changed since this run began; give the same command to go on.")
            for index in filter(is_wanted, indices):
                sample = record.sample + index - indices.start
                yield dataclasses.replace(record, index=index, sample=sample, occurrence=occurrence)
        if num_lines < self.num_lines:
            were = f"{num_lines} records, but held {self.num_lines} when this run began"
            raise ValueError(f"{self.path} holds {were}; give the same command to go on.")

    def num_records_of(self, num_lines: int) -> int:
        """Counts the answers that the first lines of the file ask for."""
        return self._first[min(num_lines, self.num_lines)]

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
            now = PromptFile(self.path, names_by_line=self._names_by_line, num_samples=self._num_samples)
        except (ValueError, OSError):
            return True
        return (now.keys, now.contents) != (self.keys, self.contents)

    def _lines(
        self, is_wanted: Callable[[int], bool] | None = None
    ) -> Iterator[tuple[Record, dict[str, Any], int, str]]:
        return parsed_records(self.path, is_wanted, num_samples=self._num_samples, are_answers=self._are_answers)

    def _records_of(self, line: int) -> range:
        return range(self._first[line], self._first[line + 1])

    def _is_nameless(self, fields: dict[str, Any]) -> bool:
        return not self._names_by_line and "id" not in fields

    def _check_ids_differ(self, key: int) -> None:
        """Reads the file once more for the ids of one key: two different ones may share it by chance."""
        line_of: dict[tuple[str, int], int] = {}
        for record, fields, number, where in self._lines():
            name = str(record.id), record.sample
            if sample_key(id_key(record.id), record.sample) != key:
                continue
            if name in line_of:
                shown = sample_name(record.id, record.sample or None)
                says = f"has the id {shown}" if "id" in fields else f"has no id, and its number {shown} is the id"
                way_out = "ids must differ"
                if "occurrence" in fields:  # answers to records without ids, by the lines of several runs
                    way_out = "merge --input gives each answer the number of its line"
                raise ValueError(f"{where} {says} of line {line_of[name]}; {way_out}.")
            line_of[name] = number


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


def _of_samples(keys: "array[int]", contents: "array[int]", first: "array[int]") -> tuple["array[int]", "array[int]"]:
    """Gives key and content of each answer, where those of each line are given and the number of its first answer."""
    all_keys, all_contents = array("Q"), array("Q")
    for line, (key, content) in enumerate(zip(keys, contents, strict=True)):
        n = first[line + 1] - first[line]
        all_keys.extend(sample_key(key, sample) for sample in range(n))
        all_contents.extend(itertools.repeat(content, n))
    return all_keys, all_contents
