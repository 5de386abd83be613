"""How far a run is, on stderr."""

import logging
import sys
import time

from tqdm import tqdm

from jax_probe_mtp.generation.answers import Stats
from jax_probe_mtp.jobs import processes

_logger = logging.getLogger("jax_probe_mtp")
SECONDS_A_LINE = 30.0  # between two lines of progress where no terminal shows a bar


class Progress:
    """A bar on a terminal's stderr; elsewhere a line now and then. Of several processes the first one shows it."""

    def __init__(self, total: int, num_done: int, stats: Stats) -> None:
        self._bar = tqdm(
            total=total,
            initial=num_done,
            unit="record",
            file=sys.stderr,
            disable=None if processes.is_first() else True,
        )
        self._total, self._num_done, self._stats = total, num_done, stats
        self._start = self._last = time.monotonic()
        self._shown = 0

    def __enter__(self) -> "Progress":
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def show(self) -> None:
        """Brings it up to date."""
        stats, now = self._stats, time.monotonic()
        speed = f"{stats.new_tokens / stats.seconds if stats.seconds else 0:.1f} tokens/s, tau {stats.tau:.3f}"
        if not self._bar.disable:
            self._bar.set_postfix_str(speed, refresh=False)
            self._bar.update(stats.records - self._shown)
            self._shown = stats.records
        elif processes.is_first() and now - self._last >= SECONDS_A_LINE and stats.records:
            done = self._num_done + stats.records
            left = (now - self._start) / stats.records * (self._total - done)
            _logger.info("%d of %d records, %s, about %s left", done, self._total, speed, tqdm.format_interval(left))
            self._last = now
