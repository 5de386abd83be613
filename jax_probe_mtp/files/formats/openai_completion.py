"""Reads plain completion responses of OpenAI's API and of servers that speak it, vLLM's among them.

The names are those of OpenAI's API reference, "The completion object". Such prompts pass no chat template.
"""

from collections.abc import Iterator
from typing import Any

from jax_probe_mtp.files.formats.given import GivenOutput, Item, objects, optional_text
from jax_probe_mtp.files.formats.openai_choice import given_choice, has_choices, token_of
from jax_probe_mtp.files.json_lines import excerpt

NEEDS = '"choices", a list of objects with "text"'


def matches(value: Any) -> bool:
    """Says whether a value is such a response."""
    return has_choices(value, "text", "text_completion")


def read(item: Item, name: object = None) -> Iterator[GivenOutput]:
    """Gives all choices of one response.

    Args:
      item: the line.
      name: the record's id; the response's own where None.

    Raises:
      ValueError: names the line, the field and what is wrong with it.
    """
    where = item.where
    for place, choice in enumerate(objects(where, "choices", item.value["choices"])):
        logprobs = choice.get("logprobs")
        logprobs = logprobs if isinstance(logprobs, dict) else {}
        tokens, values = logprobs.get("tokens"), logprobs.get("token_logprobs")
        if tokens is not None and (not isinstance(tokens, list) or not all(isinstance(token, str) for token in tokens)):
            raise ValueError(f"{where}: logprobs.tokens must be a list of texts, got {excerpt(tokens)}.")
        is_whole = tokens is not None and isinstance(values, list) and len(values) == len(tokens)
        yield given_choice(
            item,
            name,
            place,
            choice,
            text=optional_text(where, "text", choice.get("text")),
            token_texts=[token_of(token) for token in tokens] if tokens else None,
            logprobs=values if is_whole else None,
            is_plain_prompt=True,
        )
