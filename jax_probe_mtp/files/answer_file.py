"""Answers on disk: a run that was cut off at any moment goes on where it was."""

import contextlib
import errno
import itertools
import json
import logging
import os
import shutil
from array import array
from bisect import bisect_right
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from jax_probe_mtp.files.ids import KeySet, answer_key, sample_name
from jax_probe_mtp.files.run_file import differences, no_room, read_run, sync_folder, write_run

try:
    import fcntl
except ImportError:  # Windows: two runs at once are not found out
    fcntl = None  # type: ignore[assignment]

_NO_LOCKS = (errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS)  # the file system has none
_logger = logging.getLogger("jax_probe_mtp")


class AnswerFile:
    """JSON lines, each an object with an "id", that a run appends to; a context manager.

    What a cut-off write left torn at the end is dropped when the file is opened, and made again by the run.

    Args:
      path: the file, new or of an earlier run that goes on.
      run: what decides the answers, JSON values in at most two levels. It is kept beside the answers, at `run_path`.
      renew: rewrites what an earlier version wrote there as this one would; it leaves all else as it is.
      see: is told the key (`ids.answer_key`) of each answer in the file, and the answer.

    Attributes:
      done: keys of the answers that were in the file when it was opened.
      num_kept: records that were in the file when it was opened.
      num_errors: records in the file whose `finish_reason` is "error".
      num_written: records in the file.

    Raises:
      ValueError: if the answers there are of another run, or no run is known for them, if another run is writing them,
        or if they hold an answer to a record twice or a line that is no record.
      OSError: if the file cannot be read or written.
    """

    def __init__(
        self,
        path: Path,
        run: Mapping[str, Any],
        renew: Callable[[dict[str, Any]], dict[str, Any]] = dict,
        see: Callable[[int, dict[str, Any]], None] = lambda key, answer: None,
    ) -> None:
        self._path = path
        self._file = _open_locked(path)
        try:
            _partial(path.resolve()).unlink(missing_ok=True)  # of a run that was killed while it took answers out
            if not os.fstat(self._file.fileno()).st_size:
                write_run(path, run)
            elif different := differences(renew(read_run(path)), run):
                then, now = different
                way_out = "name another --output or give the same command"
                if then.startswith("model."):
                    way_out = "name another --output or give the same command with the same model"
                raise ValueError(f"{path} was made with {then}, but this run has {now}; {way_out}.")
            self._read(see)
        except BaseException:
            self._file.close()
            raise

    def _read(self, see: Callable[[int, dict[str, Any]], None]) -> None:
        keys = array("Q")
        self._size = self.num_errors = 0  # _size: where the last whole record ends
        for _, answer, key, end in whole_records(self._path):
            keys.append(key)
            see(key, answer)
            self.num_errors += answer.get("finish_reason") == "error"
            self._size = end
        self.num_kept = self.num_written = len(keys)
        self.done = KeySet(keys)
        for repeated in self.done.repeated():
            (first, _), (second, answer), *_ = lines_of(repeated, self._path)
            says = f"has the id {sample_name(answer['id'], answer.get('sample'))} of {first}"
            if "occurrence" in answer:
                says = f"answers the record of {first} once more"
            raise ValueError(f"{second} {says}; keep one of the two lines.")
        torn = os.fstat(self._file.fileno()).st_size - self._size
        if torn:
            _logger.warning(
                "%s: dropped %d bytes after record %d: cut off, made again.", self._path, torn, self.num_kept
            )
            self._file.truncate(self._size)

    def remove(self, keys: Collection[int]) -> None:
        """Takes the answers of these keys out of the file, at once: whoever reads it finds all answers or those that stay.

        Raises:
          OSError: if there is no room for those that stay; then nothing is taken out.
        """
        path = self._path.resolve()  # a link keeps pointing where it does
        partial, start = _partial(path), 0
        try:
            with partial.open("wb") as out:
                shutil.copymode(path, partial)
                for _, _, key, end in whole_records(path):
                    if key not in keys:
                        self._file.seek(start)
                        out.write(self._file.read(end - start))
                    start = end
                out.flush()
                os.fsync(out.fileno())
            file = partial.open("a+b", buffering=0)
            lock(file, path, is_shared=False)  # before it has the name that other runs look for
            os.replace(partial, path)
        except OSError as error:
            partial.unlink(missing_ok=True)
            raise no_room(path, error, "nothing was changed") from None
        sync_folder(path.parent)  # what is written from now on goes into the new file
        self._file.close()
        self._file = file
        self._read(lambda key, answer: None)

    def write(self, answers: Sequence[Mapping[str, Any]]) -> None:
        """Appends the records; they are on the disk when it returns.

        Raises:
          OSError: if they cannot be written. Those of this call that went in whole stay, and none is torn.
        """
        lines = [(json.dumps(answer, ensure_ascii=False, allow_nan=False) + "\n").encode() for answer in answers]
        ends = list(itertools.accumulate(map(len, lines), initial=0))
        data, num_bytes, num_whole, failure = memoryview(b"".join(lines)), 0, 0, None
        try:
            self._file.truncate(self._size)  # what a call that Ctrl-C ended may have left
            while num_bytes < len(data):
                num_bytes += self._file.write(data[num_bytes:])
                num_whole = bisect_right(ends, num_bytes) - 1
        except OSError as error:
            failure = error
        try:
            if failure:
                self._file.truncate(self._size + ends[num_whole])
            os.fsync(self._file.fileno())
        except OSError as error:  # what of this call is on the disk is not known
            failure, num_whole = failure or error, 0
            with contextlib.suppress(OSError):  # the next opening drops what stays
                self._file.truncate(self._size)
        self._size += ends[num_whole]
        self.num_written += num_whole
        self.num_errors += sum(answer.get("finish_reason") == "error" for answer in answers[:num_whole])
        if failure:
            raise no_room(self._path, failure, f"{self.num_written} records are whole in it")

    def close(self) -> None:
        """Lets the next run have the file."""
        self._file.close()

    def __enter__(self) -> "AnswerFile":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _partial(path: Path) -> Path:
    """Gives the name of the file that is to replace the answers; whoever has their lock has it too."""
    return path.with_name(f"{path.name}.partial")


def _open_locked(path: Path) -> IO[bytes]:
    """Opens a file of answers, new or not, that no other run has.

    Raises:
      ValueError: if another run has it.
    """
    while True:
        file = path.open("a+b", buffering=0)  # "a": a link keeps pointing where it does, and nothing is cut
        try:
            lock(file, path, is_shared=False)
            if path.exists() and os.path.samestat(os.fstat(file.fileno()), path.stat()):
                return file
        except BaseException:
            file.close()
            raise
        file.close()  # another run has put a file in its place meanwhile


def whole_records(path: Path) -> Iterator[tuple[str, dict[str, Any], int, int]]:
    """Gives name for messages, answer, key and end offset of each line, up to one that a cut-off write left torn.

    Raises:
      ValueError: if a line that is no record has more than NULs after it, which a power cut leaves.
    """
    torn, end = 0, 0
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if torn and line.strip(b"\0\n"):
                raise ValueError(f"{path}, line {torn} is no record with an id; mend that line or delete it.")
            try:
                answer = json.loads(line.decode())
                is_whole = line.endswith(b"\n") and isinstance(answer["id"], str | int)
                key = answer_key(answer)
            except (ValueError, TypeError, KeyError, RecursionError):
                is_whole = False
            if is_whole:
                end += len(line)
                yield f"{path}, line {number}", answer, key, end
            else:
                torn = torn or number


def lines_of(key: int, path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Gives name for messages and answer of each line of this key."""
    return ((where, answer) for where, answer, found, _ in whole_records(path) if found == key)


def lock(file: IO[bytes], path: Path, *, is_shared: bool) -> None:
    """Keeps other runs out until the file is closed: all of them, or, where `is_shared`, those that write.

    Raises:
      ValueError: if another run is there. Where the file system has no locks, nothing is found out.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(file, (fcntl.LOCK_SH if is_shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        raise ValueError(f"another run is writing {path}; wait for its end or name another file.") from None
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
