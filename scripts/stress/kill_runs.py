"""Kills `generate` with SIGKILL at random moments, resumes it until it is done, and compares with a run that was not killed.

    python scripts/stress/kill_runs.py --model MODEL --folder FOLDER --records 500 --kills 200 --output R.json

Prompts are random token ids. A run is killed while it starts, loads or compiles, or a moment after it has written
something. Every run is a fork of this process, which has imported everything and started nothing: only so are 200 runs a
matter of minutes. Afterwards every id must be there once, with the answer of the run that was left alone.
"""

import argparse
import contextlib
import json
import os
import random
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import checkpoints_convert  # noqa: F401  (what the command imports late)
import jax_probe_mtp.commands.main
from jax_probe_mtp.errors import Parser, exit_status, positive
from jax_probe_mtp.files.whole_files import check_files, write_json

EARLY = 0.3  # of the kills: at any moment before the first answer is written
LONGEST_RUN = 300.0  # seconds; more is an error


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="as for generate; a tiny one")
    parser.add_argument("--folder", type=Path, required=True, help="where the files go; made if need be, must be empty")
    parser.add_argument("--records", type=positive, default=500)
    parser.add_argument("--kills", type=positive, default=200)
    parser.add_argument("--batch-size", type=int, default=4)
    parser.add_argument("--max-prompt", type=int, default=60, help="tokens of the longest prompt")
    parser.add_argument("--max-new-tokens", type=int, default=24)
    parser.add_argument("--vocabulary", type=int, default=50, help="prompts hold ids below this")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a JSON record of what happened")
    args = parser.parse_args(argv)
    check_files({"--output": args.output}, [])
    args.folder.mkdir(parents=True, exist_ok=True)
    prompts, answers, whole = (args.folder / name for name in ("prompts.jsonl", "killed.jsonl", "whole.jsonl"))
    if any(path.exists() for path in (prompts, answers, whole)):
        parser.error(f"{args.folder} holds files of an earlier run; name another folder")
    draw = random.Random(args.seed)
    _write_prompts(prompts, draw, args)
    command = ["generate", "--model", args.model, "--input", str(prompts), "--batch-size", str(args.batch_size)]
    command += ["--max-new-tokens", str(args.max_new_tokens), "--calls-per-chunk", "2", "--log-level", "error"]

    start = time.perf_counter()
    if run([*command, "--output", str(whole)]) != 0:
        raise ValueError("the run that is left alone failed; generate with the same model says why.")
    seconds_of_a_start = time_to_write([*command, "--output", str(args.folder / "timed.jsonl")])
    kills, torn, sizes = 0, 0, []
    while kills < args.kills:
        before = _size(answers)
        # Were too much written already, no records would be left for the last kills.
        is_ahead = len(_lines(answers)) * args.kills > args.records * (kills + 1)
        longest = seconds_of_a_start if is_ahead or draw.random() < EARLY else None
        was_killed = run_and_kill([*command, "--output", str(answers)], answers, draw, longest)
        if not was_killed:
            break  # nothing was left to do
        kills += 1
        sizes.append(_size(answers) - before)
        torn += bool(_size(answers)) and not answers.read_bytes().endswith(b"\n")
    status = run([*command, "--output", str(answers)])

    expected, got = _lines(whole), _lines(answers)
    ids = [json.loads(line)["id"] for line in got]
    record = {
        "records": args.records,
        "kills": kills,
        "kills_that_left_new_answers": sum(size > 0 for size in sizes),
        "kills_that_left_a_torn_line": torn,
        "exit_status_of_the_last_run": status,
        "answers": len(got),
        "ids_there_once": len(set(ids)) == len(ids) == args.records,
        "equal_to_the_whole_run": sorted(got) == sorted(expected),
        "seconds": round(time.perf_counter() - start, 1),
    }
    print(json.dumps(record, indent=1))
    if args.output:
        sizes_of_run = {name: value for name, value in vars(args).items() if isinstance(value, int)}
        write_json(args.output, record | {"arguments": sizes_of_run})
    is_right = record["ids_there_once"] and record["equal_to_the_whole_run"] and status == 0 and kills == args.kills
    return 0 if is_right else 1


def _write_prompts(path: Path, draw: random.Random, args: argparse.Namespace) -> None:
    with path.open("w") as file:
        for i in range(args.records):
            ids = [draw.randrange(args.vocabulary) for _ in range(draw.randint(1, args.max_prompt))]
            record = {"id": f"record {i}", "prompt_ids": ids} | ({"temperature": 1.0} if i % 3 == 0 else {})
            file.write(json.dumps(record) + "\n")


def _start(command: list[str]) -> int:
    child = os.fork()
    if child:
        return child
    sys.stderr = open(os.devnull, "w")  # noqa: SIM115 - to the child's end
    status = 70
    with contextlib.suppress(BaseException):
        status = jax_probe_mtp.commands.main.main(command)
    os._exit(status)


def run(command: list[str]) -> int:
    return os.waitstatus_to_exitcode(os.waitpid(_start(command), 0)[1])


def time_to_write(command: list[str]) -> float:
    """Gives the seconds until a run has written its first answers; it is killed then."""
    begin, child = time.perf_counter(), _start(command)
    _wait(child, Path(command[-1]), 0)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return time.perf_counter() - begin


def _wait(child: int, output: Path, size: int, seconds: float = LONGEST_RUN) -> bool:
    """Waits until the file is larger than `size`, or for so long; False if the child ended first."""
    end = time.perf_counter() + seconds
    while time.perf_counter() < end and _size(output) <= size:
        if os.waitid(os.P_PID, child, os.WEXITED | os.WNOHANG | os.WNOWAIT) is not None:
            return False
        time.sleep(0.0005)
    return True


def run_and_kill(command: list[str], output: Path, draw: random.Random, longest: float | None) -> bool:
    """Kills a run when it has written, or within `longest` seconds of its start if that is sooner; False if it ended before.

    A run can be many times faster than the one that `longest` was timed on: it would end before a kill that waits.
    """
    size, child = _size(output), _start(command)
    if longest is not None:
        is_running = _wait(child, output, size, draw.uniform(0, longest))
    else:
        is_running = _wait(child, output, size)
        time.sleep(draw.uniform(0, 0.02))
    os.kill(child, signal.SIGKILL)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL and is_running


def _size(path: Path) -> int:
    return path.stat().st_size if path.exists() else 0


def _lines(path: Path) -> list[str]:
    return path.read_text(encoding="utf-8").splitlines() if path.exists() else []


if __name__ == "__main__":
    sys.exit(exit_status(main))
