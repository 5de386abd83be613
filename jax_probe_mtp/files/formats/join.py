"""Joins outputs that hold no prompt with a file of prompts: by id or, where there are no ids, by place."""

import dataclasses
from array import array
from collections.abc import Iterator
from typing import Any

from jax_probe_mtp.files.formats.given import GivenOutput, Item
from jax_probe_mtp.files.ids import id_key, nameless_key, sample_name
from jax_probe_mtp.files.prompt_file import PromptFile
from jax_probe_mtp.files.records.record import Record
from jax_probe_mtp.files.records.record_fields import SETTINGS

WINDOW = 4096  # lines whose prompts are in memory at a time
MAX_NAMES = 3  # that a message shows
_NONE = 2**32 - 1  # the place of no prompt


class Join:
    """Finds the prompt of each line of a file of outputs. Each line is shown once, then `settle` is called.

    In memory stay 4 bytes a line, 1 for each prompt, and the prompts of `WINDOW` lines.

    Attributes:
      says: what people should know of how it went, a line each.
    """

    def __init__(self, prompts: PromptFile, *, has_servers_ids: bool) -> None:
        """Args: the prompts, and whether the outputs' ids may be a server's own, which no prompt has."""
        self._prompts, self._has_servers_ids = prompts, has_servers_ids
        self._places = array("I")  # of each line's prompt
        self._num_lacking = self._num_named = self._num_found = 0
        self._lost: tuple[str, str] | None = None  # the first line whose id no prompt has, and the id
        self.says: list[str] = []

    def show(self, item: Item, output: GivenOutput) -> None:
        """Takes the first output of a line."""
        found = self._prompts.keys.find(_key_of(item.value, output.record)) if output.is_named else None
        self._places.append(_NONE if found is None else found)
        if output.has_prompt or output.error is not None:
            return
        self._num_lacking += 1
        self._num_named += output.is_named
        self._num_found += found is not None
        if found is None and self._lost is None:
            self._lost = item.where, sample_name(output.record.id, None)

    def settle(self) -> None:
        """Decides how to join.

        Raises:
          ValueError: if an output has no prompt; it names the first one.
        """
        if not self._num_lacking:
            self.says.append(f"all outputs hold their prompts; {self._prompts.path.name} was not needed")
            return
        num_lost = self._num_lacking - self._num_found
        of_server = self._has_servers_ids and not self._num_found
        if not self._num_named or of_server:
            self._by_place(of_server=of_server and self._num_named > 0)
        elif self._lost is not None:
            where, name = self._lost
            counts = f"{num_lost} of {self._num_lacking} outputs have none there"
            raise ValueError(
                f"{where}: {self._prompts.path} has no prompt of the id {name} ({counts}); give the file of their prompts."
            )
        self._name_unanswered()

    def _by_place(self, *, of_server: bool) -> None:
        num_outputs, num_prompts = len(self._places), self._prompts.num_lines
        why = "their ids are in no prompt" if of_server else "they have no ids"
        if num_outputs != num_prompts:
            raise ValueError(
                f"the outputs have to be joined with {self._prompts.path} by place, since {why}, but there are "
                f"{num_outputs} outputs and {num_prompts} prompts; give as many, or ids."
            )
        self._places = array("I", (self._prompts.num_records_of(line) for line in range(num_outputs)))
        self.says.append(f"outputs were joined with {self._prompts.path.name} by place: {why}")

    def _name_unanswered(self) -> None:
        is_there = bytearray(self._prompts.num_records)
        for place in self._places:
            if place != _NONE:
                is_there[place] = 1
        firsts = (self._prompts.num_records_of(line) for line in range(self._prompts.num_lines))
        missing = [place for place in firsts if not is_there[place]]
        if not missing:
            return
        shown = set(missing[:MAX_NAMES])
        names = [sample_name(record.id, None) for record in self._prompts.records(shown.__contains__)]
        dots = ", ..." if len(missing) > MAX_NAMES else ""
        of_all = f"{len(missing)} of its {self._prompts.num_lines} prompts"
        self.says.append(f"{self._prompts.path.name}: no output for {of_all} ({', '.join(names)}{dots})")

    def joined(self, lines: Iterator[tuple[int, list[GivenOutput]]]) -> Iterator[GivenOutput]:
        """Gives all outputs, those that lack a prompt with that of their line.

        Args:
          lines: place and outputs of each line, in the order in which they were shown.
        """
        records = _Records(self._prompts, self._places)
        for place, outputs in lines:
            prompt = records.get(place) if self._places[place] != _NONE else None
            for output in outputs:
                yield output if prompt is None or output.has_prompt else _with_prompt(output, prompt)


class _Records:
    """Reads prompts in the order of the outputs' lines, a window at a time; where both files have one order, once."""

    def __init__(self, prompts: PromptFile, places: "array[int]") -> None:
        self._prompts, self._places = prompts, places
        self._window = range(0)
        self._held: dict[int, Record] = {}
        self._wanted: set[int] = set()
        self._stream: Iterator[Record] | None = None
        self._read_to = -1

    def get(self, line: int) -> Record:
        """Gives the prompt of a line that has one."""
        if line not in self._window:
            self._window = range(line, min(line + WINDOW, len(self._places)))
            self._fill({self._places[each] for each in self._window} - {_NONE})
        return self._held[self._places[line]]

    def _fill(self, wanted: set[int]) -> None:
        if self._stream is None or (wanted and min(wanted) <= self._read_to):
            self._stream = self._prompts.records(lambda index: index in self._wanted)
            self._read_to = -1
        self._wanted, self._held = wanted, {}
        if not wanted:
            return
        for record in self._stream:
            self._held[record.index] = record
            self._read_to = record.index
            if len(self._held) == len(wanted):
                break


def _key_of(value: Any, record: Record) -> int:
    """Gives the key of the prompt that a line names; an answer to a prompt without an id names its contents."""
    if isinstance(value, dict) and type(value.get("occurrence")) is int and isinstance(value.get("content"), str):
        try:
            return nameless_key(int(value["content"], 16), value["occurrence"])
        except ValueError:
            pass
    return id_key(record.id)


def _with_prompt(output: GivenOutput, prompt: Record) -> GivenOutput:
    """Gives an output with a prompt, whose settings count where the output states none of its own."""
    own = {name: value for name in SETTINGS if (value := getattr(output.record, name)) is not None}
    record = dataclasses.replace(prompt, index=output.record.index, sample=output.record.sample, n=1, **own)
    return dataclasses.replace(output, record=record)
