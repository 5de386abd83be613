"""The token ids of an output as a file gives it: without its prompt, out of its text, with the end that it had."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from jax_probe_mtp.files.formats.given import GivenOutput
from jax_probe_mtp.generation.tokenizer import decode
from jax_probe_mtp.jobs.text_ids.of_text import TextIds, ids_of_text
from jax_probe_mtp.jobs.text_ids.of_tokens import ids_of_token_texts
from jax_probe_mtp.jobs.text_ids.token_bytes import token_bytes

_STOPPED = ("stop", "eos", "eos_token", "end_turn")  # how tools say that a text came to its end
_SHOWN = 30  # characters of a text that a message shows


def without_prompt(tokenizer: Any, given: GivenOutput, prompt_ids: Sequence[int]) -> tuple[list[int], GivenOutput]:
    """Cuts the prompt off an output that begins with it.

    Returns:
      The prompt's ids, as the output has them where it has ids: a beginning-of-text token may be there or not. And the
      output without them.

    Raises:
      ValueError: if the output does not begin with the prompt.
    """
    prompt_ids = list(prompt_ids)
    if not given.includes_prompt:
        return prompt_ids, given
    if given.token_ids is not None:
        ids, bos, pad = given.token_ids, tokenizer.bos_token_id, tokenizer.pad_token_id
        start = 0
        while pad is not None and start < len(ids) and ids[start] == pad and prompt_ids[:1] != [pad]:
            start += 1
        for begins in (
            prompt_ids,
            *([] if bos is None else [prompt_ids[prompt_ids[:1] == [bos] :], [bos, *prompt_ids]]),
        ):
            if begins and ids[start : start + len(begins)] == begins:
                return begins, dataclasses.replace(given, token_ids=ids[start + len(begins) :], includes_prompt=False)
        own = ids[start:]
        pairs = zip(own, prompt_ids, strict=False)
        place = next((n for n, (one, other) in enumerate(pairs) if one != other), min(len(own), len(prompt_ids)))
        there, asked = [*own[place : place + 1], "its end"], [*prompt_ids[place : place + 1], "its end"]
        raise ValueError(
            f"the output is to begin with its prompt of {len(prompt_ids)} tokens, but token {place} is {there[0]}, not "
            f"{asked[0]}; give the prompt that it was made of."
        )
    text, written = given.text or "", [given.record.prompt]
    if all(token_id < len(tokenizer) for token_id in prompt_ids):  # else the model refuses them
        written += [decode(tokenizer, prompt_ids), _with_specials(tokenizer, prompt_ids)]
    begins_with = [prompt for prompt in written if prompt and text.startswith(prompt)]
    if not begins_with:
        raise ValueError(
            f"the output is to begin with its prompt, but begins with {text[:_SHOWN]!r}; give the prompt that it was "
            'made of, or "return_full_text": false where it is the answer alone.'
        )
    rest = text[len(max(begins_with, key=len)) :]
    return prompt_ids, dataclasses.replace(given, text=rest, includes_prompt=False)


def without_second_bos(tokenizer: Any, prompt_ids: Sequence[int], text: str | None) -> Sequence[int]:
    """Leaves out the beginning-of-text token that the tokenizer put before a text which begins with it itself."""
    bos = tokenizer.bos_token_id
    is_twice = bos is not None and list(prompt_ids[:2]) == [bos, bos]
    return prompt_ids[1:] if is_twice and (text or "").startswith(tokenizer.bos_token) else prompt_ids


def given_ids(
    tokenizer: Any,
    given: GivenOutput,
    prompt_ids: Sequence[int],
    *,
    end_ids: Sequence[int],
    stop: Sequence[str] = (),
    limit: int | None = None,
) -> tuple[TextIds, list[float] | None]:
    """Gives the tokens of an output that does not include its prompt, and their log-probabilities where they are known.

    Out of a text alone comes no end of it: where the file says that the output stopped by itself, or nobody says why it is
    shorter than its limit, the end-of-text token is put behind it, ambiguous unless it must have been that one. Its
    log-probability is NaN.

    Args:
      tokenizer: a `transformers.PreTrainedTokenizerFast`.
      given: the output.
      prompt_ids: the prompt's tokens.
      end_ids: tokens that end an answer.
      stop: texts that end it.
      limit: tokens that it was asked for; None if nobody says.
    """
    if given.token_ids is not None:
        token_ids = _without_padding(tokenizer, given.token_ids, end_ids) if given.is_padded else given.token_ids
        return TextIds(token_ids, [False] * len(token_ids)), given.logprobs
    text = given.text or ""
    found = None if given.token_texts is None else ids_of_token_texts(tokenizer, given.text, given.token_texts)
    logprobs = None if found is None else given.logprobs
    if found is None:
        found = ids_of_text(tokenizer, prompt_ids, text)
        if isinstance(given.stop_reason, str) and not text.endswith(given.stop_reason):
            found = _with_stop(tokenizer, prompt_ids, text, given.stop_reason)
    token_ids, is_ambiguous = list(found.token_ids), list(found.is_ambiguous)
    end = _end(tokenizer, given, token_ids, end_ids, has_stop=bool(stop), limit=limit)
    if end is not None:
        token, is_sure = end
        token_ids.append(token)
        is_ambiguous.append(not is_sure)
        logprobs = logprobs and [*logprobs, math.nan]
    return TextIds(token_ids, is_ambiguous), logprobs


def _end(
    tokenizer: Any,
    given: GivenOutput,
    token_ids: Sequence[int],
    end_ids: Sequence[int],
    *,
    has_stop: bool,
    limit: int | None,
) -> tuple[int, bool] | None:
    """Gives the token that ended an output behind those of its text, and whether it must have been that one."""
    is_there = bool(token_ids) and token_ids[-1] in {given.stop_reason, *end_ids}
    if not end_ids or is_there or isinstance(given.stop_reason, str):
        return None
    if limit is not None and len(token_ids) >= limit:
        return None
    if given.stop_reason is not None:
        return int(given.stop_reason), True
    if given.finish_reason in _STOPPED:
        own = tokenizer.eos_token_id
        token = own if own in end_ids else end_ids[0]
        return token, len(set(end_ids)) == 1 and (given.says_stop_reason or not has_stop)
    if given.finish_reason is None and limit is not None:
        own = tokenizer.eos_token_id
        return (own if own in end_ids else end_ids[0]), False
    return None


def _with_stop(tokenizer: Any, prompt_ids: Sequence[int], text: str, stop: str) -> TextIds:
    """Tokenizes an answer with the stop text that was cut from it. Its tokens are ambiguous: they may have gone on."""
    whole = ids_of_text(tokenizer, prompt_ids, text + stop)
    size = len(stop.encode())
    is_ambiguous = list(whole.is_ambiguous)
    for place in range(len(is_ambiguous) - 1, -1, -1):
        if size <= 0:
            break
        is_ambiguous[place] = True
        size -= len(token_bytes(tokenizer).of(whole.token_ids[place]))
    return TextIds(whole.token_ids, is_ambiguous)


def _without_padding(tokenizer: Any, token_ids: list[int], end_ids: Sequence[int]) -> list[int]:
    """Cuts what a row of a batch has behind its end: one token again and again, the padding's or an end of text."""
    end = next((place for place, token in enumerate(token_ids, 1) if token in end_ids), len(token_ids))
    behind = set(token_ids[end:])
    is_padding = len(behind) == 1 and behind <= {tokenizer.pad_token_id, *end_ids}
    return token_ids[:end] if is_padding else token_ids


def _with_specials(tokenizer: Any, token_ids: Sequence[int]) -> str:
    return str(tokenizer.decode(list(token_ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
