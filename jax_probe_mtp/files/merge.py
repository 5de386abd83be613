"""The answers of several processes in one file."""

import contextlib
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jax_probe_mtp.files.answer_file import lines_of, lock, whole_records
from jax_probe_mtp.files.ids import id_digest
from jax_probe_mtp.files.json_lines import check_is_file
from jax_probe_mtp.files.prompt_file import PromptFile
from jax_probe_mtp.files.run_file import cut, differences, no_room, read_run, run_path, write_run
from jax_probe_mtp.files.whole_files import partial_path

_OFFSET_BITS = 48


def merge(
    parts: Sequence[Path],
    output: Path,
    prompts: PromptFile | None,
    renew: Callable[[dict[str, Any]], dict[str, Any]] = dict,
) -> tuple[int, int]:
    """Makes one file of the answers of several, in the order of `prompts` or, without, one part after the other.

    Args:
      parts: files of answers, of runs that have ended.
      output: the file, with which a run can go on; one that is there is replaced when the new one is whole.
      prompts: the records that the answers belong to.
      renew: as for `AnswerFile`.

    Returns:
      The records written, and the records of `prompts` that have no answer.

    Raises:
      ValueError: if the parts are of different runs, in use or torn, or hold an id twice or one that `prompts` has not.
      OSError: if a file cannot be read or written.
    """
    output = output.resolve()  # a link keeps pointing where it does
    partial = partial_path(output)
    _check_files(parts, [output, run_path(output)], prompts)
    with contextlib.ExitStack() as opened:
        files = [opened.enter_context(part.open("rb")) for part in parts]
        for file, part in zip(files, parts, strict=True):
            lock(file, part, is_shared=True)
        if output.exists():
            _, first, *_ = next(whole_records(output), ("", {}))
            if first.keys() & {"prompt", "messages", "prompt_ids"} and "token_ids" not in first:
                raise ValueError(f"{output} is there and holds prompts, no answers; name another --output.")
            lock(opened.enter_context(output.open("ab")), output, is_shared=False)
        run = renew(read_run(parts[0]))
        for part in parts[1:]:
            if different := differences(run, renew(read_run(part))):
                then, now = different
                raise ValueError(f"{parts[0]} was made with {then}, but {part} has {now}; merge files of one run.")
        places = _Places(parts, prompts)
        opened.callback(partial.unlink, missing_ok=True)
        num_written = 0
        try:
            with partial.open("wb") as out:
                for index, offset in places.of(prompts):
                    files[index].seek(offset)
                    out.write(files[index].readline())
                    num_written += 1
                out.flush()
                os.fsync(out.fileno())
        except OSError as error:
            raise no_room(output, error, "nothing was changed") from None
        run_path(output).unlink(missing_ok=True)  # at no moment do answers stand beside the run of others
        os.replace(partial, output)
        write_run(output, run)
    return num_written, prompts.num_records - num_written if prompts else 0


class _Places:
    """The place of each record, in 24 bytes: its id's digest, part and offset as one number, sorted order."""

    def __init__(self, parts: Sequence[Path], prompts: PromptFile | None) -> None:
        digests, places = array("Q"), array("Q")
        for index, part in enumerate(parts):
            start = 0
            for where, record, digest, end in whole_records(part):
                if prompts is not None and record["id"] not in prompts.ids:
                    way_out = "name the file that it was made of"
                    raise ValueError(f"{where}: {prompts.path} has no id {cut(record['id'])}; {way_out}.")
                digests.append(digest)
                places.append(index << _OFFSET_BITS | start)
                start = end
            if start != part.stat().st_size:
                raise ValueError(f"{part}: the last line is torn, so its run has not ended; go on with it first.")
        self._digests, self._places = np.asarray(digests), np.asarray(places)
        self._order = np.argsort(self._digests)
        in_order = self._digests[self._order]
        for i in np.flatnonzero(in_order[1:] == in_order[:-1]):
            (first, _), (second, _) = sorted(map(self._place, self._order[i : i + 2]))
            _, name = next(lines_of(in_order[i], parts[first]))
            raise ValueError(f"the id {cut(name)} is in {parts[first]} and {parts[second]}; leave one of them out.")

    def of(self, prompts: PromptFile | None) -> Iterator[tuple[int, int]]:
        """Gives part and offset of each record: of those of `prompts` that have one, or of all."""
        if prompts is None:
            yield from map(self._place, range(len(self._places)))
            return
        for record in prompts:
            digest = np.uint64(id_digest(record.id))
            index = np.searchsorted(self._digests, digest, sorter=self._order)
            if index < len(self._order) and self._digests[self._order[index]] == digest:
                yield self._place(self._order[index])

    def _place(self, index: int) -> tuple[int, int]:
        part, offset = divmod(int(self._places[index]), 2**_OFFSET_BITS)
        return part, offset


def _check_files(parts: Sequence[Path], written: Sequence[Path], prompts: PromptFile | None) -> None:
    if not parts:
        raise ValueError("there are no files to merge; name at least one.")
    for index, part in enumerate(parts):
        check_is_file(part)
        if any(part.samefile(other) for other in parts[:index]):
            raise ValueError(f"{part} is named twice; name it once.")
    read = [*parts, *map(run_path, parts), *([prompts.path] if prompts else [])]
    for path in written:
        if path.exists() and any(path.samefile(other) for other in read):
            raise ValueError(f"{path} would be written over, but is read; name another --output.")
