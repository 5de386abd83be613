"""Examines outputs of any framework: are they what plain decoding gives, and how likely is each token?

Each is checked in one pass over its text.
"""

import dataclasses
import math
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from jax_probe_mtp.decoding.penalties import Penalties
from jax_probe_mtp.decoding.request import Request, make_penalties
from jax_probe_mtp.decoding.settings import Settings
from jax_probe_mtp.errors import one_line
from jax_probe_mtp.jobs.text_ids import TextIds, cut_with, is_other_cut, shown_bytes
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.sampling import Sampling
from jax_probe_mtp.sameness.first_difference import OTHER_FRAMEWORK_TIE, Difference, request_of, rounding
from jax_probe_mtp.sameness.output import Examined, Output, whole_part
from jax_probe_mtp.sameness.own_choices import Choices, choices_of
from jax_probe_mtp.sameness.token_scores import BORDER
from jax_probe_mtp.sameness.verdicts import DIVERGED, INCOMPLETE, SCORED, UNCHECKED, Verdict, kind_of

MOST_CUTS = 128  # places of a text that are cut anew, one after the other
BATCHES_A_WINDOW = 32  # records are sorted by length within so many batches: a file is never in memory as a whole


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
    """Examines outputs; texts that differ behind a place at which the model cuts them otherwise, in its own cut as well."""
    found = _examine_once(checkpoint, outputs, settings, knows_seeds)
    newest = dict(enumerate(found))
    for _ in range(MOST_CUTS):
        anew = {n: cut for n, each in newest.items() if (cut := _in_the_models_cut(checkpoint, each)) is not None}
        if not anew:
            break
        newest = dict(zip(anew, _examine_once(checkpoint, [*anew.values()], settings, knows_seeds), strict=True))
        for n, each in newest.items():
            if _bytes_alike(checkpoint, each) > _bytes_alike(checkpoint, found[n]):
                found[n] = each
    else:  # of texts that have as many cuts, one that was not tried may be the model's
        for n, each in newest.items():
            if found[n].verdict.kind == DIVERGED and _in_the_models_cut(checkpoint, each) is not None:
                more = f"; its text was cut in {MOST_CUTS} other ways, and there are more: ask for token ids"
                found[n] = dataclasses.replace(found[n], verdict=dataclasses.replace(found[n].verdict, more=more))
    return found


def _in_the_models_cut(checkpoint: Checkpoint, found: Examined) -> Output | None:
    """Gives a text with the model's own token in the first place where that cuts it otherwise, and the rest cut anew.

    What the model says behind such a place it says behind other tokens than those that it wrote. None where no such place is
    before a difference, or the output's tokens are known.
    """
    output, difference = found.output, found.verdict.difference
    if found.verdict.kind != DIVERGED or not output.is_from_text or output.logprobs is not None:
        return None
    if found.choices is None or difference is None:
        return None
    ids, best = np.asarray(output.token_ids[: difference.position], np.int64), found.choices.best_BA
    now = TextIds(list(output.token_ids), list(output.is_ambiguous or [False] * len(output.token_ids)))
    for place in np.flatnonzero(best[: len(ids)] != ids).tolist():
        cut = cut_with(checkpoint.tokenizer, now, place, int(best[place]))
        if cut is not None:
            size, limit = len(cut.token_ids), output.limit
            if limit is not None:  # one that was reached still is
                limit = size if limit == len(output.token_ids) else max(limit, size)
            return dataclasses.replace(output, token_ids=cut.token_ids, is_ambiguous=cut.is_ambiguous, limit=limit)
    return None


def _bytes_alike(checkpoint: Checkpoint, found: Examined) -> float:
    """Counts the bytes of a text before the place where it diverged: all there could be where it did not."""
    difference = found.verdict.difference
    if found.verdict.kind == UNCHECKED:  # in this cut it is longer than the model's context
        return -1
    if found.verdict.kind != DIVERGED or difference is None:
        return math.inf
    return len(shown_bytes(checkpoint.tokenizer, found.output.token_ids[: difference.position]))


def _examine_once(
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


def _verdict(output: Output, kind: str, **more: Any) -> Verdict:
    return Verdict(
        id=output.prompt.id,
        sample=output.prompt.sample or None,
        kind=kind,
        num_tokens=len(output.token_ids),
        category=output.category,
        **more,
    )
