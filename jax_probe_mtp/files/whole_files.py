"""Files that are written whole or not at all."""

import contextlib
import json
import os
import secrets
from collections.abc import Iterable, Mapping
from pathlib import Path


def check_files(written: Mapping[str, Path | None], read: Iterable[Path | None]) -> None:
    """Finds out before anything runs whether files can be written.

    Args:
      written: the option that names a file, and the file; None where it was left out.
      read: the files that the command reads.

    Raises:
      ValueError: if a file is there and no regular file, is in no folder, or is another of these files.
    """
    taken = {path.resolve(): "is read" for path in read if path}
    for option, path in written.items():
        if path is None:
            continue
        if path.exists() and not path.is_file():
            raise ValueError(f"{option} {path} is not a file but a folder or a device; name a file.")
        if not path.parent.is_dir():
            raise ValueError(f"{option} {path} is in a folder that does not exist; make it first.")
        if not os.access(path.parent, os.W_OK):
            raise ValueError(f"{option} {path} is in a folder that cannot be written; name another.")
        others = [use for other, use in taken.items() if other == path.resolve() or _is_same(other, path)]
        if others:
            raise ValueError(f"{option} {path} {others[0]} by this command; name another.")
        taken[path.resolve()] = f"is written as {option}"


def _is_same(one: Path, other: Path) -> bool:
    return one.exists() and other.exists() and one.samefile(other)


def partial_path(path: Path) -> Path:
    """Names a file beside `path` to write into until it is whole: a new name each time, which no other process has."""
    return path.with_name(f"{path.name}.{secrets.token_hex(4)}.partial")


def write_json(path: Path, record: object) -> None:
    """Replaces the file by the record at once: whoever reads it finds the old one or the new one, never a part.

    Raises:
      OSError: if it cannot be written; then the old one is still there.
    """
    path = path.resolve()  # a link keeps pointing where it does
    text = json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n"
    write_files(path.parent, {path.name: text})


def write_files(folder: Path, texts: Mapping[str, str | bytes]) -> list[Path]:
    """Writes a text, or bytes, under each name into `folder`, which is made if need be, and gives the files in the same order.

    All texts are on the disk before the first takes its name, so that a full disk leaves the old files as they were.

    Raises:
      OSError: if a file cannot be written.
    """
    partial = {name: partial_path(folder / name) for name in texts}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in texts.items():
            if (folder / name).exists() and not (folder / name).is_file():
                raise OSError(f"{folder / name} is not a file but a folder or a device; name another.")
            with partial[name].open("wb") as file:
                file.write(text.encode() if isinstance(text, str) else text)
                file.flush()
                os.fsync(file.fileno())
        for name in texts:
            os.replace(partial[name], folder / name)
    except OSError as error:
        names = ", ".join(texts)
        reason = f"{folder / names} cannot be written ({error.strerror}); free some space or name another."
        raise OSError(reason if error.strerror else str(error)) from None
    finally:
        for path in partial.values():
            with contextlib.suppress(OSError):
                path.unlink(missing_ok=True)
    return [folder / name for name in texts]
