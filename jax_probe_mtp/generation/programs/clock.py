"""When programs are compiled, and the thread that compiles in the background."""

import concurrent.futures
import time
from collections.abc import Callable
from typing import ClassVar


class CompileClock:
    """When programs were compiled, and who compiles in the background; several `Programs` of one host may share it.

    Attributes:
      waiting: what all clocks have in the background, under way or before it. The end of the process waits for what is under
        way.
    """

    waiting: ClassVar[set["concurrent.futures.Future[None]"]] = set()

    def __init__(self) -> None:
        """Begins with nothing compiled."""
        self._spans: list[tuple[float, float]] = []
        self._thread = concurrent.futures.ThreadPoolExecutor(1)
        self._later: list[concurrent.futures.Future[None]] = []
        self._disturbed = 0.0  # when something last began or ended in the background

    def note(self, start: float) -> None:
        """Notes that something was compiled from `start`, of `time.perf_counter`, until now."""
        self._spans.append((start, time.perf_counter()))

    @property
    def seconds(self) -> float:
        """Gives the seconds of all compilation so far that somebody waited for."""
        return self.since(0.0)

    def since(self, moment: float) -> float:
        """Gives the seconds of compilation after a moment."""
        return sum(max(0.0, end - max(start, moment)) for start, end in self._spans)

    def later(self, compile_it: Callable[[], None]) -> "concurrent.futures.Future[None]":
        """Has something compiled in the background, whose time is nobody's, after what `later` got before."""
        self._disturbed = time.perf_counter()
        future = self._thread.submit(compile_it)
        self.waiting.add(future)
        self._later = [*(earlier for earlier in self._later if not earlier.done()), future]
        future.add_done_callback(self._ended)
        return future

    def _ended(self, future: "concurrent.futures.Future[None]") -> None:
        self.waiting.discard(future)
        self._disturbed = time.perf_counter()

    def give_up_later(self) -> None:
        """Lets go of what was to be compiled in the background and has not begun."""
        for future in self._later:
            future.cancel()

    def was_quiet_since(self, moment: float) -> bool:
        """Says whether nothing has been compiled since a moment: that slows down all else."""
        return not self.since(moment) and self._disturbed < moment and all(future.done() for future in self._later)
