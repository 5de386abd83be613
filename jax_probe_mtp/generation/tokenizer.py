"""Text to ids and back, on top of a `transformers` fast tokenizer."""

import contextlib
import datetime
import functools
import string
from collections.abc import Mapping, Sequence
from typing import Any

from jax_probe_mtp.errors import one_line

# Takes the place of the function that transformers gives to templates, to which only plain values can be given.
_STRFTIME_NOW = (
    "{%- macro strftime_now(format) -%}{%- set said = namespace(text=format) -%}"
    "{%- for code, value in strftime_codes.items() -%}"
    "{%- set said.text = said.text.replace(code, value) -%}"
    "{%- endfor -%}{{- said.text -}}{%- endmacro %}\n"  # transformers takes away a newline after a tag
)


def encode(tokenizer: Any, prompt: str, *, use_chat_template: bool, date: datetime.datetime | None = None) -> list[int]:
    """Ids of one user prompt.

    With a chat template the prompt becomes the user's turn, after the template's own default system prompt, and the
    assistant's turn is opened; every special token comes from the template, so that the beginning of text is there once.
    Without one, the tokenizer adds what it adds to plain text. `date` is what a template that asks for the date is told,
    the present when None.

    Raises:
      ValueError: if the template is asked for and the tokenizer has none or it fails, or the prompt is not Unicode text.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError as error:  # from arguments in another encoding
        raise ValueError(f"the prompt is not UTF-8 text (character {error.start}); convert it first.") from None
    if not use_chat_template:
        return list(tokenizer(prompt)["input_ids"])
    return encode_messages(tokenizer, [{"role": "user", "content": prompt}], date=date)


def encode_messages(
    tokenizer: Any,
    messages: Sequence[Mapping[str, str]],
    *,
    continue_final_message: bool = False,
    date: datetime.datetime | None = None,
) -> list[int]:
    """Ids of a conversation in the chat template, with the assistant's turn opened.

    Args:
      tokenizer: with the template.
      messages: objects of `role` and `content`, at least one.
      continue_final_message: True leaves the assistant's turn open behind the last message where that is the assistant's.
      date: what a template that asks for the date is told; the present when None.

    Raises:
      ValueError: if there is no template or it fails, or the last message is the assistant's and is not to be continued, or
        the template does not allow it.
    """
    if not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template; pass --no-chat-template (use_chat_template=False).")
    continues = messages[-1]["role"] == "assistant"
    if continues and not continue_final_message:
        raise ValueError(
            "the last message is the assistant's, and a second turn of its would begin; set continue_final_message to true "
            "(for all: --continue-final-message), or end with the user's."
        )
    try:
        text = tokenizer.apply_chat_template(
            messages,
            add_generation_prompt=not continues,
            continue_final_message=continues,
            tokenize=False,
            **_dated(tokenizer, date),
        )
    except Exception as error:  # a template is a program, and may raise anything
        if continues:
            why = one_line(error)[:120]
            raise ValueError(
                f"the chat template cannot go on with the assistant's last message ({why}); end with the user's."
            ) from None
        raise ValueError(f"the chat template failed ({one_line(error)}); pass --no-chat-template.") from None
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _dated(tokenizer: Any, date: datetime.datetime | None) -> dict[str, Any]:
    """Gives what `apply_chat_template` has to be told for `strftime_now` of a template to speak of a date."""
    if date is None or "strftime_now" not in (template := tokenizer.get_chat_template()):
        return {}
    return {"chat_template": _STRFTIME_NOW + template, "strftime_codes": _codes_of(date)}


@functools.lru_cache(maxsize=8)  # a job has one date
def _codes_of(date: datetime.datetime) -> dict[str, str]:
    codes = {"%%": "\0"}
    for code in (f"%{flag}{letter}" for flag in ("-", "") for letter in string.ascii_letters):
        with contextlib.suppress(ValueError):  # not every system has every one
            codes[code] = date.strftime(code)
    return codes | {"\0": "%"}


def decode(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """Gives the text of generated ids, without special tokens and exactly as generated otherwise."""
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))
