"""How a run is asked to stop."""

import logging
import signal
from types import FrameType

_logger = logging.getLogger("jax_probe_mtp")


class Signals:
    """SIGINT and SIGTERM as a wish to stop, which the run looks for between two chunks; the second one stops at once.

    Attributes:
      received: the signal's number; 0 for none.
    """

    def __init__(self) -> None:
        self.received = 0

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
        _logger.info("%s: finishing the calls under way", signal.Signals(number).name)
