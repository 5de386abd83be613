"""Models at addresses, which are copied once and kept, since files of weights are mapped into memory."""

import contextlib
import hashlib
import logging
import os
import secrets
import shutil
from pathlib import Path

from jax_probe_mtp.files.remote.address import Address, State

_logger = logging.getLogger("jax_probe_mtp")


def copied_model(address: Address, kept: Path) -> Path:
    """Gives a copy of a model at an address: a folder or a .gguf file.

    A copy is used again as long as the address holds the same files, by the sizes, times and digests that its store tells.

    Args:
      address: of the folder or the file.
      kept: where copies are kept, each in a folder of its own. One that is there is whole.

    Raises:
      ValueError: if nothing knows such addresses, or a name in the folder leads out of it.
      OSError: if there is no such model, if it cannot be read, if it changes meanwhile, or if there is no room.
    """
    address = Address(address.text.rstrip("/"))
    files = _files(address)
    key = hashlib.sha256(repr((address.text, sorted(files.items()))).encode()).hexdigest()[:16]
    path = kept / key / address.name
    if path.exists():
        return path
    size = sum(state[0] or 0 for state in files.values())
    _logger.info("%s: copying %.2f GB to %s", address, size / 1e9, path)
    partial = kept / f"{key}.{secrets.token_hex(4)}.partial"  # a name that no other process has
    try:
        for name in files:
            local = partial / address.name / name
            local.parent.mkdir(parents=True, exist_ok=True)
            Address(f"{address}/{name}" if name else address.text).get(local, "XDG_CACHE_HOME")
        if _files(address) != files:
            raise OSError(f"{address} has changed while it was copied; give the same command again.")
        with contextlib.suppress(OSError):  # another process was first
            os.replace(partial, kept / key)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    return path


def _files(address: Address) -> dict[str, State]:
    """Gives the state of each file of a folder by its path in it; of a file its own, by no name."""
    states = address.states()
    if not states:
        raise OSError(f"{address} is not there, or its bucket or folder is not; check the address.")
    for name in states:
        if ".." in name.split("/") or name.startswith("/"):
            raise ValueError(f"{address} holds {name[:60]!r}, which leads out of the folder; remove it there.")
    return states
