"""Text to ids and back, on top of a `transformers` fast tokenizer."""

import contextlib
import datetime
import functools
import inspect
import re
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


def encode(tokenizer: Any, prompt: str, *, use_chat_template: bool, **of_template: Any) -> list[int]:
    """Ids of one user prompt.

    With a chat template the prompt becomes the user's turn, after the template's own default system prompt, and the
    assistant's turn is opened; every special token comes from the template, so that the beginning of text is there once.
    Without one, the tokenizer adds what it adds to plain text. `of_template` is what `encode_messages` takes.

    Raises:
      ValueError: if the template is asked for and the tokenizer has none or it fails, or the prompt is not Unicode text.
    """
    check_unicode("the prompt", prompt)
    if not use_chat_template:
        return list(tokenizer(prompt)["input_ids"])
    return encode_messages(tokenizer, [{"role": "user", "content": prompt}], **of_template)


def check_unicode(what: str, text: str) -> None:
    """Raises ValueError for a text from arguments in another encoding."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{what} is not UTF-8 text (character {error.start}); convert it first.") from None


def encode_messages(
    tokenizer: Any,
    messages: Sequence[Mapping[str, Any]],
    *,
    system: str | None = None,
    continue_final_message: bool = False,
    template_kwargs: Mapping[str, Any] | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    documents: Sequence[Mapping[str, Any]] | None = None,
    date: datetime.datetime | None = None,
) -> list[int]:
    """Ids of a conversation in the chat template, with the assistant's turn opened.

    Args:
      tokenizer: with the template.
      messages: objects of `role`, `content` and whatever else the template reads, at least one.
      system: content of a first message of the role "system", where there is none of it or of "developer".
      continue_final_message: True leaves the assistant's turn open behind the last message where that is the assistant's.
      template_kwargs: variables of the template, such as `enable_thinking`.
      tools: functions that the model may call, as JSON schemas.
      documents: what the model may look up.
      date: what a template that asks for the date is told; the present when None.

    Raises:
      ValueError: if there is no template, it does not know what it is to be told, or it fails, or the last message is the
        assistant's and is not to be continued, or the template does not allow it.
    """
    if not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template; pass --no-chat-template (use_chat_template=False).")
    if system is not None and messages[0]["role"] not in ("system", "developer"):
        messages = [{"role": "system", "content": system}, *messages]
    of_lists = {name: value for name, value in (("tools", tools), ("documents", documents)) if value}
    _check_known(tokenizer, of_lists, tools)
    if template_kwargs:
        check_template_kwargs(tokenizer, template_kwargs, tools)
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
            **of_lists,
            **(template_kwargs or {}),
            **_dated(tokenizer, date, tools),
        )
    except Exception as error:  # a template is a program, and may raise anything
        if continues:
            why = one_line(error)[:120]
            raise ValueError(
                f"the chat template cannot go on with the assistant's last message ({why}); end with the user's."
            ) from None
        raise ValueError(f"the chat template failed ({one_line(error)}); pass --no-chat-template.") from None
    check_unicode("what the chat template made of it", text)
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def check_template_kwargs(tokenizer: Any, template_kwargs: Mapping[str, Any], tools: Any = None) -> None:
    """Raises ValueError for a variable that the chat template does not mention, or that it is given in another way."""
    if not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template, which template_kwargs are for; leave them out.")
    own = {*inspect.signature(tokenizer.apply_chat_template).parameters, "messages", "strftime_now", "strftime_codes"}
    if taken := sorted(own & template_kwargs.keys()):
        raise ValueError(f"template_kwargs cannot set {taken[0]}: it is no variable of a template; leave it out.")
    _check_known(tokenizer, template_kwargs, tools)


def _check_known(tokenizer: Any, names: Mapping[str, Any], tools: Any) -> None:
    if not names:
        return
    template = tokenizer.get_chat_template(tools=tools)
    for name in names:
        if not re.search(rf"\b{re.escape(name)}\b", template):
            raise ValueError(f"the chat template knows no {name:.60}, so it would change nothing; leave it out.")


def _dated(tokenizer: Any, date: datetime.datetime | None, tools: Any) -> dict[str, Any]:
    """Gives what `apply_chat_template` has to be told for `strftime_now` of a template to speak of a date."""
    if date is None or "strftime_now" not in (template := tokenizer.get_chat_template(tools=tools)):
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
