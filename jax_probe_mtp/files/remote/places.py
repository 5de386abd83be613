"""Where a command keeps copies of what lies elsewhere, so that all else reads and writes files of this machine."""

import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType

from jax_probe_mtp.files.remote.address import STREAM, Address
from jax_probe_mtp.files.remote.working_copy import CopyOfAddress, CopyOnStdout, WorkingCopy

_logger = logging.getLogger("jax_probe_mtp")


class Places:
    """Folders of one command for copies; a context manager that removes them, and names what was copied in messages.

    Files of one folder elsewhere lie in one folder here. So two names of one file are one path, side files lie where they
    are looked for, and a message names an address by its copy's folder put back: in the lines logged, and in the
    ValueError or OSError that leaves the block.
    """

    def __init__(self) -> None:
        self._folders: dict[str, Path] = {}  # by the folder elsewhere
        self._names: dict[str, str] = {}  # how a path begins here, and there
        self._kept: set[Path] = set()

    def path_of(self, address: Address) -> Path:
        """Gives the path of a file's copy, which need not be there.

        Raises:
          ValueError: if nothing knows such addresses.
          OSError: if there is no room for a folder.
        """
        folder, name = address.place()
        return self._folder(folder, f"{address.folder}/") / name

    def path_of_stream(self, name: str) -> Path:
        """Gives the path of a file that stands for stdin or stdout, and has its name in messages."""
        return self._folder(str(STREAM), "") / name

    def _folder(self, folder: str, begins: str) -> Path:
        if folder not in self._folders:
            made = Path(tempfile.mkdtemp(prefix="jax_probe_mtp-")).resolve()
            self._folders[folder] = made
            self._names[f"{made}{os.sep}"] = begins
        return self._folders[folder]

    def read(self, source: Path | Address | None) -> Path | None:
        """Gives the file to read in place of `source`: itself, or a copy made now, whole.

        Raises:
          ValueError, OSError: if it cannot be read; one line with the address.
        """
        if not isinstance(source, Address):
            return source
        if source == STREAM:
            path = self.path_of_stream("stdin")
            _spool_stdin(path)
        elif source.get(path := self.path_of(source)) is None:
            raise OSError(f"{source} is not there, or its bucket or folder is not; check the address.")
        return path

    def read_answers(self, source: Path | Address, beside: Callable[[Path], Path]) -> Path:
        """Gives what `read` does, and copies the file that `beside` gives for its path, where it is there."""
        path = self.read(source)
        assert path is not None
        if isinstance(source, Address):
            source.beside(beside(path).name).get(beside(path))
        return path

    def write(
        self, output: Path | Address | None, files_of: Callable[[Path], Sequence[Path]]
    ) -> tuple[Path | None, WorkingCopy]:
        """Gives the file to write in place of `output`, and what puts it there; what is there is copied now.

        Args:
          output: a file, an address or `STREAM`.
          files_of: gives all that belongs to the answers at a path, in the order of `CopyOfAddress`.

        Raises:
          ValueError, OSError: if it cannot be read; one line with the address.
        """
        if not isinstance(output, Address):
            return output, WorkingCopy()
        if output == STREAM:
            path = self.path_of_stream("stdout")
            return path, CopyOnStdout(path)
        path = self.path_of(output)
        files = files_of(path)
        copy = CopyOfAddress(files, [output.beside(file.name) for file in files], self.keep)
        copy.fetch()
        return path, copy

    def named(self, text: object) -> str:
        """Puts addresses in the place of their copies' paths."""
        said = str(text)
        for here, there in self._names.items():
            said = said.replace(here, there)
        return said

    def keep(self, folder: Path) -> None:
        """Leaves a folder of copies when the block ends."""
        self._kept.add(folder)

    def filter(self, record: logging.LogRecord) -> bool:
        """Names addresses in a line of the log."""
        if self._names:
            record.msg, record.args = self.named(record.getMessage()), ()
        return True

    def __enter__(self) -> "Places":
        _logger.addFilter(self)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        _logger.removeFilter(self)
        for folder in set(self._folders.values()) - self._kept:
            shutil.rmtree(folder, ignore_errors=True)
        is_said = isinstance(error, ValueError | OSError) and not isinstance(error, BrokenPipeError)
        if is_said and (said := self.named(error)) != str(error):
            raise (ValueError if isinstance(error, ValueError) else OSError)(said) from None


def _spool_stdin(path: Path) -> None:
    """Copies all of stdin: a prompt file is read more than once."""
    if sys.stdin is None:
        raise ValueError("- is stdin, which is closed; name a file.")
    with path.open("wb") as out:
        shutil.copyfileobj(sys.stdin.buffer, out)
