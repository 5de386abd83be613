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
    records: list[dict[str, Any]] = []
    first_line: dict[str, int] = {}
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:  # a number or a nesting too large for Python among them
            raise ValueError(f"{where} is not JSON that can be read ({error}).") from None
        if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
            raise ValueError(f'{where} must be an object with a text "prompt", got {line.strip()[:60]}.')
        has_id = "id" in record
        name = record.setdefault("id", number)
        if not isinstance(name, str | int) or isinstance(name, bool):
            raise ValueError(f"{where}: id must be a text or a whole number, got {json.dumps(name)[:60]}.")
        for text in (record["prompt"], str(name)):
            if not _is_unicode(text):
                raise ValueError(f"{where} holds half of a surrogate pair, which is no character; write it whole.")
        seed = record.get("seed")
        if seed is not None and (not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < 2**32):
            raise ValueError(f"{where}: seed must be a whole number from 0 to 2**32 - 1, got {json.dumps(seed)[:60]}.")
        if str(name) in first_line:  # 1 and "1" would draw the same noise
            says = f"has the id {name!r}" if has_id else f"has no id, and its number {name} is the id"
            raise ValueError(f"{where} {says} of line {first_line[str(name)]}; ids must differ.")
        first_line[str(name)] = number
        records.append(record)
    if not records:
        raise ValueError(f"{path} holds no records; give one JSON object a line.")
    return records


def _is_unicode(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True


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
