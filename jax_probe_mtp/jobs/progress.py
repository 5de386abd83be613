"""How far a run is, on stderr."""

import logging
import sys
import time
from collections.abc import Callable, Sequence

from tqdm import tqdm

from jax_probe_mtp.generation.answers import Stats
from jax_probe_mtp.jobs import processes

_logger = logging.getLogger("jax_probe_mtp")
SECONDS_A_LINE = 30.0  # between two lines of progress where no terminal shows a bar
# New tokens so far and the most there may be, of each record that is being decoded.
UnderWay = Sequence[tuple[int, int]]


class Progress:
    """A bar on a terminal's stderr; elsewhere a line now and then. Of several processes the first one shows it."""

    def __init__(self, total: int, num_done: int, stats: Stats, under_way: Callable[[], UnderWay]) -> None:
        """Args: records of the file, those that were done before, the run's sums, and what it is decoding now."""
        self._bar = tqdm(
            total=total,
            initial=num_done,
            unit="record",
            file=sys.stderr,
            disable=None if processes.is_first() else True,
            bar_format="{l_bar}{bar}| {n_fmt}/{total_fmt} [{elapsed}{postfix}]",  # its own time left counts compilation
        )
        self._total, self._num_done, self._stats, self._under_way = total, num_done, stats, under_way
        self._last = time.monotonic()
        self._shown = 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self) -> None:
        """Brings it up to date."""
        stats, now = self._stats, time.monotonic()
        if not self._bar.disable:
            self._bar.set_postfix_str(self._says(), refresh=False)
            self._bar.update(stats.records - self._shown)
            self._shown = stats.records
        elif processes.is_first() and now - self._last >= SECONDS_A_LINE and (stats.seconds or stats.records):
            _logger.info("%d of %d records, %s", self._num_done + stats.records, self._total, self._says())
            self._last = now

    def _says(self) -> str:
        stats, under_way = self._stats, self._under_way()
        num_tokens = stats.new_tokens + sum(tokens for tokens, _ in under_way)
        left = seconds_left(stats, self._total - self._num_done - stats.records, under_way)
        says = [f"{num_tokens / stats.seconds if stats.seconds else 0:.1f} tokens/s"]
        says += [f"tau {stats.tau:.3f}"] if stats.calls else []  # of records that ended
        says.append("time left unknown" if left is None else f"about {tqdm.format_interval(left)} left")
        return ", ".join(says)


def seconds_left(stats: Stats, num_left: int, under_way: UnderWay) -> float | None:
    """Guesses how long a run will take, by what it did so far; None where nothing is known.

    A record under way counts as the share of its tokens that it has: of as many as the records that ended have on average,
    or where it has more than that, or none has ended, of the most it may get. What could not run took no time, and says
    nothing.

    Args:
      stats: sums over what this run decoded; compilation is not in their seconds.
      num_left: records without an answer, those under way among them.
      under_way: the records that are being decoded.
    """
    if not num_left:
        return 0.0
    num_ended = stats.records - stats.errors
    mean = stats.new_tokens / num_ended if num_ended else float("inf")
    shares = sum(tokens / (min(mean, most) if tokens < mean else most) for tokens, most in under_way)
    done = num_ended + shares
    return stats.seconds / done * (num_left - shares) if done and stats.seconds else None
