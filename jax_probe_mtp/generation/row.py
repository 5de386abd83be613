"""Rows of a running batch on the host: prompts that wait for one and enter, then the text of each, and what ends it."""

import dataclasses
import itertools
from collections.abc import Iterable
from typing import Any

import jax
import numpy as np

from jax_probe_mtp.decoding.batch import Batch
from jax_probe_mtp.decoding.config import DecodeConfig
from jax_probe_mtp.decoding.request import Request, join_requests
from jax_probe_mtp.decoding.settings import Prompt, Settings
from jax_probe_mtp.decoding.state import TopTokens
from jax_probe_mtp.generation.answers import Generation, make_generation
from jax_probe_mtp.generation.text_stream import TextStream
from jax_probe_mtp.model.checkpoint import Checkpoint

Top = list[tuple[int, float]]  # most likely tokens of a place, with their log-probabilities
# A model of fewer weights is so small that its prefill waits for a GPU's kernels to start, not for products.
MOST_WEIGHTS = 300_000_000
TOGETHER = 4  # prompts of such a model that enter in one program, where
LEAST_ROWS = 32  # rows are so many that several end at a time: with 8, empty places cost more than was saved
LONG_PIECE = 1024  # tokens of a prompt that enter such a model at a time, where
MOST_SLOTS = 8192  # rows have no more slots, with each of which a piece is multiplied


@dataclasses.dataclass(frozen=True, kw_only=True)
class WaitingPrompt:
    """A prompt that waits for a row, checked and laid out as arrays.

    Attributes:
      number: the record's, given by whoever made the stream.
      prompt: the record.
      batch: of one row.
    """

    number: int
    prompt: Prompt
    batch: Batch

    @property
    def padded_length(self) -> int:
        """Gives T, which says which compiled prefill takes it."""
        return self.batch.prompt_BT.shape[1]

    @property
    def prefix(self) -> tuple[int, ...]:
        """Gives the tokens that other prompts begin with as well."""
        return tuple(self.prompt.token_ids[: self.prompt.num_shared])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Arrival:
    """Prompts that go into free rows in one program, up to N on each of D shards.

    Attributes:
      prompt_AT: int32 [A, T], A = D N, of one padded length; shard after shard.
      request: of these rows; where nobody comes, one that asks for nothing.
      row_A: int32 [A], where they go, of the rows of their shard.
      prefix: tokens that are read once for all prompts which begin with them; none where there are several prompts.
    """

    prompt_AT: np.ndarray
    request: Request
    row_A: np.ndarray
    prefix: tuple[int, ...] = ()


def num_together(checkpoint: Checkpoint, num_rows: int) -> int:
    """Says how many prompts of a padded length enter the rows of a device in one program, N.

    It is the same for all of a run, however many come: the bits of a prompt's keys and values depend on the program's shape.
    """
    return TOGETHER if _waits_for_kernels(checkpoint) and num_rows >= LEAST_ROWS else 1


def decode_config(checkpoint: Checkpoint, settings: Settings, capacity: int) -> DecodeConfig:
    """Gives how rows of so many slots are decoded, on the model's device."""
    usual = settings.decode_config(capacity)
    if not _waits_for_kernels(checkpoint) or capacity > MOST_SLOTS:
        return usual
    return dataclasses.replace(usual, prefill_chunk=LONG_PIECE)


def _waits_for_kernels(checkpoint: Checkpoint) -> bool:
    leaves = jax.tree.leaves(checkpoint.params)
    is_gpu = next(iter(leaves[0].devices())).platform == "gpu"
    return is_gpu and sum(leaf.size for leaf in leaves) <= MOST_WEIGHTS


def join_arrivals(
    newcomers: Iterable[tuple[int, int, WaitingPrompt]],
    *,
    num_shards: int,
    together: int,
    idle: Request,
    shares_prefix: bool,
) -> list[Arrival]:
    """Puts together who enters in one program.

    Args:
      newcomers: shard, row of it, and who goes there.
      num_shards: D.
      together: N, of `num_together`.
      idle: a request of one row that asks for nothing.
      shares_prefix: whether prompts with a prefix of others enter alone, after it.
    """
    arrivals: list[Arrival] = []
    groups: list[_Group] = []
    for shard, row, waiting in newcomers:
        if shares_prefix and waiting.prefix:
            arrivals.append(_arrival({0: (row, waiting)}, 1, idle, waiting.prefix))
            continue
        for group in groups:
            free = [p for p in range(shard * together, (shard + 1) * together) if p not in group]
            if free and _padded_length(group) == waiting.padded_length:
                group[free[0]] = row, waiting
                break
        else:
            groups.append({shard * together: (row, waiting)})
    return arrivals + [_arrival(group, num_shards * together, idle) for group in groups]


_Group = dict[int, tuple[int, WaitingPrompt]]  # place in a program -> row of the shard and who goes there


def _padded_length(group: _Group) -> int:
    return next(iter(group.values()))[1].padded_length


def _arrival(group: _Group, num_places: int, idle: Request, prefix: tuple[int, ...] = ()) -> Arrival:
    nobody = 0, np.zeros((1, _padded_length(group)), np.int32), idle
    places = [
        (group[p][0], group[p][1].batch.prompt_BT, group[p][1].batch.request) if p in group else nobody
        for p in range(num_places)
    ]
    return Arrival(
        prompt_AT=np.concatenate([prompt_1T for _, prompt_1T, _ in places]),
        request=join_requests([request for _, _, request in places]),
        row_A=np.asarray([row for row, _, _ in places], np.int32),
        prefix=prefix,
    )


class RowText:
    """The text of a row in use.

    Attributes:
      number: the record's.
      prompt: the record's.
      length: committed slots of the row on the device.
    """

    def __init__(
        self, checkpoint: Checkpoint, number: int, prompt: Prompt, stop: tuple[str, ...], *, shows_text: bool
    ) -> None:
        """Args: the model, the record, the texts that end it, and whether its text is shown as it grows."""
        self.number, self.prompt = number, prompt
        self.length = len(prompt.token_ids) - 1
        self._checkpoint = checkpoint
        self._stream = TextStream(checkpoint.tokenizer, stop) if stop or shows_text else None
        self._token_ids: list[int] = []
        self._logprobs: list[float] = []
        self._top_logprobs: list[Top] = []
        self._of_prompt: dict[str, list[Any]] = {}  # of a generation's fields
        self._calls = 0
        self._calls_by_draft: dict[str, int] = {}
        self._accepted_by_depth: list[int] = []

    @property
    def num_new(self) -> int:
        """Gives the new tokens so far."""
        return len(self._token_ids)

    def take_prompt(self, logprobs: list[float], top_logprobs: list[Top]) -> None:
        """Takes the log-probabilities of the prompt's tokens, and the most likely ones in their places, or none.

        Both are of padded prompts. The first token, which the model never chose, has none.
        """
        num_tokens = len(self.prompt.token_ids)
        self._of_prompt["prompt_logprobs"] = [None, *logprobs[1:num_tokens]]
        if top_logprobs:
            self._of_prompt["prompt_top_logprobs"] = [None, *top_logprobs[1:num_tokens]]

    def take(
        self,
        token_ids: list[int],
        logprobs: list[float],
        top_logprobs: list[Top],
        lengths: list[int],
        *,
        calls: int,
        accepted_by_depth: list[int],
        draft: str | None = None,
    ) -> bool:
        """Takes what a chunk of calls gave; True if a stop string ends the text.

        Args:
          token_ids: the new tokens.
          logprobs: their log-probabilities, or none.
          top_logprobs: the most likely tokens in their places with theirs, or none.
          lengths: committed slots of the row before the chunk and after each of its calls.
          calls: decode calls of the text so far, this chunk's included.
          accepted_by_depth: accepted drafts so far, likewise.
          draft: what drafted the chunk's calls, where that is chosen while they run.
        """
        first, calls_before, place = len(self._token_ids), self._calls, None
        self._token_ids += token_ids
        self._logprobs += logprobs
        self._top_logprobs += top_logprobs
        if self._stream is not None:
            add = self._stream.add
            place = next((i for i, token in enumerate(token_ids, first + 1) if add(token)), None)
        if place is not None:
            self._cut(place, lengths, [0] * len(accepted_by_depth))
        else:
            self.length, self._calls, self._accepted_by_depth = lengths[-1], calls, accepted_by_depth
        if draft is not None and self._calls > calls_before:
            by_draft = self._calls_by_draft
            by_draft[draft] = by_draft.get(draft, 0) + self._calls - calls_before
        return place is not None

    def _cut(self, place: int, lengths: list[int], nothing: list[int]) -> None:
        """Ends the text after its first `place` tokens, and counts as if its calls had ended with the one that gave them.

        That call counts as it would have with more tokens to come, so that nothing depends on where a chunk ended.
        """
        del self._token_ids[place:], self._logprobs[place:], self._top_logprobs[place:]
        accepted = self._accepted_by_depth or nothing
        first_length = len(self.prompt.token_ids) - 1
        for before, after in itertools.pairwise(lengths):
            if before - first_length >= place:
                break
            if before > first_length:  # not the prefill's call
                self._calls += 1
                accepted = [count + (depth < after - before) for depth, count in enumerate(accepted, 1)]
        self._accepted_by_depth = accepted

    def show(self) -> str:
        """Gives the text that is new since the last call; nothing where it is not shown as it grows."""
        return "" if self._stream is None else self._stream.show()

    def finish(self, draft: str, settings: Settings) -> tuple[Generation, str]:
        """Gives what came of the prompt, and the rest of the text to show."""
        generation = make_generation(
            self._checkpoint,
            self.prompt,
            settings,
            self._token_ids,
            draft=draft,
            calls=self._calls,
            calls_by_draft=self._calls_by_draft or None,
            accepted_by_depth=self._accepted_by_depth,
            logprobs=self._logprobs if settings.logprobs else None,
            top_logprobs=self._top_logprobs if settings.top_logprobs else None,
            **self._of_prompt,
        )
        if self._stream is None:
            return generation, ""
        rest = self._stream.finish(generation.text)
        reason = "stop" if self._stream.is_stopped else generation.finish_reason
        return dataclasses.replace(generation, text=self._stream.text, finish_reason=reason), rest


def pairs(top_BUC: TopTokens | None, row: int, num_new: int) -> list[Top]:
    """Gives the most likely tokens in a row's first places, with their log-probabilities."""
    if top_BUC is None:
        return []
    each = (array[row, :num_new].tolist() for array in top_BUC)
    return [list(zip(ids, logprobs, strict=True)) for ids, logprobs in zip(*each, strict=True)]
