"""Files of outputs that some framework gave: checked as a whole before anything runs, then read record by record."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jax_probe_mtp.files.json_lines import excerpt
from jax_probe_mtp.files.prompt_file import PromptFile
from jax_probe_mtp.files.records.record import Record, parsed_records


class OutputFile:
    """A file with one JSON object a line: a prompt as in a prompt file, and `token_ids`. Building it checks each line.

    Other fields that are read: `category`, `sample`, and what a prompt file may say of a record (its limit, sampling, seed and
    stop texts). The answers of `generate` are such a file.

    Args:
      path: the file.

    Raises:
      ValueError: names the file, the line and what is wrong with it.
      OSError: if the file cannot be read.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        PromptFile(path, are_answers=True)
        for _ in self:
            pass

    def __iter__(self) -> Iterator[tuple[Record, list[int], str | None]]:
        """Gives the record, its output's token ids and its category, line by line."""
        for record, fields, _, where in parsed_records(self._path, are_answers=True):
            yield record, _token_ids(where, fields), _category(where, fields)


def categories(path: Path) -> dict[str | int, str | None]:
    """Gives the category of each record of a prompt file, None where it has none.

    Raises:
      ValueError: names the file, the line and what is wrong with it.
    """
    return {record.id: _category(where, fields) for record, fields, _, where in parsed_records(path)}


def _category(where: str, fields: dict[str, Any]) -> str | None:
    category = fields.get("category")
    if category is not None and (not isinstance(category, str) or not category):
        raise ValueError(f"{where}: category must be a text, got {excerpt(category)}.")
    return category


def _token_ids(where: str, fields: dict[str, Any]) -> list[int]:
    token_ids = fields.get("token_ids")
    if not isinstance(token_ids, list) or not all(type(token) is int for token in token_ids):
        raise ValueError(f"{where}: token_ids must be a list of whole numbers, got {excerpt(token_ids)}.")
    return token_ids
