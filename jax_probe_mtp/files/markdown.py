"""Numbers, names that may hold anything, and Markdown tables of both, as reports write them."""

import re
from collections.abc import Sequence


def number(value: float | None, form: str) -> str:
    """Writes a measure by a format specification, or n/a where nothing was measured."""
    return "n/a" if value is None else format(value, form)


def ratio(value: float | None) -> str:
    """Writes two decimals, or three or four where fewer would hide on which side of 1 the value is."""
    if value is None:
        return "n/a"
    for digits in (2, 3, 4):
        text = f"{value:.{digits}f}"
        if float(text) != 1:
            return text
    return "1.00"


def printable(text: str) -> str:
    """Puts text into one line without what UTF-8 and XML cannot hold: half a surrogate pair, control characters."""
    one_line = " ".join(text.split())
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in one_line)


def cell(text: str) -> str:
    """Gives printable text whose characters mean nothing to Markdown, in a table or outside."""
    return re.sub(r"([\\|`*<\[&])", r"\\\1", printable(text))


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Writes a Markdown table; each row has as many texts as there are columns."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(map(cell, line)) + " |" for line in lines)
