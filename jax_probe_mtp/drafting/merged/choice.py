"""Chooses the size of a draft by what its calls cost and give, between two chunks of calls."""

import dataclasses
from collections.abc import Sequence

from jax_probe_mtp.drafting.source import DraftSource
from jax_probe_mtp.drafting.spec import PLAIN, draft_name

KEPT = 0.99  # of what was seen counts after each further chunk
PRIOR = (1.0, 7.0)  # drafts accepted and not, as if seen before the first call
REST = 2  # chunks at least between two trials
LOST = 0.005  # of the time at most, by trials of one size
TRIAL_CALLS = 16  # of all rows together


@dataclasses.dataclass(frozen=True)
class Turn:
    """What the next chunk is.

    Attributes:
      size: number of the size, from 0.
      source: what drafts.
      calls: the most that it makes.
    """

    size: int
    source: DraftSource
    calls: int

    @property
    def name(self) -> str:
        """Names what drafts, as `spec.draft_name` does."""
        return draft_name(self.source) if self.source.max_depth else PLAIN


@dataclasses.dataclass
class _Seen:
    """What calls of one size gave, the earlier the less."""

    depth: int
    accepted: float = 0.0
    refused: float = 0.0
    seconds: float = 0.0
    calls: float = 0.0

    def add(self, seconds: float, calls: int, row_calls: int, tokens: int, age: int) -> None:
        """Adds a chunk; the one of this size before it was `age` chunks ago."""
        kept = KEPT**age
        self.accepted = kept * self.accepted + tokens - row_calls
        self.refused = kept * self.refused + row_calls * (1 + self.depth) - tokens
        self.seconds, self.calls = kept * self.seconds + seconds, kept * self.calls + calls

    @property
    def tau(self) -> float:
        """Expects so many tokens of a row's call: the mean of a Beta distribution of the share of a path that is accepted."""
        accepted, refused = self.accepted + PRIOR[0], self.refused + PRIOR[1]
        return 1 + self.depth * accepted / (accepted + refused)

    @property
    def rate(self) -> float:
        """Expects so many tokens a second of each row."""
        return self.tau * self.calls / self.seconds if self.seconds else 0.0


class Choice:
    """Chooses the size of each chunk.

    The rule: the size in use stays, but for trials of a neighbour, the next larger or smaller one. A trial is a few calls. If
    the neighbour then promises more tokens a second, it is the size in use from there on. If not, the trial has lost some
    time, and the next one of that size comes when this is `LOST` of the time since. What a size promises is tau / seconds a
    call: tau is 1 + depth * (share of the longest path that was accepted), of Beta counts; recent chunks count more than
    older ones. Of two neighbours the one comes whose last chunk is longer ago, the smaller one first.

    In float32 no token depends on any of it.
    """

    def __init__(self, sizes: Sequence[DraftSource], num_rows: int, calls_per_chunk: int) -> None:
        """Begins with the smallest size that drafts.

        Args:
          sizes: from the one without drafts to the largest.
          num_rows: B, rows of the batch.
          calls_per_chunk: K.
        """
        self._sizes, self._calls_per_chunk = sizes, calls_per_chunk
        self._trial_calls = min(calls_per_chunk, max(2, -(-TRIAL_CALLS // num_rows)))
        self._seen = [_Seen(size.max_depth) for size in sizes]
        self._in_use, self._left = min(1, len(sizes) - 1), REST
        self._seconds, self._num_chunks = 0.0, 0  # of all so far
        self._last = [0] * len(sizes)  # number of each size's last chunk
        self._not_before = [0.0] * len(sizes)  # seconds of all, at which each may be tried again

    def turn(self) -> Turn:
        """Says what the next chunk is; asked again before `note`, it says the same."""
        near = [size for size in (self._in_use - 1, self._in_use + 1) if 0 <= size < len(self._seen)]
        near = [size for size in near if self._left <= 0 and self._seconds >= self._not_before[size]]
        if not near:
            return Turn(self._in_use, self._sizes[self._in_use], self._calls_per_chunk)
        size = min(near, key=lambda size: self._last[size])
        return Turn(size, self._sizes[size], self._trial_calls)

    def note(self, turn: Turn, *, seconds: float, calls: int, row_calls: int, tokens: int) -> None:
        """Takes what a chunk gave.

        Args:
          turn: what it was.
          seconds: its time on the device, prefills not counted.
          calls: calls that were made.
          row_calls: those of all rows that decoded something.
          tokens: that they gave.
        """
        size = turn.size
        self._num_chunks, self._seconds = self._num_chunks + 1, self._seconds + seconds
        if row_calls:
            self._seen[size].add(seconds, calls, row_calls, tokens, self._num_chunks - self._last[size])
        self._last[size] = self._num_chunks
        if size == self._in_use:
            self._left -= 1
            return
        self._left = REST
        rate, usual = self._seen[size].rate, self._seen[self._in_use].rate
        if rate > usual:
            self._in_use = size
        elif usual:
            self._not_before[size] = self._seconds + seconds * (1 - rate / usual) / LOST
