"""What a job writes here for somewhere else: answers at an address, or on stdout."""

import logging
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from jax_probe_mtp.files.remote.address import Address, State

SECONDS_BETWEEN = 30.0  # two times that answers are put; as much is made again after a kill
TIMES_BETWEEN = 30  # as long as putting them took: 3% of the time
BYTES_CHECKED = 2**24  # of answers that are written once more to see whether they can be
_logger = logging.getLogger("jax_probe_mtp")


class WorkingCopy:
    """The files that a job reads and writes; a context manager around what writes them. Here they lie where they belong.

    Attributes:
      can_go_on: True where another run can go on with what this one wrote.
    """

    can_go_on = True

    def fetch(self) -> None:
        """Copies what is there."""

    def check_writable(self) -> None:
        """Finds out before anything slow starts whether what is written can be put where it belongs."""

    def chunk_ended(self) -> None:
        """Puts there what was written, where it is time to; the files are whole."""

    def put(self) -> None:
        """Puts there all that was written."""

    def put_anew(self) -> None:
        """Puts answers there that take the place of others, all of them made anew."""

    def __enter__(self) -> "WorkingCopy":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        """Puts there all that was written, unless the reader has gone or the user wants an end at once."""
        if kind is None:
            self.put()
        elif issubclass(kind, Exception) and not issubclass(kind, BrokenPipeError):
            try:
                self.put()
            except (ValueError, OSError) as failure:  # the first error is the one to be told
                _logger.warning("%s", failure)


class CopyOfAddress(WorkingCopy):
    """Answers and what belongs to them at an address, which are there whole, and from time to time.

    A store has no append, so a file is put whole. It has no lock either: where another run has written a file since this
    one last did, this one ends and leaves that file. Between the look and the writing it is not found out.

    Args:
      files: the copies, in the order in which they are put: what says what made the answers, the answers, all else. A kill
        between two of them then leaves no answers that nothing is known of. What made the answers only ever changes while
        there are none, but for what calls cost, so it never stands beside those of another run.
      addresses: of the files.
      keep: is told the folder of the files where it holds what could not be put.
    """

    def __init__(self, files: Sequence[Path], addresses: Sequence[Address], keep: Callable[[Path], None]) -> None:
        self._addresses = dict(zip(files, addresses, strict=True))
        self._keep = keep
        self._states: dict[Path, State | None] = {}  # there, when it was last fetched or put; none where that failed
        self._written: dict[Path, tuple[int, ...] | None] = {}  # here, at that time
        self._next = 0.0
        self._is_another_s = False

    def fetch(self) -> None:
        """Copies the files that are there.

        Raises:
          ValueError, OSError: if that cannot be read.
        """
        for path, address in self._addresses.items():
            self._states[path] = address.get(path)
            self._written[path] = _written(path)

    def check_writable(self) -> None:
        """Writes the answers that are there once more, or none where there are none. Many answers are not written for that.

        Raises:
          ValueError, OSError: if they cannot be written.
        """
        _, answers, *_ = self._addresses
        answers.touch()
        if answers.stat().st_size <= BYTES_CHECKED:
            self._put(answers)
        self._next = time.monotonic() + SECONDS_BETWEEN

    def chunk_ended(self) -> None:
        """Puts what has changed, where the last time is a while ago; where it cannot, says so in one line.

        Raises:
          ValueError: if another run has written there.
        """
        if time.monotonic() < self._next:
            return
        began = time.monotonic()
        try:
            self._put_changed()
        except OSError as error:
            _logger.warning("%s It is tried again.", error)
        now = time.monotonic()
        self._next = now + max(SECONDS_BETWEEN, TIMES_BETWEEN * (now - began))

    def put(self) -> None:
        """Puts what has changed.

        Raises:
          ValueError: if another run has written there.
          OSError: if it cannot be written; one line that says where it is.
        """
        if self._is_another_s:
            return
        try:
            self._put_changed()
        except OSError as error:
            raise OSError(self._lost(error)) from None

    def put_anew(self) -> None:
        """Puts all, where at no moment answers stand beside what made others; raises as `put` does."""
        made_by, *others = self._addresses
        try:
            self._addresses[made_by].remove()
            self._states[made_by] = None
            for path in (*others, made_by):
                self._put(path)
        except OSError as error:
            raise OSError(self._lost(error)) from None

    def _put_changed(self) -> None:
        for path in self._addresses:
            if path.exists() and _written(path) != self._written[path]:
                self._put(path)

    def _put(self, path: Path) -> None:
        address = self._addresses[path]
        if path in self._states and address.state() != self._states[path]:
            self._is_another_s = True
            says = f"{address} was written by another run since this one began; let one alone write it."
            raise ValueError(self._lost(says))
        written = _written(path)
        self._states.pop(path, None)  # a put that fails may have written
        self._states[path] = address.put(path)
        self._written[path] = written

    def _lost(self, says: object) -> str:
        """Keeps what is here, and says so."""
        folder = next(iter(self._addresses)).parent
        self._keep(folder)
        return f"{says} What is missing there lies in {folder}: copy it, or give the same command to make it anew."


class CopyOnStdout(WorkingCopy):
    """Answers that go to stdout as they end.

    Args:
      path: the file that they are written to first.
    """

    can_go_on = False

    def __init__(self, path: Path) -> None:
        self._path = path
        self._size = 0  # what of it is on stdout

    def chunk_ended(self) -> None:
        """Writes what is new.

        Raises:
          BrokenPipeError: if the reader has gone.
        """
        self.put()

    def put(self) -> None:
        """Writes what is new; raises as `chunk_ended` does."""
        with self._path.open("rb") as file:
            file.seek(self._size)
            while data := file.read(2**20):
                sys.stdout.buffer.write(data)
                self._size += len(data)
        sys.stdout.buffer.flush()


def _written(path: Path) -> tuple[int, ...] | None:
    """Gives what changes when a file here is written or replaced; None where there is none."""
    if not path.exists():
        return None
    status = path.stat()
    return status.st_ino, status.st_size, status.st_mtime_ns
