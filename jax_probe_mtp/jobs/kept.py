"""Which answers of an output are those of the records as they are now."""

from array import array
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jax_probe_mtp.decoding.settings import Prompt
from jax_probe_mtp.files.answer_file import lines_of
from jax_probe_mtp.files.ids import content_digest, first_sample_key
from jax_probe_mtp.files.prompt_file import PromptFile
from jax_probe_mtp.files.records.record import Record


class Kept:
    """Compares answers with the records that they say they belong to.

    Attributes:
      is_kept: bool [num_records], True where the file holds the record's answer.
      failed: indices of the kept ones whose answer is an error.
      changed: indices of the records whose id has an answer, but to another prompt or with other settings.
      stale: keys of answers to other prompts, under the ids of records that ask for fewer samples now.
      num_others: answers to records that the prompt file does not have, or to samples that it does not ask for.
      num_other_errors: of these, those that are errors.
    """

    def __init__(self, prompts: PromptFile) -> None:
        self.is_kept = np.zeros(prompts.num_records, np.bool_)
        self.failed = array("I")
        self.changed = array("I")
        self.stale: dict[int, int] = {}  # each with the record's index
        self.num_others = self.num_other_errors = 0
        self._prompts = prompts
        self._prompt_digests = array("Q")  # of answers of an earlier version, which name no content; 0 of all others

    def see(self, key: int, answer: dict[str, Any]) -> None:
        """Takes an answer of the output, and the key of its record."""
        index, is_error = self._prompts.keys.find(key), answer.get("finish_reason") == "error"
        if index is None:
            first = self._prompts.keys.find(first_sample_key(answer))
            if first is not None and answer.get("content") != f"{self._prompts.contents[first]:016x}":
                self.stale[key] = first
            else:
                self.num_others += 1
                self.num_other_errors += is_error
        elif "content" not in answer:
            if not self._prompt_digests:
                self._prompt_digests.frombytes(bytes(8 * len(self.is_kept)))
            self._prompt_digests[index] = _digest(answer.get("prompt_ids"))
        elif answer["content"] == f"{self._prompts.contents[index]:016x}":
            self.is_kept[index] = True
            if is_error:
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
        of_key = self.stale | {self._prompts.keys[index]: index for index in self.changed}
        if not of_key:
            return
        key = min(of_key, key=of_key.__getitem__)
        (record,) = self._prompts.records(of_key[key].__eq__)
        _, answer = next(lines_of(key, output))
        raise ValueError(
            f"{output} answers {len(of_key)} records of {self._prompts.path} that have changed since, first the id "
            f"{record.id!r:.60}: {record.differs_from(answer)}; give --redo-changed to answer them anew, or name another "
            f"--output."
        )


def _digest(token_ids: Any) -> int:
    return content_digest({"prompt_ids": token_ids}) or 1
