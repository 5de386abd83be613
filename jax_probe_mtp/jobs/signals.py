"""How a run is asked to stop."""

import logging
import signal
import time
from types import FrameType

_logger = logging.getLogger("jax_probe_mtp")


class Signals:
    """SIGINT and SIGTERM as a wish to stop, which the run looks for between two chunks; the second one stops at once.

    Attributes:
      received: the signal's number; 0 for none.
    """

    def __init__(self) -> None:
        self.received = 0
        self._chunk_began = time.monotonic()
        self._chunk_seconds: float | None = None

    def chunk_ended(self) -> None:
        """Notes how long the run has been at what it now looks up from: so long a stop may take."""
        now = time.monotonic()
        self._chunk_seconds, self._chunk_began = now - self._chunk_began, now

    def __enter__(self) -> "Signals":
        self._before = {number: signal.signal(number, self._note) for number in (signal.SIGINT, signal.SIGTERM)}
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.received:
            raise KeyboardInterrupt
        self.received = number
        took = "" if self._chunk_seconds is None else f", the last of which took {self._chunk_seconds:.1f} s"
        _logger.info(
            "%s: finishing the calls under way%s; a second signal stops at once, and the next run makes them again",
            signal.Signals(number).name,
            took,
        )
