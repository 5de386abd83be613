"""Reads files of one JSON value a line, and refuses others with a message that names the line."""

import json
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

MAX_LINE_BYTES = 16 * 2**20


def json_lines(path: Path, is_wanted: Callable[[int], bool] | None = None) -> Iterator[tuple[int, int, str, Any]]:
    """Gives each line that is not blank; holds one line in memory at a time.

    Args:
      path: the file.
      is_wanted: of a line's place among those that are not blank, from 0: the others are not looked into.

    Returns:
      Place, number (from 1), name for messages and JSON value.

    Raises:
      ValueError: for what is no regular file, and for a line that is too long, not UTF-8 or not JSON.
      OSError: if the file cannot be read.
    """
    check_is_file(path)
    with path.open("rb") as file:
        offset, number, place = 0, 0, -1
        while line := file.readline(MAX_LINE_BYTES + 1):
            number += 1
            where = f"{path}, line {number}"
            if len(line) > MAX_LINE_BYTES and not line.endswith(b"\n"):
                raise ValueError(f"{where} is longer than {MAX_LINE_BYTES} bytes; shorten it.")
            try:
                text = line.decode().removesuffix("\n")
            except UnicodeDecodeError as error:
                byte = offset + error.start
                raise ValueError(f"{where} is not UTF-8 (byte {byte} of the file); convert it first.") from None
            offset += len(line)
            if number == 1:
                text = text.removeprefix("\ufeff")
            if text.strip():
                place += 1
                if is_wanted is None or is_wanted(place):
                    yield place, number, where, _value(where, text)


def check_is_file(path: Path) -> None:
    """Refuses what cannot be read twice, without opening it: a pipe would wait for its other end."""
    if not stat.S_ISREG(path.stat().st_mode):
        raise ValueError(f"{path} is not a file but a folder, a pipe or a device; name a file.")


def check_id(where: str, name: object) -> None:
    """Raises ValueError unless `name` is a text or a whole number."""
    if not isinstance(name, str | int) or isinstance(name, bool):
        raise ValueError(f"{where}: id must be a text or a whole number, got {excerpt(name)}.")


def excerpt(value: object) -> str:
    """Gives the first characters of a JSON value, for messages."""
    try:
        return json.dumps(value)[:60]
    except RecursionError:  # reading it took less of the stack than writing it does
        return "a value that is nested deeply"


def _value(where: str, text: str) -> Any:
    try:
        value = json.loads(text)
        if "\\u" in text:  # nothing else can make half of a pair
            json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError:
        raise ValueError(f"{where} holds half of a surrogate pair, which is no character; write it whole.") from None
    except (ValueError, RecursionError) as error:  # a number or a nesting too large for Python among them
        raise ValueError(f"{where} is not JSON that can be read ({error}).") from None
    return value
