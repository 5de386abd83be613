"""Prompts in, answers out: the two functions that most users call."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tqdm import tqdm

from jax_probe_mtp.decoding.settings import Prompt, Settings
from jax_probe_mtp.drafting.source import DraftSource
from jax_probe_mtp.drafting.spec import DEFAULT_DRAFT, parse_draft
from jax_probe_mtp.errors import one_line
from jax_probe_mtp.files.records.openai_forms import plain_messages
from jax_probe_mtp.generation import tokenizer
from jax_probe_mtp.generation.answers import Generation
from jax_probe_mtp.generation.decoder import Decoder
from jax_probe_mtp.model.checkpoint import Checkpoint


def generate(
    checkpoint: Checkpoint,
    prompts: Sequence[Any],
    *,
    draft: DraftSource | str | None = None,
    settings: Settings | None = None,
    use_chat_template: bool = True,
    continue_final_message: bool = False,
    template_kwargs: Mapping[str, Any] | None = None,
    shared: Any = None,
    progress: bool = False,
) -> list[Generation]:
    """Answers each prompt; the tokens are plain decoding's, in fewer calls.

    Args:
      checkpoint: from `checkpoints_convert.load_checkpoint`, or a `Checkpoint` of one's own parameters, with `tokenizer`
        None where all prompts are token ids.
      prompts: each a text, a conversation (a list of messages as OpenAI clients write them), token ids (a list or an array), or
        a `Prompt` with settings of its own.
      draft: where drafts come from, a source or its text form such as "probe:15+4"; 1 mask and 14 candidates when left
        out. `Plain()` or "plain" is plain decoding.
      settings: limits, sampling and batch size.
      use_chat_template: True puts each text into the checkpoint's chat template.
      continue_final_message: True goes on with the last message of a conversation where that is the assistant's; without
        it, such a conversation is refused.
      template_kwargs: variables of the chat template, such as `{"enable_thinking": False}`.
      shared: arrays that the draft source brings for all rows, such as tuned masks; what it begins with when None.
      progress: True shows a bar of the answers on stderr.

    Returns:
      One `Generation` a prompt, in order, their ids counted from 0 but for those of `Prompt`s.

    Raises:
      ValueError: one line with the values and a way out.
    """
    if isinstance(prompts, str | Prompt | Mapping) or not hasattr(prompts, "__len__"):
        raise ValueError(f"prompts must be a list, got {one_line(repr(prompts)):.60}; put it into a list.")
    decoder = Decoder(checkpoint, _source(draft), shared=shared)
    records = [
        as_prompt(
            checkpoint,
            number,
            prompt,
            use_chat_template=use_chat_template,
            continue_final_message=continue_final_message,
            template_kwargs=template_kwargs,
        )
        for number, prompt in enumerate(prompts)
    ]
    answers = decoder.run(records, Settings() if settings is None else settings)
    return list(tqdm(answers, total=len(records), unit=" answers", disable=not progress))


def stream(
    checkpoint: Checkpoint,
    prompt: Any,
    *,
    draft: DraftSource | str | None = None,
    settings: Settings | None = None,
    use_chat_template: bool = True,
    continue_final_message: bool = False,
    template_kwargs: Mapping[str, Any] | None = None,
    shared: Any = None,
) -> Iterator[str]:
    """Answers one prompt piece by piece: the pieces together are the text that `generate` gives.

    Args:
      checkpoint: from `checkpoints_convert.load_checkpoint`.
      prompt: as one of `generate`'s.
      draft: as for `generate`.
      settings: as for `generate`; a piece comes after every `calls_per_chunk` calls, after each one when left out.
      use_chat_template: as for `generate`.
      continue_final_message: as for `generate`; the pieces are what comes after the message.
      template_kwargs: as for `generate`.
      shared: as for `generate`.

    Returns:
      An iterator over texts, none of them empty. No character is cut in two, and a text that may yet become a stop string
      waits until that is known.

    Raises:
      ValueError: one line with the values and a way out.
    """
    decoder = Decoder(checkpoint, _source(draft), shared=shared)
    record = as_prompt(
        checkpoint,
        0,
        prompt,
        use_chat_template=use_chat_template,
        continue_final_message=continue_final_message,
        template_kwargs=template_kwargs,
    )
    if checkpoint.tokenizer is None:
        raise ValueError(
            "the checkpoint has no tokenizer, hence no text to stream; use generate, which gives token ids."
        )
    return decoder.stream_text(record, Settings(calls_per_chunk=1) if settings is None else settings)


def as_prompt(
    checkpoint: Checkpoint,
    number: int,
    prompt: Any,
    *,
    use_chat_template: bool,
    continue_final_message: bool,
    template_kwargs: Mapping[str, Any] | None = None,
) -> Prompt:
    """Makes a `Prompt` with plain token ids of whatever `generate` takes.

    Raises:
      ValueError: if it is none of these, or the tokenizer cannot take it.
    """
    if isinstance(prompt, Prompt):
        return dataclasses.replace(prompt, token_ids=_token_ids(prompt.id, prompt.token_ids))
    if isinstance(prompt, str):
        if template_kwargs and not use_chat_template:
            raise ValueError("template_kwargs are for the chat template, which use_chat_template=False leaves out.")
        tokens = _tokenizer_of(checkpoint, number)
        token_ids = tokenizer.encode(
            tokens, prompt, use_chat_template=use_chat_template, template_kwargs=template_kwargs
        )
        return Prompt(id=number, token_ids=token_ids)
    if isinstance(prompt, list) and prompt and all(isinstance(message, Mapping) for message in prompt):
        if not use_chat_template:
            raise ValueError(f"prompt {number} is a conversation, which needs the chat template; give a text instead.")
        if not all(isinstance(message.get("role"), str) for message in prompt):
            raise ValueError(f"prompt {number}: each message needs a text as role, got {one_line(repr(prompt)):.60}.")
        messages = plain_messages(f"prompt {number}", prompt)
        tokens = _tokenizer_of(checkpoint, number)
        try:
            token_ids = tokenizer.encode_messages(
                tokens, messages, continue_final_message=continue_final_message, template_kwargs=template_kwargs
            )
        except ValueError as error:
            raise ValueError(f"prompt {number}: {error}") from None
        return Prompt(id=number, token_ids=token_ids)
    return Prompt(id=number, token_ids=_token_ids(number, prompt))


def _source(draft: DraftSource | str | None) -> DraftSource:
    return parse_draft(draft or DEFAULT_DRAFT) if isinstance(draft, str | None) else draft


def _tokenizer_of(checkpoint: Checkpoint, name: str | int) -> Any:
    if checkpoint.tokenizer is None:
        raise ValueError(f"prompt {name} is a text, but the checkpoint has no tokenizer; give token ids.")
    return checkpoint.tokenizer


def _token_ids(name: str | int, ids: Any) -> list[int]:
    """Lists token ids, of whatever array holds them; which ids there are, `make_batch` checks."""
    if hasattr(ids, "dtype") and getattr(ids, "ndim", 0) == 1:
        ids = ids.tolist()
    if not isinstance(ids, Sequence) or isinstance(ids, str | bytes):
        raise ValueError(
            f"prompt {name} must be a text, a list of messages, token ids or a Prompt, got {type(ids).__name__} "
            f"{one_line(repr(ids)):.60}."
        )
    return list(ids)
