"""Text to ids and back, on top of a `transformers` fast tokenizer."""

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

from jax_probe_mtp.errors import one_line


def encode(tokenizer: Any, prompt: str, *, use_chat_template: bool) -> list[int]:
    """Ids of one user prompt.

    With a chat template the prompt becomes the user's turn, after the template's own default system prompt, and the
    assistant's turn is opened; every special token comes from the template, so that the beginning of text is there once.
    Without one, the tokenizer adds what it adds to plain text.

    Raises:
      ValueError: if the template is asked for and the tokenizer has none or it fails, or the prompt is not Unicode text.
    """
    try:
        prompt.encode()
    except UnicodeEncodeError as error:  # from arguments in another encoding
        raise ValueError(f"the prompt is not UTF-8 text (character {error.start}); convert it first.") from None
    if not use_chat_template:
        return list(tokenizer(prompt)["input_ids"])
    return encode_messages(tokenizer, [{"role": "user", "content": prompt}])


def encode_messages(tokenizer: Any, messages: Sequence[Mapping[str, str]]) -> list[int]:
    """Ids of a conversation in the chat template, with the assistant's turn opened.

    Args:
      tokenizer: with the template.
      messages: objects of `role` and `content`.

    Raises:
      ValueError: if there is no template or it fails.
    """
    if not tokenizer.chat_template:
        raise ValueError("the tokenizer has no chat template; pass --no-chat-template (use_chat_template=False).")
    try:
        text = tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    except Exception as error:  # a template is a program, and may raise anything
        raise ValueError(f"the chat template failed ({one_line(error)}); pass --no-chat-template.") from None
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def decode(tokenizer: Any, token_ids: Sequence[int]) -> str:
    """Gives the text of generated ids, without special tokens and exactly as generated otherwise."""
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False))


def identity(tokenizer: Any) -> dict[str, str]:
    """Gives digests of what decides the tokens of a text: the tokenizer, and its chat template with what it may print."""
    tokenizer("a")  # a tokenizer.json may bring padding or truncation, which the first call takes away
    template = [tokenizer.chat_template, sorted(map(repr, tokenizer.special_tokens_map.items()))]
    parts = {"tokenizer": tokenizer.backend_tokenizer.to_str(), "chat_template": repr(template)}
    return {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in parts.items()}
