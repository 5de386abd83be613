"""Reads answers of `generate`, and any file that is written as they are: a prompt file's fields and `token_ids`."""

from collections.abc import Iterator
from typing import Any

from jax_probe_mtp.files.formats.given import GivenOutput, Item, category_of, record_of, sample_of, whole_numbers
from jax_probe_mtp.files.records.openai_forms import of_batch_line
from jax_probe_mtp.files.records.record_fields import SOURCES

NEEDS = f'"token_ids", and one of {", ".join(SOURCES)}'


def matches(value: Any) -> bool:
    """Says whether a value is one, or a prompt file's line."""
    if not isinstance(value, dict):
        return False
    return bool({"token_ids", *SOURCES} & value.keys()) or {"custom_id", "body"} <= value.keys()


def read(item: Item) -> Iterator[GivenOutput]:
    """Gives the output of one line; its prompt may be missing.

    Raises:
      ValueError: names the line, the field and what is wrong with it.
    """
    fields = of_batch_line(item.where, item.value)
    sample = fields.get("sample")
    record = record_of(
        item,
        fields.get("id", item.number),
        fields,
        sample=sample_of(item.where, "sample", sample if type(sample) is int else None, 0),  # else it is another tool's
    )
    yield GivenOutput(
        record=record,
        is_named="id" in fields,
        token_ids=whole_numbers(item.where, "token_ids", fields.get("token_ids")),
        category=category_of(item.where, fields),
    )
