"""What a run has come to, as a file that others can look at while it goes."""

import contextlib
import resource
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from jax_probe_mtp.files.whole_files import write_json
from jax_probe_mtp.generation.answers import Stats

SECONDS = 5.0  # between two writings


class StatsFile:
    """The file of --stats-json."""

    def __init__(self, path: Path | None, facts: Mapping[str, Any], num_devices: int) -> None:
        """Args: the file, None to write nothing; more of what it holds; devices that share the work."""
        self._path, self._facts, self._num_devices = path, facts, num_devices
        self._next = time.monotonic() + SECONDS

    def write(self, stats: Stats, *, is_last: bool = False) -> None:
        """Writes it whole, or leaves it as it was: not again so soon, unless it is the last time.

        Raises:
          OSError: if it cannot be written the last time.
        """
        if self._path is None or (not is_last and time.monotonic() < self._next):
            return
        record = stats.as_json()
        speed = record["tokens_per_second"]
        record |= {"devices": self._num_devices, "tokens_per_second_a_device": speed and speed / self._num_devices}
        record |= {"is_running": not is_last, "peak_host_bytes": peak_host_bytes(), **self._facts}
        with contextlib.nullcontext() if is_last else contextlib.suppress(OSError):  # no reason to end a run
            write_json(self._path, record)
        self._next = time.monotonic() + SECONDS


def peak_host_bytes() -> int:
    """Gives the most memory that this process has had on the host."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
