"""Several processes that decode together: every one makes the same calls in the same order, and writes its share.

All processes read the same prompts and see the same results, so that each knows alone what all do next. Only what one
process alone can know is exchanged: which records its own file holds, and whether it has to stop.
"""

import contextlib
import datetime
import hashlib
import logging
import socket
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils

_EPOCH = datetime.datetime(2020, 1, 1)
_logger = logging.getLogger("jax_probe_mtp")
SECONDS_UNSAID = 5.0  # for which a process waits for the others without saying so
SECONDS_TO_NOTICE = 10  # that another process has died; JAX alone takes 100
ERROR = 1  # the signal number that stands for "could not write"; no run is stopped by the real one (SIGHUP)


def initialize(coordinator: str | None, num_processes: int | None, process_id: int | None) -> None:
    """Joins the other processes; before anything else of JAX is used.

    Args:
      coordinator: HOST:PORT of process 0; None where the cluster says so itself, as a TPU pod does.
      num_processes: of the run; None as above.
      process_id: of this one, from 0; None as above.

    Raises:
      ValueError: if the processes do not find each other.
    """
    given = (coordinator, num_processes, process_id)
    if any(value is None for value in given) and any(value is not None for value in given):
        raise ValueError(
            "--coordinator, --num-processes and --process-id go together; on a TPU pod leave all three out."
        )
    jax.config.update("jax_cpu_collectives_implementation", "gloo")  # of CPU devices alone
    try:
        with _said_if_long(_waits_for(coordinator, num_processes, process_id)):
            jax.distributed.initialize(
                coordinator, num_processes, process_id, heartbeat_timeout_seconds=SECONDS_TO_NOTICE
            )
    except (ValueError, RuntimeError, IndexError) as error:  # the last where there is no port
        raise ValueError(
            f"the processes do not find each other at {coordinator!r} ({error}); check the three options, HOST:PORT first."
        ) from None


def _waits_for(coordinator: str | None, num_processes: int | None, process_id: int | None) -> str:
    """Says whom a process waits for; the arguments are those of `initialize`."""
    if num_processes is None:
        return "this process waits for the other processes of the cluster"
    others = f"process {1 - (process_id or 0)}" if num_processes == 2 else f"the other {num_processes - 1} processes"
    return f"process {process_id} of {num_processes} waits for {others} at {coordinator}"


@contextlib.contextmanager
def _said_if_long(line: str) -> Iterator[None]:
    """Says a line, once, if the block takes long."""
    timer = threading.Timer(SECONDS_UNSAID, _logger.warning, [line])
    timer.daemon = True
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def own_path(path: Path) -> Path:
    """Gives the file that this process writes: `path` where it is the only one, else such as answers.0-of-2.jsonl."""
    if jax.process_count() == 1:
        return path
    return path.with_name(f"{path.stem}.{jax.process_index()}-of-{jax.process_count()}{path.suffix}")


def is_first() -> bool:
    """Says whether this is process 0."""
    return jax.process_index() == 0


def is_mine(number: int) -> bool:
    """Says whether this process writes the record of this number."""
    return number % jax.process_count() == jax.process_index()


@contextlib.contextmanager
def in_step() -> Iterator[None]:
    """Lets the processes leave the block together: where it fails in one of them, the others end too, instead of waiting.

    Raises:
      ValueError, OSError: what the block raised, or that it failed in another process.
    """
    failure: ValueError | OSError | None = None
    try:
        yield
    except (ValueError, OSError) as error:
        failure = error
    failed = gather(np.int32(failure is not None))
    if failure:
        raise failure
    if failed.any():
        raise ValueError(f"process {failed.argmax()} cannot run, and says why; give the same command when it can.")


def check_same(facts: Mapping[str, object], among: object = None) -> None:
    """Finds out before anything runs whether all processes are about to do the same.

    Args:
      facts: what must be the same, by the names that a message has for it; equal where its `repr` is.
      among: only processes that give the same here are compared.

    Raises:
      ValueError: in all processes, if one differs from another; it names both, and what differs.
    """
    digests = [_digest(value) for value in (among, *facts.values())]
    host = socket.gethostname().encode()[:64].ljust(64)
    table, hosts = gather(np.asarray(digests, np.uint32)), gather(np.frombuffer(host, np.uint8))
    for process, own in enumerate(table):
        first = next(other for other in range(len(table)) if (table[other][0] == own[0]).all())
        differs = (own[1:] != table[first][1:]).any(axis=-1)
        if differs.any():
            who, other = (
                f"process {i} on {bytes(hosts[i]).decode(errors='replace').strip()}" for i in (process, first)
            )
            names = ", ".join(name for name, is_other in zip(facts, differs, strict=True) if is_other)
            raise ValueError(f"{who} differs from {other} in: {names}; give all the same files and the same command.")


def _digest(value: object) -> "np.ndarray":
    return np.frombuffer(hashlib.blake2b(repr(value).encode(), digest_size=8).digest(), np.uint32)


def gather(value: Any) -> np.ndarray:
    """Gives the value (an array of up to 32 bits a number) of each process, in their order."""
    value = np.asarray(value)
    if not jax.distributed.is_initialized() or jax.process_count() == 1:  # the first, so that no device is looked for
        return value[None]
    return np.asarray(multihost_utils.process_allgather(value))


def union(is_true: np.ndarray) -> np.ndarray:
    """Joins bool [n] of all processes: True where it is so in any of them."""
    packed = gather(np.packbits(is_true))
    return np.unpackbits(np.bitwise_or.reduce(packed, axis=0), count=len(is_true)).astype(np.bool_)


def largest(value: int) -> int:
    """Gives the largest value, of 32 bits, that any process has."""
    return int(np.max(gather(np.int32(value))))


def earliest(moment: datetime.datetime) -> datetime.datetime:
    """Gives the earliest moment that any process has, of the clock on the wall, in whole seconds."""
    seconds = int((moment - _EPOCH).total_seconds())
    return _EPOCH - datetime.timedelta(seconds=largest(-seconds))
