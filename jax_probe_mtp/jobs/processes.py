"""Several processes that decode together: every one makes the same calls in the same order, and writes its share.

All processes read the same prompts and see the same results, so that each knows alone what all do next. Only what one
process alone can know is exchanged: which records its own file holds, and whether it has to stop.
"""

import contextlib
import logging
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax.experimental import multihost_utils

_logger = logging.getLogger("jax_probe_mtp")
SECONDS_UNSAID = 5.0  # for which a process waits for the others without saying so
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
            jax.distributed.initialize(coordinator, num_processes, process_id)
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


def union(is_true: np.ndarray) -> np.ndarray:
    """Joins bool [n] of all processes: True where it is so in any of them."""
    if jax.process_count() == 1:
        return is_true
    packed = multihost_utils.process_allgather(np.packbits(is_true))
    return np.unpackbits(np.bitwise_or.reduce(packed, axis=0), count=len(is_true)).astype(np.bool_)


def largest(value: int) -> int:
    """Gives the largest value that any process has."""
    if jax.process_count() == 1:
        return value
    return int(np.max(multihost_utils.process_allgather(np.int32(value))))
