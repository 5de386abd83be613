"""The answers of several processes in one file."""

import contextlib
import dataclasses
import json
import os
from array import array
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from jax_probe_mtp.files.answer_file import lines_of, lock, whole_records
from jax_probe_mtp.files.ids import Keys, KeySet, id_key, sample_key, sample_name
from jax_probe_mtp.files.json_lines import check_is_file
from jax_probe_mtp.files.prompt_file import PromptFile
from jax_probe_mtp.files.run_file import cut, differences, in_one_format, no_room, read_run, run_path, write_run
from jax_probe_mtp.files.whole_files import partial_path

_OFFSET_BITS = 48


@dataclasses.dataclass(frozen=True, kw_only=True)
class Merged:
    """What came of a merge.

    Attributes:
      num_written: answers in the new file.
      num_missing: records of the prompts that have no answer.
      num_left_out: answers to records that the prompts do not have, or ask otherwise.
      num_by_id: answers of an earlier version, which name nothing but their record's id: whether they are to its prompt is not
        known.
    """

    num_written: int
    num_missing: int
    num_left_out: int
    num_by_id: int


def merge(
    parts: Sequence[Path],
    output: Path,
    prompts: PromptFile | None,
    renew: Callable[[dict[str, Any]], dict[str, Any]] = dict,
    *,
    leaves_out_others: bool = False,
) -> Merged:
    """Makes one file of the answers of several, in the order of `prompts` or, without, one part after the other.

    With `prompts`, answers to records without an id get the numbers that their lines have there.

    Args:
      parts: files of answers, of runs that have ended.
      output: the file, with which a run can go on; one that is there is replaced when the new one is whole.
      prompts: the records that the answers belong to.
      renew: as for `AnswerFile`.
      leaves_out_others: True to leave out answers to records that `prompts` does not have, or has with other contents.

    Raises:
      ValueError: if the parts are of different runs, in use or torn, or hold an id twice, or one that `prompts` has not or asks
        otherwise.
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
            if not first and output.stat().st_size:
                raise ValueError(f"{output} is there and holds no answers; name another --output.")
            if first.keys() & {"prompt", "messages", "prompt_ids"} and "token_ids" not in first:
                raise ValueError(f"{output} is there and holds prompts, no answers; name another --output.")
            lock(opened.enter_context(output.open("ab")), output, is_shared=False)
        run, *others = in_one_format([renew(read_run(part)) for part in parts])
        for part, other in zip(parts[1:], others, strict=True):
            if different := differences(run, other):
                then, now = different
                raise ValueError(f"{parts[0]} was made with {then}, but {part} has {now}; merge files of one run.")
        places = _Places(parts, prompts, leaves_out_others=leaves_out_others, has_nameless="format" in run)
        opened.callback(partial.unlink, missing_ok=True)
        num_written = 0
        try:
            with partial.open("wb") as out:
                for index, offset, number in places.of(prompts):
                    files[index].seek(offset)
                    line = files[index].readline()
                    out.write(line if number is None else _numbered(line, number))
                    num_written += 1
                out.flush()
                os.fsync(out.fileno())
        except OSError as error:
            raise no_room(output, error, "nothing was changed") from None
        run_path(output).unlink(missing_ok=True)  # at no moment do answers stand beside the run of others
        os.replace(partial, output)
        write_run(output, run)
    return Merged(
        num_written=num_written,
        num_missing=prompts.num_records - num_written if prompts else 0,
        num_left_out=places.num_left_out,
        num_by_id=places.num_by_id,
    )


def _numbered(line: bytes, number: str | int) -> bytes:
    return (json.dumps(json.loads(line) | {"id": number}, ensure_ascii=False) + "\n").encode()


class _Places:
    """The place of each answer, in 20 bytes: its record's key, and part and offset as one number."""

    def __init__(
        self, parts: Sequence[Path], prompts: PromptFile | None, *, leaves_out_others: bool, has_nameless: bool
    ) -> None:
        keys, ids, self._places = array("Q"), array("Q"), array("Q")
        self.num_left_out = self.num_by_id = 0
        for index, part in enumerate(parts):
            start = 0
            for where, answer, key, end in whole_records(part):
                if "occurrence" in answer and not has_nameless:
                    way_out = "leave the part of the earlier version out"
                    raise ValueError(f"{where} answers a record without an id, which is known by no line; {way_out}.")
                if prompts is None:
                    ids.append(sample_key(id_key(answer["id"]), answer.get("sample", 0)))
                if self._belongs(where, answer, key, prompts, leaves_out_others=leaves_out_others):
                    keys.append(key)
                    self._places.append(index << _OFFSET_BITS | start)
                start = end
            if start != part.stat().st_size:
                raise ValueError(f"{part}: the last line is torn, so its run has not ended; go on with it first.")
        self._keys = Keys(keys)
        for key in KeySet(keys[:]).repeated():
            first, second = sorted(self._place(n)[0] for n, other in enumerate(keys) if other == key)[:2]
            _, answer = next(lines_of(key, parts[first]))
            name = sample_name(answer["id"], answer.get("sample"))
            raise ValueError(f"the id {name} is in {parts[first]} and {parts[second]}; leave one of them out.")

        if KeySet(ids).repeated():  # records without ids, by the numbers of the lines of several runs
            way_out = "give --input, which numbers them anew"
            raise ValueError(f"the same number is the id of several answers to records without one; {way_out}.")

    def _belongs(
        self, where: str, answer: dict[str, Any], key: int, prompts: PromptFile | None, *, leaves_out_others: bool
    ) -> bool:
        """Says whether the answer is to be written; it is not where its record is none of `prompts`."""
        if prompts is None:
            return True
        index = prompts.keys.find(key)
        if index is None:
            name = sample_name(answer["id"], answer.get("sample"))
            says = f"{prompts.path} has no id {name}"
            if "occurrence" in answer:
                says = f"{prompts.path} has no such record as line {name} was"
            if "sample" in answer:
                says += ", or asks for fewer answers (--n)"
        elif "content" not in answer:
            self.num_by_id += 1
            return True
        elif answer["content"] == f"{prompts.contents[index]:016x}":
            return True
        else:
            (record,) = prompts.records(index.__eq__)
            says = f"{prompts.path} asks something else under the id {cut(record.id)} ({record.differs_from(answer)})"
        if not leaves_out_others:
            way_out = "name the file that it was made of, or give --leave-out-others"
            raise ValueError(f"{where}: {says}; {way_out}.")
        self.num_left_out += 1
        return False

    def of(self, prompts: PromptFile | None) -> Iterator[tuple[int, int, str | int | None]]:
        """Gives part and offset of each answer: all, or in the order of `prompts`, with the number of a line without an id."""
        if prompts is None:
            yield from ((*self._place(n), None) for n in range(len(self._places)))
            return
        for record in prompts:
            found = self._keys.find(prompts.keys[record.index])
            if found is not None:
                yield *self._place(found), record.id if record.occurrence is not None else None

    def _place(self, number: int) -> tuple[int, int]:
        part, offset = divmod(self._places[number], 2**_OFFSET_BITS)
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
