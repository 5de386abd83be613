"""Chooses the size of a draft by what its calls cost and give, between two chunks of calls."""

import dataclasses
import statistics
from collections.abc import Callable, Sequence

from jax_probe_mtp.drafting.merged.costs import Costs
from jax_probe_mtp.drafting.source import DraftSource
from jax_probe_mtp.drafting.spec import PLAIN, draft_name

KEPT = 0.995  # of what was seen counts after each further chunk
PRIOR = (1.0, 7.0)  # drafts accepted and not, as if seen before the first call
REST = 2  # chunks at least between two trials
LOST = 0.005  # of the time at most, by trials of one size
MEASURED = 5  # chunks; their middle one is the cost of a call from then on


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
        return _name(self.source)


def _name(source: DraftSource) -> str:
    return draft_name(source) if source.max_depth else PLAIN


@dataclasses.dataclass
class _Size:
    """What is known of one size: what its calls gave, the earlier the less, and what they cost."""

    source: DraftSource
    cost: float | None  # seconds a call; None until it has been measured
    is_loaded: bool
    accepted: float = 0.0
    refused: float = 0.0
    last: int = 0  # number of its last chunk
    not_before: float = 0.0  # seconds of all, at which it may be tried again
    measured: list[float] = dataclasses.field(default_factory=list)

    def add(self, row_calls: int, tokens: int, number: int) -> None:
        """Adds what chunk `number` gave."""
        kept = KEPT ** (number - self.last)
        self.accepted = kept * self.accepted + tokens - row_calls
        self.refused = kept * self.refused + row_calls * (1 + self.source.max_depth) - tokens

    @property
    def tau(self) -> float:
        """Expects so many tokens of a row's call: the mean of a Beta distribution of the share of a path that is accepted."""
        accepted, refused = self.accepted + PRIOR[0], self.refused + PRIOR[1]
        return 1 + self.source.max_depth * accepted / (accepted + refused)

    @property
    def rate(self) -> float:
        """Expects so many tokens a second of each row."""
        return self.tau / self.cost if self.cost else 0.0


class Choice:
    """Chooses the size of each chunk.

    The rule: the size in use stays, but for trials of a neighbour, the next larger or smaller one, a chunk each; the first
    one of calls without drafts lasts until their cost is settled. If the
    neighbour then promises more tokens a second, it is the size in use from there on. If not, the trial has lost some time,
    and the next one of that size comes when this is `LOST` of the time since. The smallest size that drafts is left at once
    where it promises less than calls without drafts. What a size promises is tau / cost: tau is
    1 + depth * (share of the longest path that was accepted), of Beta counts; recent chunks count more than older ones. The
    cost of a call is the middle one of `MEASURED` chunks, or known before. A program's first call also loads it: it is
    made alone, and counts for no cost. Of two neighbours the one comes whose last chunk is longer ago, the smaller one first.

    A size whose program is not there yet is not tried; in place of the size in use, calls without drafts are made. Calls are
    slower while something is compiled: they count for no cost, and decide nothing.

    Once the costs are known, the choice follows from the counts alone. In float32 no token depends on any of it.
    """

    def __init__(
        self, sizes: Sequence[DraftSource], calls_per_chunk: int, batch: str = "", costs: Costs | None = None
    ) -> None:
        """Begins with the smallest size that drafts.

        Args:
          sizes: from the one without drafts to the largest.
          calls_per_chunk: K.
          batch: by what name its costs are known.
          costs: what is known of calls, also to others at the same time, and gets what is measured.
        """
        self._costs, self._batch, self._calls_per_chunk = Costs() if costs is None else costs, batch, calls_per_chunk
        self._sizes = [_Size(size, cost=None, is_loaded=False) for size in sizes]
        self._take_known()
        for size in self._sizes:
            size.is_loaded = size.cost is not None
        self._in_use, self._left = min(1, len(sizes) - 1), REST
        self._tried: int | None = None  # the size that has been loaded to be tried
        self._seconds, self._num_chunks = 0.0, 0  # of all so far

    def turn(self, has: Callable[[DraftSource], bool] = lambda size: True) -> Turn:
        """Says what the next chunk is.

        Args:
          has: says whether the program of a size is there, and has it made if not; always of the size without drafts.
        """
        if not has(self._sizes[self._in_use].source):
            return self._turn(0)
        near = [size for size in (self._in_use - 1, self._in_use + 1) if 0 <= size < len(self._sizes)]
        near = [size for size in near if self._left <= 0 and self._seconds >= self._sizes[size].not_before]
        near = [size for size in near if has(self._sizes[size].source)]
        size = self._in_use if self._tried is None else self._tried
        if near and self._tried is None:
            size = min(near, key=lambda size: self._sizes[size].last)
        return self._turn(size)

    def _turn(self, size: int) -> Turn:
        is_loaded = self._sizes[size].is_loaded
        return Turn(size, self._sizes[size].source, self._calls_per_chunk if is_loaded else 1)

    def note(self, turn: Turn, *, seconds: float | None, calls: int, row_calls: int, tokens: int) -> None:
        """Takes what a chunk gave.

        Args:
          turn: what it was.
          seconds: its time on the device, prefills not counted; None where something else slowed it down.
          calls: calls that were made.
          row_calls: those of all rows that decoded something.
          tokens: that they gave.
        """
        size = self._sizes[turn.size]
        if not calls:  # every text had ended
            return
        self._take_known()
        self._num_chunks += 1
        size.add(row_calls, tokens, self._num_chunks)
        size.last = self._num_chunks
        is_trial = turn.size != self._in_use
        self._tried = turn.size if is_trial and seconds is not None and not size.is_loaded else None
        if not size.is_loaded or seconds is None:
            size.is_loaded = True
            return
        self._measure(turn, seconds / calls, is_whole=calls == turn.calls)
        assert size.cost is not None
        self._seconds += size.cost * calls
        if turn.size == self._in_use:
            self._left -= 1
            if self._in_use == 1 and self._sizes[0].rate > size.rate:  # what is without drafts gives is no guess
                self._in_use, self._left = 0, REST
            return
        if turn.size == 0 and 0 < len(size.measured) < MEASURED:
            self._tried = 0
            return
        self._left = REST
        rate, usual = size.rate, self._sizes[self._in_use].rate
        if rate > usual:
            self._in_use = turn.size
        else:
            size.not_before = self._seconds + size.cost * calls * (1 - rate / usual) / LOST

    def _take_known(self) -> None:
        """Takes the costs that are settled, some of them maybe by another group of devices."""
        for size in self._sizes:
            known = self._costs.get(self._batch, _name(size.source))
            size.cost = size.cost if known is None else known

    def _measure(self, turn: Turn, cost: float, *, is_whole: bool) -> None:
        """Takes the cost of a chunk's calls until that of the size is settled; one that ended early is for want of others."""
        size = self._sizes[turn.size]
        if self._costs.get(self._batch, turn.name) is not None or (size.measured and not is_whole):
            return
        size.measured.append(cost)
        size.cost = statistics.median(size.measured)
        if len(size.measured) >= MEASURED:
            self._costs.add(self._batch, turn.name, size.cost)
