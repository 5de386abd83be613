"""Reads chat completion responses of OpenAI's API and of servers that speak it, vLLM's among them.

The names are those of OpenAI's API reference, "The chat completion object".
"""

from collections.abc import Iterator
from typing import Any

from jax_probe_mtp.files.formats.given import GivenOutput, Item, objects, optional_text
from jax_probe_mtp.files.formats.openai_choice import given_choice, has_choices, token_of
from jax_probe_mtp.files.json_lines import excerpt

NEEDS = '"choices", a list of objects with "message"'
_BESIDE_CONTENT = ("tool_calls", "function_call", "reasoning_content", "reasoning", "refusal", "audio")


def matches(value: Any) -> bool:
    """Says whether a value is such a response."""
    return has_choices(value, "message", "chat.completion")


def read(item: Item, name: object = None) -> Iterator[GivenOutput]:
    """Gives all choices of one response.

    Args:
      item: the line.
      name: the record's id; the response's own where None.

    Raises:
      ValueError: names the line, the field and what is wrong with it.
    """
    where, fields = item.where, item.value
    for place, choice in enumerate(objects(where, "choices", fields["choices"])):
        message = choice.get("message")
        if not isinstance(message, dict):
            raise ValueError(f"{where}: message must be an object, got {excerpt(message)}.")
        logprobs = choice.get("logprobs")
        content = logprobs.get("content") if isinstance(logprobs, dict) else None
        tokens = objects(where, "logprobs.content", content) if content else None
        yield given_choice(
            item,
            name,
            place,
            choice,
            text=optional_text(where, "content", message.get("content")),
            token_texts=[_token(where, token) for token in tokens] if tokens else None,
            logprobs=[token.get("logprob") for token in tokens] if tokens else None,
            besides=[key for key in _BESIDE_CONTENT if message.get(key)],
        )


def _token(where: str, token: dict[str, Any]) -> bytes | str | int:
    text, data = token.get("token"), token.get("bytes")
    if not isinstance(text, str):
        raise ValueError(f"{where}: each token of logprobs must be a text, got {excerpt(text)}.")
    named = token_of(text)
    if isinstance(named, int) or data is None:
        return named
    if not isinstance(data, list) or not all(type(byte) is int and 0 <= byte < 256 for byte in data):
        raise ValueError(f"{where}: bytes of a token must be a list of numbers from 0 to 255, got {excerpt(data)}.")
    return bytes(data)
