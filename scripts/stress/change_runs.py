"""Kills `generate` with SIGKILL at random moments, edits its input between two runs, and compares every answer with its record.

    python scripts/stress/change_runs.py --model MODEL --folder FOLDER --kills 200 --output R.json

Records with and without ids, some of them equal, are put in front, in the middle and at the end, taken out, reordered and
edited, and ids are taken away. After each run: no answer that is still right is gone, none is there twice, and a run without
--redo-changed is refused just where a record under the same id has changed. At the end, each record has one answer, the one
that a run over the last file alone gives.
"""

import argparse
import collections
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from kill_runs import EARLY, run, run_and_kill, time_to_write

from jax_probe_mtp.errors import Parser, exit_status, positive
from jax_probe_mtp.files.whole_files import check_files, write_json

REFUSED = 2
Asked = dict[str, Any]
Edit = Callable[["Records", random.Random], None]


class Records:
    """The records of the input as they are now."""

    def __init__(self, draw: random.Random, num: int) -> None:
        self.all: list[Asked] = []
        self._num_named = 0
        for _ in range(num):
            self.all.append(self.new(draw))

    def new(self, draw: random.Random) -> Asked:
        """Makes a record; few prompts, so that some records without an id are equal."""
        asked: Asked = {"prompt_ids": [draw.randrange(12) for _ in range(draw.randint(1, 2))]}
        if draw.random() < 0.3:
            asked["temperature"] = 1.0
        if draw.random() < 0.3:
            asked["max_new_tokens"] = draw.randint(2, 9)
        if draw.random() < 0.5:
            return asked
        self._num_named += 1
        return {"id": f"record {self._num_named}"} | asked

    def write(self, path: Path) -> None:
        path.write_text("".join(json.dumps(record) + "\n" for record in self.all))

    def by_key(self) -> dict[tuple[Any, ...], Asked]:
        """Gives what tells each record from the others, beside what it asks for."""
        seen: collections.Counter[str] = collections.Counter()
        keys: dict[tuple[Any, ...], Asked] = {}
        for record in self.all:
            asked = what_is_asked(record)
            seen[asked] += 1
            keys[("id", record["id"]) if "id" in record else (asked, seen[asked])] = record
        return keys


def what_is_asked(fields: Asked) -> str:
    """Gives a record's own prompt and settings, or those that an answer names, as one text."""
    names = ("prompt_ids", "temperature", "max_new_tokens")
    return json.dumps({name: fields[name] for name in names if name in fields})


def put_in(records: Records, draw: random.Random, place: Callable[[int], int]) -> None:
    for _ in range(draw.randint(1, 6)):
        records.all.insert(place(len(records.all)), records.new(draw))


def take_out(records: Records, draw: random.Random) -> None:
    for _ in range(min(draw.randint(1, 3), len(records.all) - 1)):
        records.all.pop(draw.randrange(len(records.all)))


def edit(records: Records, draw: random.Random) -> None:
    record = draw.choice(records.all)
    record["prompt_ids"] = [*record["prompt_ids"], draw.randrange(12)][-3:]
    if draw.random() < 0.5:
        record["max_new_tokens"] = draw.randint(2, 9)


def drop_id(records: Records, draw: random.Random) -> None:
    draw.choice(records.all).pop("id", None)


EDITS: dict[str, Edit] = {
    "put in front": lambda records, draw: put_in(records, draw, lambda num: 0),
    "put in the middle": lambda records, draw: put_in(records, draw, lambda num: draw.randint(0, num)),
    "appended": lambda records, draw: put_in(records, draw, lambda num: num),
    "taken out": take_out,
    "reordered": lambda records, draw: draw.shuffle(records.all),
    "edited": edit,
    "id dropped": drop_id,
}


def answers_in(path: Path) -> dict[tuple[Any, ...], str]:
    """Gives the whole lines of the output, by what tells their records apart.

    Raises:
      ValueError: if there are two answers to a record.
    """
    lines = path.read_bytes().split(b"\n")[:-1] if path.exists() else []
    answers: dict[tuple[Any, ...], str] = {}
    for line in lines:
        answer = json.loads(line)
        key = ("id", answer["id"])
        if "occurrence" in answer:
            key = what_is_asked(answer), answer["occurrence"]
        if key in answers:
            raise ValueError(f"there are two answers to {key}.")
        answers[key] = line.decode()
    return answers


def still_right(answers: dict[tuple[Any, ...], str], records: Records) -> dict[tuple[Any, ...], str]:
    """Gives the answers whose record asks for what they name."""
    asked = {key: what_is_asked(record) for key, record in records.by_key().items()}
    return {key: line for key, line in answers.items() if asked.get(key) == what_is_asked(json.loads(line))}


def check_round(before: dict[tuple[Any, ...], str], after: dict[tuple[Any, ...], str], records: Records) -> None:
    """Raises ValueError if an answer that is still right is gone or is another."""
    for key, line in still_right(before, records).items():
        if after.get(key) != line:
            raise ValueError(f"the answer to {key} is gone or another.")


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="as for generate; a tiny one")
    parser.add_argument("--folder", type=Path, required=True, help="where the files go; made if need be, must be empty")
    parser.add_argument("--records", type=positive, default=60, help="at the start")
    parser.add_argument("--kills", type=positive, default=200)
    parser.add_argument("--batch-size", type=positive, default=4)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="a JSON record of what happened")
    args = parser.parse_args(argv)
    check_files({"--output": args.output}, [])
    args.folder.mkdir(parents=True, exist_ok=True)
    if any(args.folder.iterdir()):
        parser.error(f"{args.folder} holds files of an earlier run; name another folder")
    prompts, output, whole = (args.folder / name for name in ("prompts.jsonl", "changed.jsonl", "whole.jsonl"))
    command = ["generate", "--model", args.model, "--input", str(prompts), "--batch-size", str(args.batch_size)]
    command += ["--max-new-tokens", "12", "--capacity", "32", "--calls-per-chunk", "2", "--log-level", "error"]

    draw, start = random.Random(args.seed), time.perf_counter()
    records = Records(draw, args.records)
    records.write(prompts)
    seconds_of_a_start = time_to_write([*command, "--output", str(args.folder / "timed.jsonl")])
    counts: collections.Counter[str] = collections.Counter()
    while counts["kills"] < args.kills:
        before = answers_in(output)
        must_redo = bool((before.keys() - still_right(before, records).keys()) & records.by_key().keys())
        is_told = draw.random() < 0.5
        if must_redo and not is_told:
            if run([*command, "--output", str(output)]) != REFUSED or answers_in(output) != before:
                raise ValueError("a record changed under its id, and the run was not refused.")
            counts["refused"] += 1
        redo = ["--redo-changed"] if must_redo or is_told else []
        longest = seconds_of_a_start if draw.random() < EARLY else None
        was_killed = run_and_kill([*command, *redo, "--output", str(output)], output, draw, longest)
        counts["kills" if was_killed else "runs that ended"] += 1
        counts["kills with --redo-changed that was needed"] += was_killed and must_redo
        after = answers_in(output)
        check_round(before, after, records)
        counts["kills that left new answers"] += was_killed and len(after.keys() - before.keys()) > 0
        for name in draw.sample(list(EDITS), k=draw.randint(1, 2)):
            EDITS[name](records, draw)
            counts[name] += 1
        records.write(prompts)
    before = answers_in(output)
    status = run([*command, "--redo-changed", "--output", str(output)])
    check_round(before, answers_in(output), records)
    others = len(answers_in(output)) - len(records.all)
    merged = args.folder / "merged.jsonl"
    merge = ["merge", str(output), "--input", str(prompts), "--leave-out-others", "--output", str(merged)]
    statuses = [status, run(merge), run([*command, "--ordered", "--output", str(whole)])]
    record = {
        "seconds": round(time.perf_counter() - start, 1),
        "statuses_at_the_end": statuses,
        "records": len(records.all),
        "answers_to_records_that_are_gone": others,
        "each_record_has_its_answer": merged.exists() and merged.read_bytes() == whole.read_bytes(),
        "counts": dict(sorted(counts.items())),
    }
    print(json.dumps(record, indent=1))
    if args.output:
        write_json(args.output, record | {"arguments": {"seed": args.seed, "batch_size": args.batch_size}})
    return 0 if record["each_record_has_its_answer"] and statuses == [0, 0, 0] else 1


if __name__ == "__main__":
    sys.exit(exit_status(main))
