"""Turns outputs as files give them into tokens to check: without their prompts, with the limit that they were asked for."""

import contextlib
import dataclasses
import functools
from collections.abc import Iterable, Iterator, Sequence

from jax_probe_mtp.decoding.settings import Prompt, Settings
from jax_probe_mtp.files.formats.given import GivenOutput
from jax_probe_mtp.files.records.record import Record
from jax_probe_mtp.jobs.encode import Encoder
from jax_probe_mtp.jobs.text_ids import TextIds, given_ids, without_prompt, without_second_bos
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.sameness.output import Output

_USUAL = "You are a helpful assistant."


def outputs_of(
    given_outputs: Iterable[GivenOutput],
    encode: Encoder,
    checkpoint: Checkpoint,
    settings: Settings,
    max_new_tokens: int | None,
) -> Iterator[Output]:
    """Gives outputs in tokens, without their prompts.

    Args:
      given_outputs: what files say of them.
      encode: turns records into tokens.
      checkpoint: the model.
      settings: those of outputs that have none of their own.
      max_new_tokens: what outputs that do not state it were asked for; None if nobody says.
    """
    for given in given_outputs:
        limit = given.record.max_new_tokens or max_new_tokens
        error, ids, logprobs = None, TextIds(given.token_ids or [], [False] * len(given.token_ids or [])), None
        try:
            prompt, cut = _without_prompt(encode, given)
            ids, logprobs = given_ids(
                encode.tokenizer,
                cut,
                prompt.token_ids,
                end_ids=prompt.own_settings(settings).ends(checkpoint.eos_token_ids),
                stop=prompt.of("stop", settings),
                limit=limit,
            )
        except ValueError as refused:
            prompt, error = Prompt(id=given.record.id, token_ids=[]), str(refused)
        num_tokens, is_from_text = len(ids.token_ids), given.token_ids is None
        if given.finish_reason == "length" and (limit is None or is_from_text):
            limit = num_tokens  # it says that it reached one, and a text may be cut into another number of tokens
        elif limit is not None and is_from_text:
            limit = max(limit, num_tokens)
        yield Output(
            prompt=prompt,
            token_ids=ids.token_ids,
            limit=limit,
            category=given.category,
            error=error,
            logprobs=logprobs,
            is_ambiguous=ids.is_ambiguous if any(ids.is_ambiguous) else None,
            is_from_text=is_from_text,
            other_prompts=functools.partial(_other_prompts, encode, given.record, prompt.token_ids),
        )


def _other_prompts(encode: Encoder, record: Record, own: Sequence[int]) -> dict[str, list[int]]:
    """Gives other ways in which others may have put a prompt, by name."""
    ways = {
        "as plain text, without the chat template": dataclasses.replace(encode, use_chat_template=False),
        "in the chat template": dataclasses.replace(encode, use_chat_template=True),
        "with an empty system message": dataclasses.replace(encode, use_chat_template=True, system=""),
        f"with the system message {_USUAL!r}": dataclasses.replace(encode, use_chat_template=True, system=_USUAL),
    }
    found = {}
    for name, way in ways.items():
        with contextlib.suppress(ValueError):  # messages as plain text, a template without system messages
            found[name] = list(way(record).token_ids)
    return {name: token_ids for name, token_ids in found.items() if token_ids != list(own)}


def _without_prompt(encode: Encoder, given: GivenOutput) -> tuple[Prompt, GivenOutput]:
    """Gives the prompt in tokens, and the output without it.

    Raises:
      ValueError: if the prompt cannot be read, or the output is to begin with it and does not, or there is none.
    """
    if given.error is not None:
        raise ValueError(given.error)
    encoders = [encode]
    if given.is_plain_prompt and given.record.prompt is not None:
        plain = dataclasses.replace(encode, use_chat_template=False)
        encoders = [plain, encode] if given.includes_prompt and encode.use_chat_template else [plain]
    refusals = []
    for each in encoders:  # the output shows which of them made its prompt
        try:
            prompt = each(given.record)
            if each is not encode:
                prompt = prompt.with_ids(without_second_bos(encode.tokenizer, prompt.token_ids, given.record.prompt))
            prompt_ids, cut = without_prompt(encode.tokenizer, given, prompt.token_ids)
            return prompt.with_ids(prompt_ids), cut
        except ValueError as refused:
            refusals.append(refused)
    raise refusals[0]
