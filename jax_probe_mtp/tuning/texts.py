"""Prompts and answers to tune masks on: which are used, which are held back, and how they are laid out as arrays."""

import dataclasses
import hashlib
import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from jax_probe_mtp.tuning.loss import Texts

Pair = tuple[Sequence[int], Sequence[int]]  # token ids of a prompt, and of the model's answer to it
HELD_BACK = 10  # every so many texts, one is not tuned on
MIN_TEXTS = 2 * HELD_BACK
MAX_PLACES = 128  # of a text, evenly over a longer answer


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """One text, and the places in it beside which masks are run.

    Attributes:
      token_ids: prompt and answer.
      places: from the last prompt token to the last one that is followed by two tokens.
    """

    token_ids: tuple[int, ...]
    places: tuple[int, ...]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Split:
    """Texts to tune on, and texts to measure with.

    Attributes:
      tuned_on: nine tenths.
      held_back: every tenth.
      digest: of all of them, in order.
      num_left_out: texts that are too long, or whose answers are too short.
    """

    tuned_on: list[Text]
    held_back: list[Text]
    digest: str
    num_left_out: int

    @property
    def num_slots(self) -> int:
        """Counts the tokens of the longest text, rounded up."""
        return _rounded(max(len(text.token_ids) for text in self._all))

    @property
    def num_places(self) -> int:
        """Counts the most places that a text has, rounded up."""
        return _rounded(max(len(text.places) for text in self._all))

    @property
    def _all(self) -> list[Text]:
        return [*self.tuned_on, *self.held_back]


def split(texts: Sequence[Pair], *, num_masks: int, max_length: int, vocab_size: int) -> Split:
    """Chooses the texts that can be used, and holds every tenth of them back.

    Args:
      texts: prompts and answers, as token ids.
      num_masks: M; an answer needs M + 1 tokens.
      max_length: tokens that a text may have.
      vocab_size: V, of the model.

    Raises:
      ValueError: if fewer than `MIN_TEXTS` are left, or a token is none of the model's.
    """
    used: list[Text] = []
    for prompt_ids, answer_ids in texts:
        token_ids = (*map(int, prompt_ids), *map(int, answer_ids))
        if token_ids and not 0 <= min(token_ids) <= max(token_ids) < vocab_size:
            wrong = next(token for token in token_ids if not 0 <= token < vocab_size)
            raise ValueError(
                f"a text holds token id {wrong}, but ids are 0 to {vocab_size - 1}; give texts of this model."
            )
        first, end = len(prompt_ids) - 1, len(token_ids) - 2
        if first >= 0 and len(answer_ids) > num_masks and len(token_ids) <= max_length:
            step = -(-(end - first) // MAX_PLACES)
            used.append(Text(token_ids=token_ids, places=tuple(range(first, end, step))))
    if len(used) < MIN_TEXTS:
        raise ValueError(
            f"{len(used)} of {len(texts)} texts have answers of more than {num_masks} tokens and at most {max_length} tokens "
            f"in all, too few to tune on: give {MIN_TEXTS} or more."
        )
    listed = [[text.token_ids, text.places] for text in used]
    return Split(
        tuned_on=[text for number, text in enumerate(used) if number % HELD_BACK != HELD_BACK - 1],
        held_back=used[HELD_BACK - 1 :: HELD_BACK],
        digest=hashlib.sha256(json.dumps(listed).encode()).hexdigest()[:16],
        num_left_out=len(texts) - len(used),
    )


def as_arrays(texts: Sequence[Text], num_rows: int, num_slots: int, num_places: int) -> Texts:
    """Lays texts out as NumPy arrays of these sizes; rows behind them hold no text."""
    arrays: dict[str, Any] = {
        "token_BT": np.zeros((num_rows, num_slots), np.int32),
        "length_B": np.zeros(num_rows, np.int32),
        "place_BQ": np.zeros((num_rows, num_places), np.int32),
        "num_places_B": np.zeros(num_rows, np.int32),
    }
    for row, text in enumerate(texts):
        size, num = len(text.token_ids), len(text.places)
        arrays["token_BT"][row, :size], arrays["length_B"][row] = text.token_ids, size
        arrays["place_BQ"][row, :num], arrays["num_places_B"][row] = text.places, num
    return Texts(**arrays)


def drawn(num_texts: int, step: int, batch_size: int, seed: int) -> list[int]:
    """Draws the texts of a step: each comes once before one comes again. It follows from the step, so a run can go on."""
    first = step * batch_size
    places = range(first, first + batch_size)
    orders = {epoch: _order(num_texts, epoch, seed) for epoch in {place // num_texts for place in places}}
    return [int(orders[place // num_texts][place % num_texts]) for place in places]


def _order(num_texts: int, epoch: int, seed: int) -> np.ndarray:
    return np.random.Generator(np.random.PCG64([seed, epoch])).permutation(num_texts)


def _rounded(size: int) -> int:
    return -(-size // 32) * 32
