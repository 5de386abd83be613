"""A file beside the answers that says which model and settings made them, so that no other run goes on with them."""

import contextlib
import dataclasses
import datetime
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jax_probe_mtp.files.whole_files import write_json

FORMAT = 3
COSTS = "costs"  # seconds of a call, where a run chooses among sizes of its drafts


def run_path(path: Path) -> Path:
    """Gives the file beside the answers that says what made them."""
    path = path.resolve()  # it belongs to the answers, whatever link they are reached by
    return path.with_name(path.name + ".run.json")


def read_run(path: Path) -> dict[str, Any]:
    """Reads what made the answers of a file.

    Raises:
      ValueError: if that is not known.
    """
    beside = run_path(path)
    try:
        run = json.loads(beside.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise ValueError(f"{path} has no {beside.name} beside it that says what made it; name another.") from None
    except (ValueError, RecursionError):
        run = None
    if not isinstance(run, dict):
        raise ValueError(f"{beside} does not say what made {path}: it is no JSON object; name another.")
    return run


@dataclasses.dataclass(frozen=True)
class Begun:
    """How the run that made some answers began.

    Attributes:
      at: the moment, of the clock on the wall, in whole seconds.
      is_by_line: True where an earlier version began it, which knew records without an id by the number of their line, and
        wrote less about the model.
    """

    at: datetime.datetime
    is_by_line: bool


def begun(path: Path) -> Begun | None:
    """Says how the run that made the answers of a file began; None where there are no answers.

    Raises:
      ValueError: if that is not known.
    """
    if not path.exists() or not path.stat().st_size:
        return None
    run = read_run(path)
    if "format" not in run:
        return Begun(datetime.datetime.fromtimestamp(int(run_path(path).stat().st_mtime)), is_by_line=True)
    try:
        at = datetime.datetime.fromisoformat(run["started"])
        if at.tzinfo is None and 2000 <= at.year < 2080:  # a moment that 32 bits of seconds tell other processes
            return Begun(at, is_by_line=False)
    except (KeyError, TypeError, ValueError):
        pass
    raise ValueError(f'{run_path(path)} does not say when the run began ("started"); name another --output.')


def in_one_format(runs: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Gives the runs as an earlier version described them, where one began some of them and not the others."""
    if len({"format" in run for run in runs}) < 2:
        return list(runs)
    return [_as_earlier(run) for run in runs]


def _as_earlier(run: Mapping[str, Any]) -> dict[str, Any]:
    known = ("name", "fingerprint", "dtype")
    earlier = {name: value for name, value in run.items() if name not in ("format", "started")}
    if isinstance(model := run.get("model"), dict):
        earlier["model"] = {name: value for name, value in model.items() if name in known}
    return earlier


def write_run(path: Path, run: Mapping[str, Any]) -> None:
    """Writes beside the answers what makes them; it is on the disk when this returns."""
    beside = run_path(path)
    try:
        write_json(beside, run)
    except OSError as error:
        raise no_room(beside, error, "the answers need it") from None
    sync_folder(beside.parent)


def sync_folder(folder: Path) -> None:
    """Has the names in a folder on the disk, as far as the system can."""
    with contextlib.suppress(OSError):  # not every system lets a folder be opened
        opened = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(opened)
        finally:
            os.close(opened)


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, str] | None:
    """Names the first values that differ, with those of `then`, and gives those of `now` in the same order.

    When the runs began is no difference, nor what their calls cost.
    """
    runs = ({key: value for key, value in run.items() if key != COSTS} for run in (then, json.loads(json.dumps(now))))
    old, new = ({**_flat(run), "started": None} for run in runs)
    names = [name for name in {**old, **new} if name not in old or name not in new or old[name] != new[name]][:3]
    was, are = ([cut(values[name]) if name in values else "nothing" for name in names] for values in (old, new))
    return (", ".join(map(" ".join, zip(names, was, strict=True))), ", ".join(are)) if names else None


def _flat(run: Mapping[str, Any]) -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for name, value in run.items():
        flat |= {f"{name}.{inner}": item for inner, item in value.items()} if isinstance(value, dict) else {name: value}
    return flat


def cut(value: object) -> str:
    """Shortens a value for messages."""
    return repr(value)[:60]


def no_room(path: Path, error: OSError, kept: str) -> OSError:
    """Makes the error of a write that failed; it says what is there all the same."""
    return OSError(f"{path}: {error.strerror}; {kept}: free some space and give the same command again.")
