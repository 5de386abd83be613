"""Prompt files in and generation files out, JSON lines."""

import dataclasses
import json
import os
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from jax_probe_mtp.generation import Generation


def read_prompts(path: Path) -> list[dict[str, Any]]:
    """Reads one record a line: an object with a `prompt`, and an `id` or the line's number for one.

    Raises:
      ValueError: names the file, the line and what is wrong with it.
      OSError: if the file cannot be read.
    """
    records: list[dict[str, Any]] = []
    first_line: dict[str | int, int] = {}
    for number, line in enumerate(_lines(path), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} is not JSON ({error.msg} at column {error.colno}).") from None
        if not isinstance(record, dict) or not isinstance(record.get("prompt"), str):
            raise ValueError(f'{where} must be an object with a text "prompt", got {line.strip()[:60]}.')
        record.setdefault("id", number)
        name = record["id"]
        if not isinstance(name, str | int):
            raise ValueError(f"{where}: id must be a text or a whole number, got {json.dumps(name)[:60]}.")
        if name in first_line:
            raise ValueError(f"{where} has the id {name!r} of line {first_line[name]}; ids must differ.")
        first_line[name] = number
        records.append(record)
    if not records:
        raise ValueError(f"{path} holds no records; give one JSON object a line.")
    return records


def _lines(path: Path) -> Iterator[str]:
    try:
        yield from path.read_text(encoding="utf-8").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start}); convert it first.") from None


def write_generations(path: Path, generations: Iterable[Generation]) -> Iterator[Generation]:
    """Writes each generation as it passes; the file takes its name when the last one is in it.

    Until then it is called `path` + ".partial", so that a run that was cut off leaves nothing that looks whole.
    """
    partial = path.with_name(path.name + ".partial")
    with partial.open("w", encoding="utf-8") as file:
        for generation in generations:
            file.write(json.dumps(dataclasses.asdict(generation), ensure_ascii=False) + "\n")
            file.flush()
            yield generation
    os.replace(partial, path)
