"""Records that the tests of jobs run, and the files of such a run."""

import json
import re

from checkpoints import TEMPLATE

# A user turn of w50 alone is one that the template cannot take.
FAILING = "{% if messages[0]['content'] == 'w50' %}{{ raise_exception('no such\nturn') }}{% endif %}" + TEMPLATE
NEW = 24
FLAGS = ["--tree", "7,3", "--batch-size", "3", "--max-new-tokens", str(NEW), "--calls-per-chunk", "2"]
SIZES = ["--capacity", "128"]  # of `RECORDS`, so that other records need no programs of their own
# Ten records through three rows. The first is the longest by far, so that it is not the first to end.
RECORDS = [
    {"id": "long", "prompt_ids": [5, 9, 2, 44, 17, 3, 3], "max_new_tokens": 60},
    {"id": 2, "prompt_ids": [7], "max_new_tokens": 1},
    {"id": "3", "prompt_ids": [60, 1, 33, 8], "max_new_tokens": 3},
    {"id": "drawn", "prompt_ids": [1, 2, 3], "temperature": 1.0, "seed": 4, "max_new_tokens": 9},
    *({"id": f"more {i}", "prompt_ids": [(i * 7) % 58, i], "max_new_tokens": 2 + i % 3} for i in range(6)),
]
IDS = [record["id"] for record in RECORDS]
ERRORS = [
    {"id": "too long", "prompt_ids": [1] * 500, "temperature": 1},
    {"id": "asks too much", "prompt_ids": [1], "max_new_tokens": 512},
    {"id": "empty", "prompt_ids": []},
    {"id": "good", "prompt_ids": [7], "max_new_tokens": 2},
    {"id": "no such token", "prompt_ids": [61]},
    {"id": "bad turn", "messages": [{"role": "user", "content": "w50"}]},
    {"id": "also good", "prompt_ids": [7], "max_new_tokens": 2},
]


def write(folder, records, name="prompts.jsonl"):
    path = folder / name
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


def read(path):
    return path.read_text(encoding="utf-8").splitlines(keepends=True)


def ids_of(lines):
    return [json.loads(line)["id"] for line in lines]


def files(folder, records=RECORDS):
    return "--input", write(folder, records), "--output", folder / "answers.jsonl"


def assert_refused(result, *says):
    code, out, err = result
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert re.fullmatch("error: .*" + ".*".join(re.escape(str(part)) for part in says) + ".*\n", err), err
