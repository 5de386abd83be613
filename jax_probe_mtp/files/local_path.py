"""Arguments that name files and folders: those that no command can read or write are refused before anything else is done."""

import argparse
import re
from pathlib import Path

PACKED = (".gz", ".tgz", ".zst", ".bz2", ".bz", ".xz", ".lz4", ".zip", ".7z")  # by their names


def local_file(text: str) -> Path:
    """Reads an argument that names a file of this machine, as it is.

    Raises:
      argparse.ArgumentTypeError: one line with the value and a way out.
    """
    path = local_path(text)
    if path.suffix.lower() in PACKED:
        raise argparse.ArgumentTypeError(
            f"{text} is packed, by its name, and no such file is read or written; unpack it"
        )
    return path


def local_path(text: str) -> Path:
    """Reads an argument that names a file or a folder of this machine; raises as `local_file` does."""
    if match := re.match(r"([a-z][a-z0-9+.-]+)://", text, re.IGNORECASE):
        way_out = "leave file:// out" if match[1].lower() == "file" else "give a path on this machine"
        raise argparse.ArgumentTypeError(f"{text} is an address, and none is read or written; {way_out}")
    if text in ("", "-"):
        raise argparse.ArgumentTypeError(f"{text!r} is no file; name one")
    return Path(text)
