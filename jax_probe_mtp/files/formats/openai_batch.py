"""Reads output lines of OpenAI's batches, and of vLLM's `run_batch`: a response for each request, by its `custom_id`.

The names are those of OpenAI's API reference, "The request output object" of Batch.
"""

import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

from jax_probe_mtp.files.formats import openai_chat, openai_completion
from jax_probe_mtp.files.formats.given import GivenOutput, Item, record_of
from jax_probe_mtp.files.json_lines import check_id, excerpt
from jax_probe_mtp.files.records.record_fields import SOURCES

NEEDS = '"custom_id", and "response" or "error"'
_OK = 200


def matches(value: Any) -> bool:
    """Says whether a value is such a line."""
    return isinstance(value, dict) and "custom_id" in value and bool({"response", "error"} & value.keys())


def read(item: Item) -> Iterator[GivenOutput]:
    """Gives all choices of one response; of a request that failed one output that says why.

    Raises:
      ValueError: names the line, the field and what is wrong with it.
    """
    fields = item.value
    name, response = fields["custom_id"], fields.get("response")
    check_id(item.where, name)
    body = response.get("body") if isinstance(response, dict) else None
    status = response.get("status_code") if isinstance(response, dict) else None
    if fields.get("error") is not None or response is None or status not in (None, _OK):
        error = f"the request failed: {_why(fields.get('error'), status, body)}."
        yield GivenOutput(record=record_of(item, name, {}), error=error)
        return
    request = fields["body"] if isinstance(fields.get("body"), dict) else {}
    of_line = request | {key: fields[key] for key in ("category", *SOURCES) if key in fields}
    inner = dataclasses.replace(item, value={**of_line, **body} if isinstance(body, dict) else body)
    for form in (openai_chat, openai_completion):
        if form.matches(inner.value):
            yield from form.read(inner, name)
            return
    raise ValueError(f"{item.where}: response.body must be a chat or a plain completion, got {excerpt(body)}.")


def _why(error: object, status: object, body: object) -> str:
    if error is None and isinstance(body, Mapping):
        error = body.get("error")
    said = [error.get("code"), error.get("message")] if isinstance(error, Mapping) else [error]
    parts = [f"status {status}"] if status not in (None, _OK) else []
    parts += [str(each) for each in said if each]
    return ", ".join(parts).rstrip(".")[:200] or "it has no response"
