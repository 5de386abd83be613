"""Which answers of an output are those of the records as they are now."""

from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jax_probe_mtp.decoding.settings import Prompt
from jax_probe_mtp.files.answer_file import lines_of
from jax_probe_mtp.files.ids import content_digest
from jax_probe_mtp.files.prompt_file import PromptFile
from jax_probe_mtp.files.records.record import Record


class Kept:
    """Compares answers with the records that they say they belong to.

    Attributes:
      is_kept: bool [num_records], True where the file holds the record's answer.
      failed: indices of the kept ones whose answer is an error.
      changed: indices of the records whose id has an answer, but to another prompt or with other settings.
      num_others: answers to records that the prompt file does not have.
    """

    def __init__(self, prompts: PromptFile) -> None:
        self.is_kept = np.zeros(prompts.num_records, np.bool_)
        self.failed = array("I")
        self.changed = array("I")
        self.num_others = 0
        self._prompts = prompts
        self._prompt_digests = array("Q")  # of answers of an earlier version, which name no content; 0 of all others

    def see(self, key: int, answer: dict[str, Any]) -> None:
        """Takes an answer of the output, and the key of its record."""
        index = self._prompts.keys.find(key)
        if index is None:
            self.num_others += 1
        elif "content" not in answer:
            if not self._prompt_digests:
                self._prompt_digests.frombytes(bytes(8 * len(self.is_kept)))
            self._prompt_digests[index] = _digest(answer.get("prompt_ids"))
        elif answer["content"] == f"{self._prompts.contents[index]:016x}":
            self.is_kept[index] = True
            if answer.get("finish_reason") == "error":
                self.failed.append(index)
        else:
            self.changed.append(index)

    def compare_prompts(self, encode: Callable[[Record], Prompt]) -> None:
        """Decides about the answers of an earlier version: they are kept where their prompt is the record's, token by token."""
        if not self._prompt_digests:
            return
        for record in self._prompts.records(lambda index: self._prompt_digests[index] != 0):
            try:
                token_ids = list(encode(record).token_ids)
            except ValueError:  # then the answer is this error, and has no tokens
                token_ids = []
            self.is_kept[record.index] = is_same = self._prompt_digests[record.index] == _digest(token_ids)
            if not is_same:
                self.changed.append(record.index)
        self._prompt_digests = array("Q")

    def let_go(self, indices: Sequence[int]) -> set[int]:
        """Keeps the answers of these records no longer, and gives their keys."""
        self.is_kept[list(indices)] = False
        return {self._prompts.keys[index] for index in indices}

    def refuse_changed(self, output: Path) -> None:
        """Raises ValueError, which says what differs, if an answer of `output` is to a record that has changed."""
        if not self.changed:
            return
        first = min(self.changed)
        (record,) = self._prompts.records(first.__eq__)
        _, answer = next(lines_of(self._prompts.keys[first], output))
        raise ValueError(
            f"{output} answers {len(self.changed)} records of {self._prompts.path} that have changed since, first the id "
            f"{record.id!r:.60}: {record.differs_from(answer)}; give --redo-changed to answer them anew, or name another "
            f"--output."
        )


def _digest(token_ids: Any) -> int:
    return content_digest({"prompt_ids": token_ids}) or 1
