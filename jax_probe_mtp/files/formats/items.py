"""Reads the lines of a file or, where it is one JSON array, its members."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jax_probe_mtp.files.formats.given import Item
from jax_probe_mtp.files.json_lines import MAX_LINE_BYTES, check_is_file, json_lines

MAX_ARRAY_BYTES = 256 * 2**20  # as Python objects it takes some five times as much


def items(path: Path) -> Iterator[Item]:
    """Gives each line that is not blank, one at a time, or each member of a file that is one array, which is read whole.

    Raises:
      ValueError: for a line that `json_lines` refuses, and for an array that is too large or cannot be read.
      OSError: if the file cannot be read.
    """
    if not is_array(path):
        for place, number, where, value in json_lines(path):
            yield Item(index=place, number=number, where=where, value=value)
        return
    for index, value in enumerate(_members(path)):
        yield Item(index=index, number=index + 1, where=f"{path}, member {index + 1}", value=value)


def is_array(path: Path) -> bool:
    """Says whether a file is one JSON array, and not lines of which each may be one."""
    check_is_file(path)
    with path.open("rb") as file:
        line = file.readline(MAX_LINE_BYTES).removeprefix(b"\xef\xbb\xbf")
        while line and not line.strip():
            line = file.readline(MAX_LINE_BYTES)
        if not line.lstrip().startswith(b"["):
            return False
        if not line.endswith(b"\n") or not any(rest.strip() for rest in iter(lambda: file.readline(2**16), b"")):
            return True
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return True  # it goes on in the next line
    return False


def _members(path: Path) -> list[Any]:
    size = path.stat().st_size
    if size > MAX_ARRAY_BYTES:
        raise ValueError(
            f"{path} is one JSON array of {size} bytes, and one of more than {MAX_ARRAY_BYTES} would have to be held in "
            "memory as a whole; write one object a line (jq -c '.[]')."
        )
    try:
        text = path.read_bytes().decode("utf-8-sig")
        members = json.loads(text)
        if "\\u" in text:  # nothing else can make half of a surrogate pair
            json.dumps(members, ensure_ascii=False).encode()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 (byte {error.start} of the file); convert it first.") from None
    except UnicodeEncodeError:
        raise ValueError(f"{path} holds half of a surrogate pair, which is no character; write it whole.") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON that can be read ({error}).") from None
    if not isinstance(members, list):
        raise ValueError(f"{path} is not JSON that can be read (it begins as an array and is none).")
    return members
