"""One output as a file gives it, in whatever format: what was asked, what came, and how far that is known."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

from jax_probe_mtp.files.ids import content_digest
from jax_probe_mtp.files.json_lines import check_id, excerpt
from jax_probe_mtp.files.records.record import Record, checked_values
from jax_probe_mtp.files.records.record_fields import SOURCES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Item:
    """A line of a file, or a member of its JSON array.

    Attributes:
      index: its place among the others, from 0.
      number: its line's number or, in an array, its place from 1.
      where: its name for messages.
      value: its JSON value.
    """

    index: int
    number: int
    where: str
    value: Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class GivenOutput:
    """What a file says of one output.

    Attributes:
      record: id, sample, prompt and sampling settings that the file states; without a prompt where the file has none.
      is_named: False where the file has no id, and the record's is the number of its line.
      is_plain_prompt: True where the prompt is text that went into the model as it is, not through a chat template.
      token_ids: of the output; None where the file has text alone.
      text: of the output; None where the file has none.
      logprobs: of each of `token_ids` or, without them, of `token_texts`; None where the file does not state all of them.
      token_texts: the tokens' bytes or, where these are not known, texts; an id where a token is named by its id.
      finish_reason: "stop" at an end of the text, "length" at the limit; other tools have more; None where nobody says.
      says_stop_reason: True where the file would say which stop text or token ended the output.
      stop_reason: that text, or that token's id.
      category: a name to sum up by.
      includes_prompt: True where `token_ids` or `text` begin with the prompt's own.
      is_padded: True where `token_ids` may go on behind the end of the text, as rows of one batch do.
      error: why there is nothing to check; then only the record's id counts.
    """

    record: Record
    is_named: bool = True
    is_plain_prompt: bool = False
    token_ids: list[int] | None = None
    text: str | None = None
    logprobs: list[float] | None = None
    token_texts: list[bytes | str | int] | None = None
    finish_reason: str | None = None
    says_stop_reason: bool = False
    stop_reason: str | int | None = None
    category: str | None = None
    includes_prompt: bool = False
    is_padded: bool = False
    error: str | None = None

    @property
    def has_prompt(self) -> bool:
        """Says whether the file holds the prompt."""
        return any(getattr(self.record, source) is not None for source in SOURCES)


def record_of(item: Item, name: object, fields: Mapping[str, Any], *, sample: int = 0) -> Record:
    """Makes the record that an output belongs to. It may lack a prompt; all else is checked as in a prompt file.

    Args:
      item: the line.
      name: the record's id.
      fields: prompt and settings, by the names that a prompt file has for them; other settings of other tools are refused.
      sample: which of the record's outputs it is.

    Raises:
      ValueError: names the line, the field and what is wrong with it.
    """
    where = item.where
    check_id(where, name)
    assert isinstance(name, str | int)
    values = checked_values(where, fields)
    values.pop("n", None)  # each output is one
    return Record(index=item.index, id=name, content=content_digest(values), sample=sample, **values)


def objects(where: str, name: str, value: object) -> list[dict[str, Any]]:
    """Gives a list of objects; raises ValueError unless it is one, with at least one object."""
    if not isinstance(value, list) or not value or not all(isinstance(each, dict) for each in value):
        raise ValueError(f"{where}: {name} must be a list of objects, at least one, got {excerpt(value)}.")
    return value


def whole_numbers(where: str, name: str, value: object) -> list[int]:
    """Gives a list of token ids; raises ValueError unless it is one."""
    if not isinstance(value, list) or not all(type(token) is int for token in value):
        raise ValueError(f"{where}: {name} must be a list of whole numbers, got {excerpt(value)}.")
    return value


def optional_text(where: str, name: str, value: object) -> str | None:
    """Gives a text or None; raises ValueError for anything else."""
    if not isinstance(value, str | None):
        raise ValueError(f"{where}: {name} must be a text, got {excerpt(value)}.")
    return value


def stop_reason_of(where: str, fields: Mapping[str, Any]) -> str | int | None:
    """Gives the stop text or token that an object names; raises ValueError for anything else."""
    reason = fields.get("stop_reason")
    if reason is not None and type(reason) not in (str, int):
        raise ValueError(f"{where}: stop_reason must be a text or a token id, got {excerpt(reason)}.")
    return reason


def category_of(where: str, fields: Mapping[str, Any]) -> str | None:
    """Gives the category that an object states; raises ValueError unless it is a text."""
    category = fields.get("category")
    if category is not None and (not isinstance(category, str) or not category):
        raise ValueError(f"{where}: category must be a text, got {excerpt(category)}.")
    return category


def sample_of(where: str, name: str, value: object, place: int) -> int:
    """Gives the number of an output among those of its prompt, its place in their list where it has none.

    Raises:
      ValueError: if it is none.
    """
    if value is None:
        return place
    if type(value) is not int or value < 0:
        raise ValueError(f"{where}: {name} must be a whole number of at least 0, got {excerpt(value)}.")
    return value


def all_numbers(values: list[object]) -> list[float] | None:
    """Gives log-probabilities where each of them is known: a number, and not above 0 by more than rounding."""
    known = [float(v) for v in values if isinstance(v, int | float) and not isinstance(v, bool) and not math.isnan(v)]
    return known if len(known) == len(values) else None
