"""Damages small checkpoints in many ways and loads each: it must load, or be refused by a CheckpointError of one line.

    python scripts/stress/loaders.py --cases 20000 --seed 0 --output R.json
    python scripts/stress/loaders.py --first 1234 --cases 1 --seed 0      # one case again, with its messages

A defect is any other error, a crash, more than 2 seconds, more memory than twice the files and a constant, or a file
touched outside the folder of the model. Exits with 1 where there is one, and says which case it was. Linux only.

Time: of one load, on the clock. An alarm ends a load in Python; what does not hear it is killed with its process.
Memory: how far the peak of the process's resident set (VmHWM, reset before each load) goes above what it was before
the load; everything is in it, mapped files and what C and Rust allocate too. Allowed: twice the bytes of the case's
files, and MEMORY_CONSTANT. The address space is limited too, so that no case takes the machine's memory. Files made
large are not among those of a Hugging Face tokenizer, which other libraries read.
Files: Python's audit events, of which reading what belongs to Python, and /dev, /proc and /sys, is allowed; and, for code
that raises none, a watch on the folder around the model's, where files of the names that cases point at wait to be opened.
"""

import argparse
import collections
import dataclasses
import gc
import importlib.metadata
import multiprocessing
import os
import platform
import random
import resource
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import orbax.checkpoint  # noqa: F401  (what loading imports late is imported before the process is forked)
import transformers  # noqa: F401
from mutations import OUTSIDE, damage
from seeds import Seed, make_seeds, write_files
from watch import Watch

from checkpoints_convert import info, load
from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.params import fill
from jax_probe_mtp.errors import one_line
from jax_probe_mtp.files.whole_files import write_json

SECONDS = 2.0  # of a load
SECONDS_TO_DIE = 10.0  # after the alarm, for a case that is stuck in C
MEMORY_CONSTANT = 48 << 20  # the library takes 43 MiB for a header of 1 MiB that is one list of lists
ADDRESS_SPACE = 4 << 30  # above what the process has when it is ready
LONGEST_MESSAGE = 2000  # characters
FOLDER = "model"
KINDS = {
    "safetensors": 4,
    "shards": 3,
    "config": 3,
    "gguf": 4,
    "gguf, sentencepiece": 2,
    "converted": 2,
    "tokenizer": 1,
}


@dataclasses.dataclass(frozen=True)
class Outcome:
    """What became of a case: "loaded", "refused" or the name of a defect, the message, and what it took."""

    kind: str
    mutation: str
    result: str
    message: str = ""
    seconds: float = 0.0
    file_bytes: int = 0
    memory_bytes: int = 0


class _Late(BaseException):
    """Raised by the alarm; no reader catches it."""


def _status(name: str) -> int:
    """A size of this process, in bytes."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(name + ":"):
            return int(line.split()[1]) << 10
    raise SystemExit(f"error: /proc/self/status has no {name}; this needs Linux.")


# One case.


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
        fill.read_params(opened, opened.dtype, None)
    else:
        str(info.read_info(path))


def _attempt(draw: random.Random, path: Path, kind: str, watch: Watch) -> tuple[str, str, float, int]:
    """Result, message, seconds and growth of memory of one load."""
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
    """What decides all of a case, and its kind."""
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


# The process that runs cases, and the one that watches over it.


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


class _Worker:
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


# What is reported.


def _table(outcomes: dict[int, Outcome]) -> list[dict[str, Any]]:
    """One row a kind of file and mutation."""
    rows: dict[tuple[str, str], collections.Counter[str]] = collections.defaultdict(collections.Counter)
    for outcome in outcomes.values():
        result = outcome.result if outcome.result in ("loaded", "refused") else "defects"
        rows[outcome.kind, outcome.mutation][result] += 1
    return [
        {"file": kind, "mutation": mutation, "cases": counts.total()}
        | {name: counts[name] for name in ("loaded", "refused", "defects")}
        for (kind, mutation), counts in sorted(rows.items())
    ]


def _case(number: int, outcome: Outcome) -> dict[str, Any]:
    message = outcome.message[:LONGEST_MESSAGE].encode("utf-8", "backslashreplace").decode()  # a file may hold anything
    return {"case": number} | dataclasses.asdict(outcome) | {"seconds": round(outcome.seconds, 3), "message": message}


def _print(record: dict[str, Any]) -> None:
    print(f"{'file':21} {'mutation':26} {'cases':>6} {'loaded':>6} {'refused':>7} {'defects':>7}")
    for row in record["table"]:
        print("{file:21} {mutation:26} {cases:6} {loaded:6} {refused:7} {defects:7}".format(**row))
    print("{:48} {cases:6} {loaded:6} {refused:7} {defects:7}".format("all", **record["all"]))
    for name in ("slowest", "largest"):
        case = record[name]
        print(
            f"{name}: case {case['case']} ({case['kind']}, {case['mutation']}), {case['seconds']} s, "
            f"{case['memory_bytes'] / 2**20:.1f} MiB for files of {case['file_bytes'] / 2**20:.2f} MiB"
        )
    for case in record["defects"]:
        print(f"DEFECT {case['result']}: --seed {record['seed']} --first {case['case']} --cases 1", end="")
        print(f" ({case['kind']}, {case['mutation']}): {case['message'][:300]!a}")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs the cases; 1 where there is a defect."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=20_000)
    parser.add_argument("--first", type=int, default=0, help="number of the first case")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a JSON record")
    args = parser.parse_args(argv)
    if args.cases < 1:
        parser.error(f"--cases must be at least 1, got {args.cases}")

    begin, outcomes = time.perf_counter(), {}
    with tempfile.TemporaryDirectory() as scratch:
        seeds = make_seeds(Path(scratch) / "seeds")
        worker = _Worker(args.seed, seeds, Path(scratch) / "cases")
        try:
            for number in range(args.first, args.first + args.cases):
                outcomes[number] = worker.run(number)
        finally:
            worker.stop()
    record = _record(args, outcomes, time.perf_counter() - begin)
    _print(record)
    if args.cases == 1:
        print(f"{outcomes[args.first].result}: {outcomes[args.first].message!a}")
    if args.output:
        write_json(args.output, record)
    return int(record["all"]["defects"] > 0)


def _record(args: argparse.Namespace, outcomes: dict[int, Outcome], seconds: float) -> dict[str, Any]:
    rows = _table(outcomes)
    defects = [(n, outcome) for n, outcome in outcomes.items() if outcome.result not in ("loaded", "refused")]
    slowest = max(outcomes, key=lambda n: outcomes[n].seconds)
    largest = max(outcomes, key=lambda n: outcomes[n].memory_bytes - 2 * outcomes[n].file_bytes)
    packages = ["safetensors", "gguf", "tokenizers", "transformers", "orbax-checkpoint", "tensorstore", "jax", "numpy"]
    return {
        "seed": args.seed,
        "first": args.first,
        "all": {name: sum(row[name] for row in rows) for name in ("cases", "loaded", "refused", "defects")},
        "limits": {
            "seconds": SECONDS,
            "memory": "growth of the peak resident set over one load <= 2 x bytes of the files + constant",
            "memory_constant_bytes": MEMORY_CONSTANT,
            "message_characters": LONGEST_MESSAGE,
        },
        "slowest": _case(slowest, outcomes[slowest]),
        "largest": _case(largest, outcomes[largest]),
        "seconds": round(seconds, 1),
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
        "defects": [_case(*each) for each in defects[:100]],
        "table": rows,
    }


if __name__ == "__main__":
    sys.exit(main())
