"""An output of any framework, and what was found of it."""

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from jax_probe_mtp.decoding.settings import Prompt, Settings
from jax_probe_mtp.generation.text_stream import TextStream
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.sameness.own_choices import Choices, choices_of
from jax_probe_mtp.sameness.verdicts import Verdict

FITS = 0.9  # share of tokens that are the model's best where a prompt is the one that was used
TRIED_TOKENS = 32  # of an output, where many prompts are tried


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """What some framework gave for a prompt.

    Attributes:
      prompt: the prompt, with settings of its own where it has some.
      token_ids: the new tokens, the end-of-text token included where it was generated.
      limit: tokens that it was asked for; None if nobody says.
      category: a name to sum up by.
      error: why the prompt could not be read; then nothing else counts.
      logprobs: log-probability of each token as the framework states it, NaN where it does not; None if it states none.
      is_ambiguous: of each token, True where the output is a text that does not tell whether it was this one; None where all
        are certain.
      is_from_text: True where the tokens were made of a text.
      other_prompts: gives other ways in which the prompt may have been put, in tokens, by name; it is asked for few outputs.
    """

    prompt: Prompt
    token_ids: Sequence[int]
    limit: int | None = None
    category: str | None = None
    error: str | None = None
    logprobs: Sequence[float] | None = None
    is_ambiguous: Sequence[bool] | None = None
    is_from_text: bool = False
    other_prompts: Callable[[], Mapping[str, Sequence[int]]] = dict


@dataclasses.dataclass(frozen=True, kw_only=True)
class Examined:
    """What was found of an output.

    Attributes:
      output: the output.
      verdict: the verdict.
      choices: the model's own at each of the A compared places, NumPy arrays, scores among them; None where nothing could be
        compared.
      is_ambiguous: bool [A], places that another cut of the same text may explain.
      next_token: what the model would say behind an output that is short of an end; None where that does not matter.
    """

    output: Output
    verdict: Verdict
    choices: Choices | None = None
    is_ambiguous: np.ndarray | None = None
    next_token: int | None = None


def best_fits(
    checkpoint: Checkpoint,
    found: Sequence[Examined],
    prompts_of: Callable[[Examined], Iterable[tuple[str | int, Sequence[int]]]],
    batch_size: int,
) -> list[tuple[float, str | int, str | int]]:
    """Finds the prompts that fit outputs, where one fits, and better than the output's own.

    Args:
      checkpoint: the model.
      found: the outputs.
      prompts_of: gives the prompts that are tried on an output, by name.
      batch_size: texts that are tried at a time.

    Returns:
      For each such output the share of its first tokens that are the model's best, the prompt's name, and the record's.
    """
    asked = [(n, name, ids) for n, each in enumerate(found) for name, ids in prompts_of(each)]
    texts = [(list(ids), list(found[n].output.token_ids[:TRIED_TOKENS])) for n, _, ids in asked]
    best: dict[int, tuple[float, int]] = {}
    for place, choices in choices_of(checkpoint, texts, None, batch_size) if texts else []:
        n, rate = asked[place][0], _rate(choices.best_BA, texts[place][1])
        best[n] = max(best.get(n, (0.0, 0)), (rate, -place))  # of equal ones the first
    fits = []
    for n, (rate, place) in sorted(best.items()):
        own = found[n].choices
        assert own is not None
        if rate >= FITS and rate > _rate(own.best_BA[:TRIED_TOKENS], found[n].output.token_ids):
            fits.append((rate, asked[-place][1], found[n].output.prompt.id))
    return fits


def _rate(best_A: Any, given: Sequence[int]) -> float:
    return float(np.mean(np.asarray(best_A) == np.asarray(given[: len(best_A)])))


def whole_part(checkpoint: Checkpoint, output: Output, settings: Settings) -> tuple[int, str | None]:
    """Counts the tokens of an output that belong to the answer, and says why it is no whole one.

    It is whole, and the reason is None, where it ends with its only end of text, or at the stated limit.
    """
    ids, limit = output.token_ids, output.limit
    if not ids:
        return 0, "the output is empty."
    ends = output.prompt.own_settings(settings).ends(checkpoint.eos_token_ids)
    end = next((n for n, token in enumerate(ids, 1) if token in ends), None)
    if stop := output.prompt.of("stop", settings):
        stream = TextStream(checkpoint.tokenizer, stop)
        stopped = next((n for n, token in enumerate(ids[:end], 1) if stream.add(token)), None)
        end = stopped if stopped is not None else end
    if end is not None and end < len(ids):
        return end, f"{len(ids) - end} of {len(ids)} tokens are behind the end of the text."
    if limit is not None and len(ids) > limit:
        return limit, f"{len(ids)} tokens are more than the limit of {limit}."
    if end is None and limit is None:
        return len(ids), f"{len(ids)} tokens without an end of text, and no limit is known; state max_new_tokens."
    if end is None and limit is not None and len(ids) < limit:
        return len(ids), f"ends after {len(ids)} tokens, short of an end of text and of the limit of {limit}."
    return len(ids), None
