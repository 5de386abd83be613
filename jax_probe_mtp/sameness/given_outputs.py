"""Examines outputs of any framework: are they what plain decoding gives, and how likely is each token?

Each is checked in one pass over its text.
"""

import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from jax_probe_mtp.decoding.penalties import Penalties
from jax_probe_mtp.decoding.request import Request, make_penalties
from jax_probe_mtp.decoding.settings import Prompt, Settings
from jax_probe_mtp.errors import one_line
from jax_probe_mtp.generation.text_stream import TextStream
from jax_probe_mtp.jobs.text_ids import is_other_cut
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.sampling import Sampling
from jax_probe_mtp.sameness.first_difference import OTHER_FRAMEWORK_TIE, Difference, request_of, rounding
from jax_probe_mtp.sameness.own_choices import Choices, choices_of
from jax_probe_mtp.sameness.token_scores import BORDER
from jax_probe_mtp.sameness.verdicts import DIVERGED, INCOMPLETE, SCORED, UNCHECKED, Verdict, kind_of

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


def examine(
    checkpoint: Checkpoint,
    outputs: Iterable[Output],
    settings: Settings,
    *,
    knows_seeds: bool = True,
) -> Iterator[Examined]:
    """Examines every output, in the order given.

    After a tie the check goes on: the model is asked at every place what it would say after the output's own tokens, so an
    output passes only where each of its tokens is the model's choice or ties with it.

    Args:
      checkpoint: the model.
      outputs: what to check.
      settings: sampling and stop texts of outputs that have none of their own; `batch_size` texts are checked at a time.
      knows_seeds: False where the seeds of drawn outputs are not known: then only what the cuts leave out is wrong.
    """
    if settings.batch_size < 1:
        raise ValueError(f"batch_size must be at least 1, got {settings.batch_size}.")
    window: list[Output] = []
    for output in outputs:
        window.append(output)
        if len(window) == settings.batch_size * BATCHES_A_WINDOW:
            yield from _examine(checkpoint, window, settings, knows_seeds)
            window = []
    yield from _examine(checkpoint, window, settings, knows_seeds)


def _examine(
    checkpoint: Checkpoint, outputs: Sequence[Output], settings: Settings, knows_seeds: bool
) -> list[Examined]:
    examined: list[Examined | None] = [None] * len(outputs)
    draws: dict[int, Sampling] = {}
    for n, output in enumerate(outputs):
        try:
            draws[n] = _check(checkpoint, output, settings).sampling
        except ValueError as error:
            unchecked = _verdict(output, UNCHECKED, reason=one_line(error))
            examined[n] = Examined(output=output, verdict=unchecked)
            continue
        if not output.token_ids:
            size, reason = whole_part(checkpoint, output, settings)
            examined[n] = Examined(output=output, verdict=_of(output, size, reason, []))
            del draws[n]
    numbers = sorted(draws)
    parts = {n: whole_part(checkpoint, outputs[n], settings) for n in numbers}
    behind = {n: _behind(checkpoint, outputs[n], *parts[n]) for n in numbers}
    texts = [(outputs[n].prompt.token_ids, [*outputs[n].token_ids, *behind[n]]) for n in numbers]
    is_sampled = any(draws[n].temperature_B[0] > 0 for n in numbers)
    of_texts = [draws[n] for n in numbers] if is_sampled else None
    batch_size = min(settings.batch_size, max(len(texts), 1))
    own = [outputs[n].prompt.own_settings(settings) for n in numbers]

    def penalties_of(places: Sequence[int]) -> Penalties:  # of a pass alone: they are as large as logits
        rows = [own[place] for place in places]
        return make_penalties(rows, checkpoint.eos_token_ids, checkpoint.config.vocab_size)

    penalized = (penalties_of,) if any(each.is_penalized for each in own) else ()
    for place, choices in choices_of(
        checkpoint, texts, of_texts, batch_size, *penalized, is_scored=True, is_noisy=knows_seeds
    ):
        n = numbers[place]
        draw = draws[n] if is_sampled else None
        is_greedy = not draws[n].temperature_B[0] > 0
        next_token = int(choices.best_BA[-1]) if behind[n] else None
        size, reason = parts[n]
        choices = jax.tree.map(lambda values, size=size: values[:size], choices)
        is_drawn = not is_greedy and not knows_seeds
        is_ambiguous = _ambiguous(checkpoint, outputs[n], None if is_drawn else choices.best_BA, size)
        if not is_drawn:
            differences = _differences(checkpoint, outputs[n], choices, draw, is_ambiguous)
            verdict = _of(outputs[n], size, reason, differences)
        else:
            verdict = _of_draw(outputs[n], size, reason, choices, is_ambiguous)
        examined[n] = Examined(
            output=outputs[n], verdict=verdict, choices=choices, is_ambiguous=is_ambiguous, next_token=next_token
        )
    found = [each for each in examined if each is not None]
    assert len(found) == len(outputs)
    return found


def _behind(checkpoint: Checkpoint, output: Output, size: int, reason: str | None) -> list[int]:
    """Gives a token to ask the model what it would say where an output stopped short; nothing of a whole one."""
    is_short = reason is not None and size == len(output.token_ids)
    num_tokens = len(output.prompt.token_ids) + size
    fits = num_tokens < checkpoint.config.context_length
    return list(checkpoint.eos_token_ids[:1]) if is_short and fits else []


def _ambiguous(checkpoint: Checkpoint, output: Output, best_A: np.ndarray | None, size: int) -> np.ndarray | None:
    """Marks the places of a text's tokens that another cut of the text may explain; None where the tokens were given.

    Of draws `best_A` is None: places that are left out for the token that is there would leave the others no draws.
    """
    if not output.is_from_text:
        return None
    ids, tokenizer = list(output.token_ids), checkpoint.tokenizer
    unsure = np.asarray(output.is_ambiguous or [False] * len(ids), np.bool_)[:size]
    if best_A is not None:
        for place in np.flatnonzero(best_A != np.asarray(ids[:size])).tolist():
            unsure[place] |= is_other_cut(tokenizer, ids, place, int(best_A[place]))
    return unsure


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


def _differences(
    checkpoint: Checkpoint, output: Output, choices: Choices, draw: Sampling | None, is_ambiguous: np.ndarray | None
) -> list[Difference]:
    """Finds the tokens that are not the model's own choice, but for those that another cut of the text may explain."""
    given = np.asarray(output.token_ids[: len(choices.best_BA)])
    is_other = choices.best_BA != given
    differences: list[Difference] = []
    for place in np.flatnonzero(is_other if is_ambiguous is None else is_other & ~is_ambiguous).tolist():
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
    return differences


def _of(output: Output, size: int, reason: str | None, differences: Sequence[Difference]) -> Verdict:
    kind, difference = kind_of(differences, reason)
    return _verdict(
        output,
        kind,
        difference=difference,
        num_compared=size,
        num_differences=len(differences),
        reason=None if kind == DIVERGED else reason,
    )


def _of_draw(
    output: Output, size: int, reason: str | None, choices: Choices, is_ambiguous: np.ndarray | None
) -> Verdict:
    """Gives the verdict on one draw of an unknown seed: alone it shows little but tokens that the cuts leave out."""
    assert choices.given is not None
    fit, is_out = choices.given.stated, choices.given.beyond > BORDER
    impossible = np.flatnonzero(is_out if is_ambiguous is None else is_out & ~is_ambiguous)
    if impossible.size:
        says = f"{impossible.size} tokens that the cuts leave out, the first at new token {impossible[0]}."
        return _verdict(output, DIVERGED, num_compared=size, num_differences=int(impossible.size), reason=says)
    inside = np.isfinite(fit.logprob)  # nothing is said of a token at the border of the cuts
    mean, of_draws = (float(values[inside].mean()) if inside.any() else 0.0 for values in (fit.logprob, -fit.entropy))
    likely = f"mean log-probability {mean:.3f}, of draws {of_draws:.3f}"
    if reason is not None:
        return _verdict(output, INCOMPLETE, num_compared=0, reason=reason, more=f" ({likely})")
    return _verdict(output, SCORED, num_compared=0, reason=f"{size} tokens, {likely}.")


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
