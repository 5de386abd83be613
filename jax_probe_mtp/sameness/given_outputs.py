"""Judges outputs of any framework: are they what plain decoding gives? Each is checked in one pass over its text."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from jax_probe_mtp.decoding.penalties import Penalties
from jax_probe_mtp.decoding.request import Request, make_penalties
from jax_probe_mtp.decoding.settings import Prompt, Settings
from jax_probe_mtp.errors import one_line
from jax_probe_mtp.generation.text_stream import TextStream
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.sampling import Sampling
from jax_probe_mtp.sameness.first_difference import OTHER_FRAMEWORK_TIE, Difference, request_of, rounding
from jax_probe_mtp.sameness.own_choices import Choices, choices_of
from jax_probe_mtp.sameness.verdicts import DIVERGED, UNCHECKED, Verdict, kind_of

BATCHES_A_WINDOW = 32  # records are sorted by length within so many batches: a file is never in memory as a whole


@dataclasses.dataclass(frozen=True, kw_only=True)
class Output:
    """What some framework gave for a prompt.

    Attributes:
      prompt: the prompt, with settings of its own where it has some.
      token_ids: the new tokens, the end-of-text token included where it was generated.
      limit: tokens that it was asked for; None if nobody says.
      category: a name to sum up by.
      error: why the prompt could not be read; then nothing else counts.
    """

    prompt: Prompt
    token_ids: Sequence[int]
    limit: int | None = None
    category: str | None = None
    error: str | None = None


def judge(checkpoint: Checkpoint, outputs: Iterable[Output], settings: Settings) -> Iterator[Verdict]:
    """Gives a verdict for every output, in the order given.

    After a tie the check goes on: the model is asked at every place what it would say after the output's own tokens, so an
    output passes only where each of its tokens is the model's choice or ties with it.

    Args:
      checkpoint: the model.
      outputs: what to check.
      settings: sampling and stop texts of outputs that have none of their own; `batch_size` texts are checked at a time.
    """
    if settings.batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {settings.batch_size}.")
    window: list[Output] = []
    for output in outputs:
        window.append(output)
        if len(window) == settings.batch_size * BATCHES_A_WINDOW:
            yield from _judge(checkpoint, window, settings)
            window = []
    yield from _judge(checkpoint, window, settings)


def _judge(checkpoint: Checkpoint, outputs: Sequence[Output], settings: Settings) -> list[Verdict]:
    verdicts: list[Verdict | None] = [None] * len(outputs)
    draws: dict[int, Sampling] = {}
    for n, output in enumerate(outputs):
        try:
            draws[n] = _check(checkpoint, output, settings).sampling
        except ValueError as error:
            verdicts[n] = _verdict(output, UNCHECKED, reason=one_line(error))
            continue
        if not output.token_ids:
            verdicts[n] = _of(checkpoint, output, settings, None, None)
            del draws[n]
    numbers = sorted(draws)
    texts = [(outputs[n].prompt.token_ids, outputs[n].token_ids) for n in numbers]
    is_sampled = any(draws[n].temperature_B[0] > 0 for n in numbers)
    of_texts = [draws[n] for n in numbers] if is_sampled else None
    batch_size = min(settings.batch_size, max(len(texts), 1))
    own = [outputs[n].prompt.own_settings(settings) for n in numbers]

    def penalties_of(places: Sequence[int]) -> Penalties:  # of a pass alone: they are as large as logits
        rows = [own[place] for place in places]
        return make_penalties(rows, checkpoint.eos_token_ids, checkpoint.config.vocab_size)

    penalized = (penalties_of,) if any(each.is_penalized for each in own) else ()
    for place, choices in choices_of(checkpoint, texts, of_texts, batch_size, *penalized):
        n = numbers[place]
        verdicts[n] = _of(checkpoint, outputs[n], settings, choices, draws[n] if is_sampled else None)
    found = [verdict for verdict in verdicts if verdict is not None]
    assert len(found) == len(outputs)
    return found


def _check(checkpoint: Checkpoint, output: Output, settings: Settings) -> Request:
    """Says how the output's tokens were chosen, after checking that the model can read it."""
    size = checkpoint.config.vocab_size
    if bad := next((token for token in output.token_ids if not 0 <= token < size), None):
        raise ValueError(f"the output holds token id {bad}, but ids are 0 to {size - 1}.")
    return how_drawn(checkpoint, output, settings, max(len(output.token_ids), 1))


def how_drawn(checkpoint: Checkpoint, output: Output, settings: Settings, num_tokens: int) -> Request:
    """Says how an output's tokens were chosen, as a request of one row.

    Raises:
      ValueError: if the prompt could not be read, or does not fit the model with so many new tokens, or a setting is wrong.
    """
    if output.error is not None:
        raise ValueError(output.error)
    least = output.prompt.of("min_tokens", settings)  # an output may be shorter, and is then judged
    asked = dataclasses.replace(output.prompt, max_new_tokens=max(num_tokens, least))
    return request_of(checkpoint, asked, settings)


def _of(
    checkpoint: Checkpoint, output: Output, settings: Settings, choices: Choices | None, draw: Sampling | None
) -> Verdict:
    size, reason = whole_part(checkpoint, output, settings)
    differences: list[Difference] = []
    if choices is not None:
        given = np.asarray(output.token_ids[:size])
        for place in np.flatnonzero(choices.best_BA[:size] != given).tolist():
            best_score = float(choices.best_score_BA[place])
            tolerance, step = rounding(checkpoint, best_score, draw, OTHER_FRAMEWORK_TIE)
            differences.append(
                Difference(
                    position=place,
                    plain_token=int(choices.best_BA[place]),
                    other_token=int(given[place]),
                    plain_score=best_score,
                    other_score=float(choices.given_score_BA[place]),
                    tolerance=tolerance,
                    step=step,
                )
            )
    kind, difference = kind_of(differences, reason)
    return _verdict(
        output,
        kind,
        difference=difference,
        num_compared=size,
        num_differences=len(differences),
        reason=None if kind == DIVERGED else reason,
    )


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


def _verdict(output: Output, kind: str, **more: Any) -> Verdict:
    return Verdict(
        id=output.prompt.id,
        sample=output.prompt.sample or None,
        kind=kind,
        num_tokens=len(output.token_ids),
        category=output.category,
        **more,
    )
