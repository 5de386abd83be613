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
import importlib.metadata
import platform
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from seeds import make_seeds
from worker import LONGEST_MESSAGE, MEMORY_CONSTANT, SECONDS, Outcome, Worker

from jax_probe_mtp.files.whole_files import write_json
from jax_probe_mtp.measuring.environment import environment


def _table(outcomes: dict[int, Outcome]) -> list[dict[str, Any]]:
    """Makes one row a kind of file and mutation."""
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
        worker = Worker(args.seed, seeds, Path(scratch) / "cases")
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
        "git_commit": environment("float32")["git_commit"],  # JAX starts here, when no more processes are forked
        "versions": {"python": platform.python_version()}
        | {name: importlib.metadata.version(name) for name in packages},
        "defects": [_case(*each) for each in defects[:100]],
        "table": rows,
    }


if __name__ == "__main__":
    sys.exit(main())
