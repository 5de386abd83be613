"""Prompt files in and generation files out, JSON lines."""

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from jax_probe_mtp.generation import Generation


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """Reads one record a line: an object with a `prompt`, an `id` (or the line's number for one) and perhaps a `seed`.

    Raises:
      ValueError: names the file, the line and what is wrong with it.
      OSError: if the file cannot be read.
    """
    records = []
    ids = _Ids()
    for number, where, record in _values(path):
        if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
            raise ValueError(f'{where} must be an object with a text "prompt", got {_start(record)}.')
        says = "has the id {}" if "id" in record else "has no id, and its number {} is the id"
        ids.add(number, where, record.setdefault("id", number), says)
        _check_unicode(where, record["prompt"])
        seed = record.get("seed")
        if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32):
            raise ValueError(f"{where}: seed must be a whole number from 0 to 2**32 - 1, got {_start(seed)}.")
        records.append(record)
    if not records:
        raise ValueError(f"{path} holds no records; give one JSON object a line.")
    return records


@dataclasses.dataclass(frozen=True, kw_only=True)
class Question:
    """One question of a benchmark: its id, its category and its first turn."""

    id: str | int
    category: str
    text: str


def read_questions(path: Path, per_category: int | None = None) -> list[Question]:
    """Reads questions as Spec-Bench writes them: a line is an object with `question_id`, `category` and `turns`.

    Args:
      path: the file.
      per_category: so many of each category, in file order; all when None. The whole file is checked all the same.

    Raises:
      ValueError: names the file, the line and what is wrong with it.
      OSError: if the file cannot be read.
    """
    if per_category is not None and per_category < 1:
        raise ValueError(f"per_category must be at least 1, got {per_category}.")
    questions: list[Question] = []
    taken: dict[str, int] = {}
    ids = _Ids()
    for number, where, record in _values(path):
        if not isinstance(record, dict) or "question_id" not in record:
            raise ValueError(f'{where} must be an object with a "question_id", got {_start(record)}.')
        ids.add(number, where, record["question_id"], "has the question_id {}")
        category, turns = record.get("category"), record.get("turns")
        if not isinstance(category, str) or not category:
            raise ValueError(f'{where} must have a text "category", got {_start(category)}.')
        if not isinstance(turns, list) or not turns or not isinstance(turns[0], str) or not turns[0]:
            raise ValueError(f'{where} must have "turns", a list that begins with a text, got {_start(turns)}.')
        _check_unicode(where, category, turns[0])
        taken[category] = taken.get(category, 0) + 1
        if per_category is None or taken[category] <= per_category:
            questions.append(Question(id=record["question_id"], category=category, text=turns[0]))
    if not questions:
        raise ValueError(f"{path} holds no questions; give one JSON object a line.")
    return questions


def _values(path: Path) -> Iterator[tuple[int, str, Any]]:
    """Number, name for messages and JSON value of each line that is not blank."""
    for number, line in enumerate(_lines(path), start=1):
        if line.strip():
            where = f"{path}, line {number}"
            try:
                yield number, where, json.loads(line)
            except (ValueError, RecursionError) as error:  # a number or a nesting too large for Python among them
                raise ValueError(f"{where} is not JSON that can be read ({error}).") from None


class _Ids:
    """The ids so far, each a text or a whole number and there once."""

    def __init__(self) -> None:
        self._line_of: dict[str, int] = {}

    def add(self, number: int, where: str, name: object, says: str) -> None:
        if not isinstance(name, str | int) or isinstance(name, bool):
            raise ValueError(f"{where}: id must be a text or a whole number, got {_start(name)}.")
        _check_unicode(where, str(name))
        if str(name) in self._line_of:  # 1 and "1" would draw the same noise
            raise ValueError(f"{where} {says.format(repr(name))} of line {self._line_of[str(name)]}; ids must differ.")
        self._line_of[str(name)] = number


def _start(value: object) -> str:
    return json.dumps(value)[:60]


def _check_unicode(where: str, *texts: str) -> None:
    for text in texts:
        try:
            text.encode()
        except UnicodeEncodeError:
            raise ValueError(
                f"{where} holds half of a surrogate pair, which is no character; write it whole."
            ) from None


def _lines(path: Path) -> Iterator[str]:
    try:
        yield from path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}); convert it first.") from None


def check_output(path: Path, prompts: Path) -> None:
    """Finds out before anything runs whether the answers can be written.

    Raises:
      ValueError: if `path` is there and no regular file, is in no folder, or is the file of the prompts.
    """
    if path.exists() and not path.is_file():
        raise ValueError(f"--output {path} is not a file but a folder or a device; name a file.")
    if not path.parent.is_dir():
        raise ValueError(f"--output {path} is in a folder that does not exist; make it first.")
    if path.exists() and path.samefile(prompts):
        raise ValueError(f"--output {path} is the file of the prompts; name another.")


def write_generations(path: Path, generations: Iterable[Generation]) -> Iterator[Generation]:
    """Writes each generation as it passes; the file takes its name when the last one is in it.

    Until then it is called `path` + ".partial", so that a run that was cut off leaves nothing that looks whole.
    """
    path = path.resolve()  # a link keeps pointing where it does
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        for generation in generations:
            file.write(json.dumps(dataclasses.asdict(generation), ensure_ascii=False) + "\n")
            file.flush()
            yield generation
    os.replace(partial, path)


def write_json(path: Path, record: object) -> None:
    """Replaces the file by the record at once: whoever reads it finds the old one or the new one, never a part."""
    path = path.resolve()  # a link keeps pointing where it does
    partial = path.with_name(path.name + ".partial")
    partial.write_text(json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
    os.replace(partial, path)


def write_files(folder: Path, texts: dict[str, str]) -> list[Path]:
    """Writes a text under each name into `folder`, which is made if need be, and gives the files in the same order.

    All texts are on the disk before the first takes its name, so that a full disk leaves the old files as they were.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in texts.items():
        (folder / f"{name}.partial").write_text(text, encoding="utf-8")
    for name in texts:
        os.replace(folder / f"{name}.partial", folder / name)
    return [folder / name for name in texts]
