"""Records in tokens, and the cache slots that they need."""

import contextlib
from collections.abc import Iterable
from typing import Any

from jax_probe_mtp.decoding.batch import bucket
from jax_probe_mtp.decoding.settings import Prompt, Settings
from jax_probe_mtp.files.prompt_file import Record
from jax_probe_mtp.generation import tokenizer
from jax_probe_mtp.model.config import ModelConfig


def encode(record: Record, tokens: Any, *, use_chat_template: bool) -> Prompt:
    """Turns a record into tokens.

    Raises:
      ValueError: if the tokenizer or its chat template cannot take it.
    """
    if record.prompt_ids is not None:
        token_ids = record.prompt_ids
    elif record.messages is not None:
        if not use_chat_template:
            raise ValueError("messages need the chat template; leave --no-chat-template out, or give a prompt.")
        token_ids = tokenizer.encode_messages(tokens, record.messages)
    else:
        token_ids = tokenizer.encode(tokens, record.prompt or "", use_chat_template=use_chat_template)
    return Prompt(
        id=record.id,
        noise_name=record.noise_name,
        token_ids=token_ids,
        **{name: getattr(record, name) for name in ("seed", "max_new_tokens", "temperature", "top_k", "top_p", "stop")},
    )


def capacity_of(
    records: Iterable[Record], cfg: ModelConfig, tokens: Any, settings: Settings, *, use_chat_template: bool
) -> int:
    """Gives the cache slots of a row for the longest record that the model can take: one bucket, so that none recompiles."""
    needed = 1
    for record in records:
        with contextlib.suppress(ValueError):  # it gets its own error when it is its turn
            prompt = encode(record, tokens, use_chat_template=use_chat_template)
            size = len(prompt.token_ids) + prompt.of("max_new_tokens", settings)
            if size <= cfg.context_length:
                needed = max(needed, size - 1)
    return min(bucket(needed), cfg.context_length)
