"""Plants faults in copies of the product's code, one at a time, and says which tests catch each.

    python scripts/stress/planted_faults.py --json R.json --page P.md       # all, six minutes on two cores
    python scripts/stress/planted_faults.py --only walk-never-accepts       # one; --list names them

A fault is a mistake of meaning that somebody could make (`faults/`), with the test files that ought to catch it. It is
caught where one of their tests fails: not where a file of tests cannot be imported, and not where nothing ends. Each
has a copy of the tree for itself, which is thrown away; the checkout is only read. Programs that are compiled for one
serve no other: the tests keep what they compile in a folder of each run (`tests/conftest.py`).

The exit status is 1 where a fault is not caught, or where tests fail without one (--check-clean); 2 where the old text
of a fault is not in its file exactly once.
"""

import argparse
import concurrent.futures
import contextlib
import dataclasses
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from faults import FAULTS
from faults.fault import Fault

from jax_probe_mtp.errors import Parser, exit_status, local_file, positive
from jax_probe_mtp.files.markdown import table
from jax_probe_mtp.files.whole_files import check_files, write_files, write_json
from jax_probe_mtp.measuring.environment import environment

ROOT = Path(__file__).resolve().parents[2]
# What the tests read, some of it from pages.
COPIED_FOLDERS = ("jax_probe_mtp", "checkpoints_convert", "tests", "scripts", "docs")
COPIED_FILES = (
    "pyproject.toml",
    "mkdocs.yml",
    "README.md",
    "CHANGELOG.md",
    "CONTRIBUTING.md",
    "SECURITY.md",
    "LICENSE",
)
PAGE = """# Planted faults

Mistakes that somebody could make, planted one at a time in a copy of the code, and the test that fails first with each
of them ([record](planted_faults.json)). This page and the record are written by

    python scripts/stress/planted_faults.py --json planted_faults.json --page planted_faults.md

**{caught} of {total} are caught** (product's code of commit {commit}; {device}). A fault that no test catches means a
missing test. `scripts/stress/faults/` holds the text that each changes. A table without a gap says nothing of faults
that nobody thought of.

{table}
"""
LONGEST = 1200.0  # seconds of a run of tests; a fault may be a loop without an end
# Seconds for a copy to be older than the processes that read it: from a newer one no programs are kept
# (`programs/key.py`). When a process began is known to a second.
SETTLED = 2.0
TESTS_FAILED = 1  # pytest's exit status; with 2 a file could not be imported, with 5 there was no test


@dataclasses.dataclass(frozen=True, kw_only=True)
class Tested:
    """What a run of tests came to.

    Attributes:
      status: pytest's exit status; None where it did not end in time.
      failed: the first test that failed, None where none did.
      seconds: of the run.
      last: the last line that it printed, or that it did not end.
    """

    status: int | None
    failed: str | None
    seconds: float
    last: str

    @property
    def has_caught(self) -> bool:
        """Says whether a test failed by itself."""
        return self.status == TESTS_FAILED and self.failed is not None


def copy_tree(root: Path, tree: Path) -> None:
    """Copies what the tests need, without what Python compiled of it."""
    for folder in COPIED_FOLDERS:
        shutil.copytree(root / folder, tree / folder, ignore=shutil.ignore_patterns("__pycache__"))
    for file in COPIED_FILES:
        shutil.copy(root / file, tree / file)


@contextlib.contextmanager
def copied(root: Path) -> Iterator[Path]:
    """Gives a copy of the tree, in a folder that goes with everything the tests leave there."""
    with tempfile.TemporaryDirectory(prefix="planted-") as folder:
        tree = Path(folder) / "tree"
        tree.mkdir()
        copy_tree(root, tree)
        yield tree


def run_tests(tree: Path, tests: Sequence[str]) -> Tested:
    """Runs files of tests in a copy of the tree, up to the first that fails."""
    pytest = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-m", "not full_compile"]
    kept = str(tree.parent / "cache")  # of no other run, else a kept program could stand for a faulty one
    env = os.environ | {
        "JAX_PLATFORMS": "cpu",
        "PYTHONPATH": str(tree),
        # Two texts of one length, written within a second, have the same key among what Python keeps of its compiler.
        "PYTHONDONTWRITEBYTECODE": "1",
        "XDG_CACHE_HOME": kept,
        "JAX_COMPILATION_CACHE_DIR": kept,
    }
    time.sleep(SETTLED)
    start, output = time.perf_counter(), tree.parent / "output"
    with output.open("wb") as out:  # no pipe, which processes that tests have left could keep open
        process = subprocess.Popen(
            [*pytest, *tests], cwd=tree, env=env, stdout=out, stderr=subprocess.STDOUT, start_new_session=True
        )
        try:
            status: int | None = process.wait(LONGEST)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            with contextlib.suppress(ProcessLookupError):  # as a rule all have ended
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()
    return read_output(output.read_text(encoding="utf-8", errors="replace"), status, time.perf_counter() - start)


def read_output(text: str, status: int | None, seconds: float) -> Tested:
    """Reads what pytest printed: its summary names a test that failed, or a file that could not be imported."""
    failed = re.search(r"^FAILED (\S+::.*?)(?: - .*)?$", text, re.MULTILINE)
    last = text.strip().rpartition("\n")[2] if status is not None else f"no end within {LONGEST:g} s"
    return Tested(status=status, failed=failed and failed[1], seconds=seconds, last=last)


def try_fault(root: Path, fault: Fault) -> Tested:
    """Plants one fault in a copy of its own, and runs its tests."""
    with copied(root) as tree:
        fault.plant(tree)
        return run_tests(tree, fault.tests)


def check_clean(root: Path, faults: Sequence[Fault]) -> bool:
    """Runs every set of tests once without a fault; False where one of them fails."""
    is_clean = True
    for tests in dict.fromkeys(fault.tests for fault in faults):
        with copied(root) as tree:
            tested = run_tests(tree, tests)
        print(
            f"{'passes' if tested.status == 0 else 'FAILS'} without a fault, {tested.seconds:.0f} s: {' '.join(tests)}"
        )
        if tested.status != 0:
            print(f"  {tested.failed or tested.last}")
            is_clean = False
    return is_clean


def as_json(fault: Fault, tested: Tested) -> dict[str, Any]:
    """Gives a fault and what came of it as a record holds them."""
    return {
        "name": fault.name,
        "package": fault.package,
        "file": fault.file,
        "breaks": fault.breaks,
        "tests": list(fault.tests),
        "is_caught": tested.has_caught,
        "first_failed": tested.failed,
        "seconds": round(tested.seconds, 1),
    }


def page(record: dict[str, Any]) -> str:
    """Writes a page for people."""
    rows = [
        [
            *(each[name] for name in ("name", "file", "breaks")),
            " ".join(each["tests"]),
            each["first_failed"] if each["is_caught"] else "NOT CAUGHT",
            f"{each['seconds']:.0f}",
        ]
        for each in record["faults"]
    ]
    columns = ["fault", "planted in", "what it breaks", "tests that ran", "first that failed", "seconds"]
    made = record["environment"]
    return PAGE.format(
        caught=record["caught"],
        total=len(rows),
        commit=str(made["git_commit"])[:7],
        device=made["device"],
        table=table(columns, rows),
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Plants the faults and writes what caught them; 1 where one is not caught."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="names the faults and ends")
    parser.add_argument("--only", action="append", metavar="NAME", help="this fault; may be given again")
    parser.add_argument("--jobs", type=positive, default=1, metavar="N", help="faults at a time; default: 1")
    parser.add_argument("--check-clean", action="store_true", help="first runs the tests without a fault")
    parser.add_argument("--json", type=local_file, metavar="R.json", help="a record")
    parser.add_argument("--page", type=local_file, metavar="P.md", help="a page with a table")
    args = parser.parse_args(argv)
    check_files({"--json": args.json, "--page": args.page}, [])
    faults = choose(args.only)
    for fault in faults:
        fault.planted(ROOT)  # before anything runs
    if args.list:
        for fault in faults:
            print(f"{fault.name:36} {fault.file}: {fault.breaks}")
        return 0
    if args.check_clean and not check_clean(ROOT, faults):
        return 1
    results = []
    with concurrent.futures.ThreadPoolExecutor(args.jobs) as pool:
        try:
            for fault, tested in zip(faults, pool.map(lambda fault: try_fault(ROOT, fault), faults), strict=True):
                results.append(as_json(fault, tested))
                what = tested.failed if tested.has_caught else f"NOT CAUGHT: {tested.last}"
                print(f"{fault.name:36} {tested.seconds:5.0f} s  {what}", flush=True)
        finally:
            pool.shutdown(cancel_futures=True)
    caught = sum(result["is_caught"] for result in results)
    print(f"{caught} of {len(results)} faults are caught")
    record = {"caught": caught, "faults": results, "environment": environment("float32")}
    if args.json:
        write_json(args.json, record)
    if args.page:
        write_files(args.page.parent, {args.page.name: page(record)})
    return int(caught < len(results))


def choose(names: Sequence[str] | None) -> list[Fault]:
    """Gives the faults of these names, in their own order; all of them for None.

    Raises:
      ValueError: for a name that is none's.
    """
    by_name = {fault.name: fault for fault in FAULTS}
    for name in names or ():
        if name not in by_name:
            raise ValueError(f"no fault is named {name}; --list names all.")
    return [fault for fault in FAULTS if names is None or fault.name in names]


if __name__ == "__main__":
    sys.exit(exit_status(main))
