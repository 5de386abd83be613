"""Reads one choice of a response of OpenAI's API, or of a server that speaks it: of a chat or of a plain completion.

The names are those of OpenAI's API reference, for token ids those of vLLM's
`vllm/entrypoints/openai/chat_completion/protocol.py` and `.../completion/protocol.py`.
"""

from typing import Any

from jax_probe_mtp.files.formats.given import (
    GivenOutput,
    Item,
    all_numbers,
    category_of,
    optional_text,
    record_of,
    sample_of,
    stop_reason_of,
    whole_numbers,
)
from jax_probe_mtp.files.records.record_fields import OF_PROMPT

_TOKEN_ID = "token_id:"  # how vLLM names a token by its id
# A seed is of another noise; the other fields that a response has are no settings either.
_NO_SETTINGS = {"id", "choices", "seed"}


def has_choices(value: Any, key: str, kind: str) -> bool:
    """Says whether a value is a response of a kind, by its `object` or by what its first choice holds."""
    choices = value.get("choices") if isinstance(value, dict) else None
    if not isinstance(choices, list):
        return False
    return value.get("object") == kind or (bool(choices) and isinstance(choices[0], dict) and key in choices[0])


def given_choice(
    item: Item,
    name: object,
    place: int,
    choice: dict[str, Any],
    *,
    text: str | None,
    token_texts: list[bytes | str | int] | None,
    logprobs: list[Any] | None,
    besides: list[str] | None = None,
    is_plain_prompt: bool = False,
) -> GivenOutput:
    """Gives one choice of a response, of a chat or not.

    Args:
      item: the line.
      name: the record's id; the response's own where None.
      place: of the choice among the others.
      choice: its JSON object.
      text: what it says.
      token_texts: its tokens, None if nobody says.
      logprobs: theirs, any JSON values.
      besides: names of what the model wrote and `text` does not hold.
      is_plain_prompt: as in `GivenOutput`.
    """
    where, fields = item.where, item.value
    name = fields.get("id") if name is None else name
    asked = {key: value for key, value in fields.items() if key not in _NO_SETTINGS}
    for of_prompt in (fields.get("prompt_token_ids"), choice.get("prompt_token_ids")):
        if of_prompt is not None:  # what the prompt was in the end
            asked = {key: value for key, value in asked.items() if key not in OF_PROMPT}
            asked["prompt_ids"] = whole_numbers(where, "prompt_token_ids", of_prompt)
    token_ids, error = choice.get("token_ids"), None
    if token_ids is not None:
        whole_numbers(where, "token_ids", token_ids)
    elif token_texts and all(isinstance(token, int) for token in token_texts):
        token_ids, token_texts = [token for token in token_texts if isinstance(token, int)], None
    elif besides:
        error = (
            f"the answer has {' and '.join(besides)}, and without token ids its text is not all that the model wrote."
        )
    elif text is None:
        error = "the answer has neither text nor token ids."
    known = all_numbers(logprobs) if logprobs else None
    if token_ids is not None and known is not None and len(known) != len(token_ids):
        known = None
    return GivenOutput(
        record=record_of(
            item,
            item.number if name is None else name,
            asked,
            sample=sample_of(where, "index", choice.get("index"), place),
        ),
        is_named=name is not None,
        is_plain_prompt=is_plain_prompt,
        token_ids=token_ids,
        text=text,
        logprobs=known,
        token_texts=token_texts if token_ids is None else None,
        finish_reason=optional_text(where, "finish_reason", choice.get("finish_reason")),
        says_stop_reason="stop_reason" in choice,
        stop_reason=stop_reason_of(where, choice),
        category=category_of(where, fields),
        error=error,
    )


def token_of(text: str) -> str | int:
    """Gives the id of a token that is named by it, and any other token's text."""
    number = text.removeprefix(_TOKEN_ID)
    return int(number) if number != text and number.isascii() and number.isdigit() and len(number) < 10 else text
