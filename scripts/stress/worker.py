"""Loads damaged checkpoints in a process of its own, for scripts/stress/loaders.py, which says what is measured. Linux only."""

import dataclasses
import gc
import multiprocessing
import os
import random
import resource
import shutil
import signal
import sys
import time
import traceback
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import orbax.checkpoint  # noqa: F401  (what loading imports late is imported before the process is forked)
import transformers  # noqa: F401
from mutate_bytes import OUTSIDE
from mutations import damage
from seeds import OTHER_FAMILIES, Seed, write_files
from watch import Watch

from checkpoints_convert import info, load
from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.params import fill
from jax_probe_mtp.errors import one_line

SECONDS = 2.0  # of a load
SECONDS_TO_DIE = 10.0  # after the alarm, for a case that is stuck in C
MEMORY_CONSTANT = 48 << 20  # the library takes 43 MiB for a header of 1 MiB that is one list of lists
ADDRESS_SPACE = 4 << 30  # above what the process has when it is ready
LONGEST_MESSAGE = 2000  # characters
FOLDER = "model"
KINDS = {
    "safetensors": 4,
    "shards": 3,
    "config": 2,
    **dict.fromkeys(OTHER_FAMILIES, 1),
    "gguf": 3,
    "gguf, sentencepiece": 2,
    "gguf, smollm3": 1,
    "converted": 2,
    "tokenizer": 1,
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """The end of a case: "loaded", "refused" or the name of a defect, the message, and what it took."""

    kind: str
    mutation: str
    result: str
    message: str = ""
    seconds: float = 0.0
    file_bytes: int = 0
    memory_bytes: int = 0


class _Late(BaseException):
    """What the alarm raises; no reader catches it."""


def _status(name: str) -> int:
    """Reads a size of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) << 10
    raise SystemExit(f"error: /proc/self/status has no {name}; this needs Linux.")


def _read(draw: random.Random, path: Path, kind: str) -> None:
    """Loads a model as users do: with its tokenizer, or its weights alone, or only what it is."""
    how = draw.random()
    if how < 0.5 or kind in ("tokenizer", "converted"):
        if kind == "converted" and how < 0.3:
            load.open_checkpoint(path)
        else:
            load.open_checkpoint(path).load()
    elif how < 0.9:
        opened = load.open_source(path)
        fill.read_params(opened, opened.dtype, draw.choice([None, "int8"]), None)
    else:
        str(info.read_info(path))


def _attempt(draw: random.Random, path: Path, kind: str, watch: Watch) -> tuple[str, str, float, int]:
    """Gives result, message, seconds and growth of memory of one load."""
    touched: list[str] = []
    result, message = "loaded", ""
    gc.collect()
    watch.libc.malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmRSS")
    signal.signal(signal.SIGALRM, _raise_late)
    begin = time.perf_counter()
    try:
        signal.setitimer(signal.ITIMER_REAL, SECONDS)
        try:
            with watch.listening(touched):
                _read(draw, path, kind)
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)
    except CheckpointError as error:
        result, message = "refused", str(error)
    except _Late:
        result, message = "late", "stopped by the alarm"
    except BaseException as error:
        where = traceback.extract_tb(error.__traceback__)[-1]
        message = f"{type(error).__name__}: {one_line(error)[:300]} ({Path(where.filename).name}:{where.lineno})"
        result = "other error"
    seconds = time.perf_counter() - begin
    memory = _status("VmHWM") - before
    if touched:
        result, message = "outside", f"{touched[0]} ({len(touched)} in all); {message[:200]}"
    elif result == "refused" and (len(message.splitlines()) != 1 or not message.isprintable()):
        result = "not one line"
    elif result == "refused" and len(message) > LONGEST_MESSAGE:
        result, message = "long message", f"{len(message)} characters: {message[:200]}"
    if seconds > SECONDS and result in ("loaded", "refused"):
        result = "late"
    return result, message, seconds, memory


def _raise_late(*args: object) -> None:
    raise _Late


def _draw(number: int, seed: int) -> tuple[random.Random, str]:
    """Gives the generator that decides all of a case, and the kind of file that it damages."""
    draw = random.Random(f"{seed}:{number}")
    return draw, draw.choices(list(KINDS), list(KINDS.values()))[0]


def _run_case(number: int, seed: int, seeds: dict[str, Seed], folder: Path, watches: dict[str, Watch]) -> Outcome:
    draw, kind = _draw(number, seed)
    mutation, changed = damage(draw, kind, seeds[kind])
    files = seeds[kind].files | changed
    own = folder / kind / FOLDER
    write_files(own, changed)
    result, message, seconds, memory = _attempt(draw, own / seeds[kind].model, kind, watches[kind])
    write_files(own, {path: seeds[kind].files[path] for path in changed})
    size = sum(len(data) for data in files.values())
    if memory > 2 * size + MEMORY_CONSTANT and result in ("loaded", "refused"):
        result = "memory"
    message = message.replace(str(folder), "")
    return Outcome(kind, mutation, result, message, seconds, size, memory)


def _work(connection: Connection, seed: int, seeds: dict[str, Seed], folder: Path) -> None:
    sink = os.open(os.devnull, os.O_WRONLY)
    os.dup2(sink, 1)  # notes of `tokenizers` on damaged tokens
    os.dup2(sink, 2)  # warnings of damaged numbers
    sys.dont_write_bytecode = True
    watches = {}
    for kind in KINDS:
        own = folder / kind / FOLDER
        write_files(own, seeds[kind].files)
        for name in (f"{OUTSIDE}.json", f"{OUTSIDE}.safetensors", f"{OUTSIDE}.tokenizer.4.0.json"):
            (own.parent / name).write_bytes(seeds["safetensors"].files["tokenizer.json"])
        watches[kind] = Watch(own)
        for _ in range(3):  # what the first load of all takes is not counted
            load.open_checkpoint(own / seeds[kind].model).load()
            info.read_info(own / seeds[kind].model)
    gc.collect()
    gc.freeze()
    limit = _status("VmSize") + ADDRESS_SPACE
    resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    connection.send(None)
    while (number := connection.recv()) is not None:
        connection.send(_run_case(number, seed, seeds, folder, watches))


class Worker:
    """A process that runs cases, and is replaced when it dies."""

    def __init__(self, seed: int, seeds: dict[str, Seed], folder: Path) -> None:
        self.arguments = (seed, seeds, folder)
        self.process: Any = None

    def _start(self) -> None:
        shutil.rmtree(self.arguments[2], ignore_errors=True)
        ours, theirs = multiprocessing.Pipe()
        self.connection = ours
        self.process = multiprocessing.get_context("fork").Process(
            target=_work, args=(theirs, *self.arguments), daemon=True
        )
        self.process.start()
        theirs.close()
        if not self.connection.poll(300) or self._receive() is not None:
            raise SystemExit("error: a valid checkpoint did not load; run one case with --first to see why.")

    def _receive(self) -> Any:
        try:
            return self.connection.recv()
        except EOFError:
            return Outcome("", "", "crash")

    def run(self, number: int) -> Outcome:
        """Runs a case; a process that it kills, or that does not answer, is a defect."""
        if self.process is None:
            self._start()
        self.connection.send(number)
        begin = time.perf_counter()
        if self.connection.poll(SECONDS + SECONDS_TO_DIE):
            outcome = self._receive()
            if outcome.result != "crash":
                return outcome
        else:
            outcome = Outcome("", "", "killed")
        seconds = time.perf_counter() - begin
        self.stop()
        seed, seeds, _ = self.arguments
        draw, kind = _draw(number, seed)  # what it was, which it could not tell
        mutation, _ = damage(draw, kind, seeds[kind])
        message = f"the process ended with {self.exit_code}" if outcome.result == "crash" else "did not hear the alarm"
        return Outcome(kind, mutation, outcome.result, message, seconds)

    def stop(self) -> None:
        """Ends the process."""
        if self.process is not None:
            self.process.kill()
            self.process.join()
            self.exit_code = self.process.exitcode
            self.process = None
