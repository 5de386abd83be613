"""Files at addresses, such as `gs://bucket/f.jsonl`, of any store that fsspec knows: looked at, fetched, put whole.

fsspec rather than etils.epath: it comes with huggingface_hub, knows more stores, and has one of its own in memory.
"""

import argparse
import contextlib
import dataclasses
import errno
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from jax_probe_mtp.errors import PACKED, local_file, one_line

# What stores say of a file that changes when it is written; each says some of it.
_CHANGES = (
    *("ETag", "etag", "md5Hash", "generation", "VersionId", "version_id", "blob_id", "ino"),
    *("mtime", "LastModified", "last_modified", "updated", "created"),
)
_PIP_NAMES = {"smbclient": "smbprotocol"}  # of modules that are not called as their package is
State = tuple[Any, ...]  # of a file at an address: another one where it was written since


@dataclasses.dataclass(frozen=True)
class Address:
    """A file at an address. Every method raises ValueError or OSError: one line with the address and a way out.

    Attributes:
      text: the address.
    """

    text: str

    def __str__(self) -> str:
        return self.text

    @property
    def folder(self) -> str:
        """Gives the address up to its last slash, without it."""
        return self.text.rpartition("/")[0]

    @property
    def name(self) -> str:
        """Gives the address from its last slash on."""
        return self.text.rpartition("/")[2]

    def beside(self, name: str) -> "Address":
        """Gives the address of a file in the same folder."""
        return Address(f"{self.folder}/{name}")

    def store(self) -> tuple[Any, str]:
        """Gives the file system and the path in it.

        Raises:
          ValueError: if nothing that is installed knows such addresses.
        """
        kind, _, rest = self.text.partition("://")
        try:
            from fsspec.core import url_to_fs
            from fsspec.registry import get_filesystem_class
        except ImportError:
            raise ValueError(f"{self} is an address, which fsspec reads and writes: pip install fsspec.") from None
        try:
            get_filesystem_class(kind.lower())
            file_system, path = url_to_fs(f"{kind.lower()}://{rest}")
        except ImportError as error:
            missing = error.__cause__ if isinstance(error.__cause__, ImportError) else error
            module = (missing.name or "").partition(".")[0]
            package = _PIP_NAMES.get(module, module) or f"'fsspec[{kind.lower()}]'"
            raise ValueError(f"{self} needs {package}, which is not installed: pip install {package}.") from None
        except Exception as error:  # of the store's own kinds, as below
            if "Protocol not known" in str(error):
                says = f"nothing knows addresses that begin with {kind}://"
                raise ValueError(f"{self}: {says}; give a path or another address.") from None
            raise self._failed("reached", error) from None
        return file_system, path

    def place(self) -> tuple[str, str]:
        """Gives the folder and the name as the store has them: the same for two ways of writing one address."""
        file_system, path = self.store()
        folder, _, name = path.rpartition("/")
        return f"{type(file_system).__name__} {folder}", name

    def state(self) -> State | None:
        """Says what changes when the file is written, its size first (None where it is not known); None where it is missing."""
        file_system, path = self.store()
        with self._said("read"):
            file_system.invalidate_cache()  # of what a folder held when something last looked
            try:
                says = file_system.info(path)
            except FileNotFoundError:  # not `exists`, which takes any failure for a missing file
                return None
        if says.get("type") != "file":
            raise ValueError(f"{self} is not a file but a folder or a device; name a file.")
        return _state(says)

    def states(self) -> dict[str, State]:
        """Gives the `state` of each file of a folder by its path in it; of a file its own by "", and of nothing none."""
        file_system, path = self.store()
        with self._said("read"):
            file_system.invalidate_cache()
            found = file_system.find(path, detail=True)
        inside = {name.removeprefix(path): says for name, says in found.items() if f"{name}/".startswith(f"{path}/")}
        return {
            name[1:]: _state(says) for name, says in inside.items() if not name.endswith("/")
        }  # which marks a folder

    def get(self, local: Path, folder_from: str = "TMPDIR") -> State | None:
        """Fetches the file, whole, with the time at which it was written where that is known; gives its `state`, as before.

        Args:
          local: where to.
          folder_from: the environment's variable that says so, for messages.
        """
        state = self.state()
        if state is None:
            return None
        file_system, path = self.store()
        with self._said("read", local, folder_from):
            file_system.get_file(path, str(local))
        if state[0] is not None and local.stat().st_size != state[0]:
            size = local.stat().st_size
            raise OSError(f"{self} gave {size} of its {state[0]} bytes; give the same command again.")
        with contextlib.suppress(Exception):  # not every store says it
            seconds = file_system.modified(path).timestamp()
            os.utime(local, (seconds, seconds))
        return state

    def put(self, local: Path) -> State:
        """Replaces the file by a local one, whole; gives its new `state`."""
        file_system, path = self.store()
        with self._said("written"):
            if getattr(file_system, "local_file", False):  # which would be written over bit by bit
                partial = f"{path}.{secrets.token_hex(4)}.partial"
                try:
                    file_system.put_file(str(local), partial)
                    os.replace(partial, os.path.realpath(path))  # a link keeps pointing where it does
                finally:
                    with contextlib.suppress(OSError):
                        os.unlink(partial)
            else:  # an object of a store shows when it is whole
                file_system.put_file(str(local), path)
        state, size = self.state(), local.stat().st_size
        if state is None or state[0] not in (None, size):
            there = "is not there" if state is None else f"holds {state[0]} bytes"
            raise OSError(f"{self} {there} after {size} bytes were written; give the same command again.")
        return state

    def remove(self) -> None:
        """Removes the file where there is one."""
        if self.state() is not None:
            file_system, path = self.store()
            with self._said("removed"):
                file_system.rm_file(path)

    @contextlib.contextmanager
    def _said(self, what: str, local: Path | None = None, folder_from: str = "") -> Iterator[None]:
        try:
            yield
        except Exception as error:  # stores have kinds of errors of their own
            if what == "written" and isinstance(error, FileNotFoundError):
                raise OSError(f"{self} is in a bucket or folder that is not there; make it first.") from None
            if local is not None and getattr(error, "errno", None) == errno.ENOSPC:
                way_out = f"free some space, or have {folder_from} name another folder"
                raise OSError(f"{self}: there is no room for a copy of it in {local.parent}; {way_out}.") from None
            raise self._failed(what, error) from None

    def _failed(self, what: str, error: Exception) -> OSError:
        says = one_line(error)[:300]
        if type(error).__name__ not in says:
            says = f"{type(error).__name__}: {says}"
        return OSError(f"{self} cannot be {what} ({says}); check the address, and your access to it.")


def _state(says: dict[str, Any]) -> State:
    return (says.get("size"), *(str(says[name]) for name in _CHANGES if name in says))


STREAM = Address("-")  # stdin, or stdout


def file_or_address(text: str) -> Path | Address:
    """Reads an argument that names a file here or at an address, as it is.

    Raises:
      argparse.ArgumentTypeError: one line with the value and a way out.
    """
    if not is_address(text):
        return local_file(text)
    if "::" in text:
        raise argparse.ArgumentTypeError(f"{text} is a chain of addresses, which none follows; give one address")
    address = Address(text)
    if address.name.lower().endswith(PACKED):
        raise argparse.ArgumentTypeError(
            f"{text} is packed, by its name, and no such file is read or written; unpack it"
        )
    if not address.name:
        raise argparse.ArgumentTypeError(f"{text} names a folder; name a file")
    return address


def file_address_or_stream(text: str) -> Path | Address:
    """Reads an argument that names a file here, at an address, or with `-` stdin or stdout; raises as `file_or_address`."""
    return STREAM if text == "-" else file_or_address(text)


def is_address(text: str) -> bool:
    """Says whether an argument is an address, no path."""
    return re.match(r"([a-z][a-z0-9+.-]+::)*[a-z][a-z0-9+.-]+://", text, re.IGNORECASE) is not None
