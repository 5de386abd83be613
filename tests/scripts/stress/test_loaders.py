"""scripts/stress/loaders.py: a few hundred damaged checkpoints, and what the harness sees."""

import json
import os
import subprocess
import sys
from pathlib import Path

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts" / "stress"
SECONDS = 400  # more is an error, on a slow and busy machine too
PLANTED_CASES, PLANTED_SEED = 10, 234  # each plant is there, those that end the process once

# Run in place of the script: a reader of GGUF files that misbehaves as the first byte of the file says.
PLANTED = r"""
import ctypes, os, signal, sys, time
import loaders, worker
from checkpoints_convert import load
from checkpoints_convert.errors import CheckpointError

def hang(path):
    while True:
        time.sleep(0.01)

def hang_deaf(path):
    signal.signal(signal.SIGALRM, signal.SIG_IGN)  # as code in C, which the alarm does not reach
    hang(path)

def two_lines(path):
    error = CheckpointError("a")
    error.args = ("a\nb",)
    raise error

def canary(path):
    return os.path.join(os.path.dirname(path), "..", "canary.json")

plants = [
    lambda path: {}["key"],
    hang,
    hang_deaf,
    lambda path: open(canary(path)).read(),
    lambda path: ctypes.CDLL(None).open(canary(path).encode(), 0),
    lambda path: bytearray(b"x") * (64 << 20),
    lambda path: os.abort(),
    two_lines,
]
open_gguf = load.open_gguf

def planted(path, *how):
    first = path.read_bytes()[0]
    if first < len(plants):
        plants[first](path)
        raise CheckpointError("refused")
    return open_gguf(path, *how)

load.open_gguf = planted
worker.KINDS = {"gguf": 1}
worker.SECONDS, worker.SECONDS_TO_DIE = 0.5, 1.0
worker.damage = lambda draw, kind, seed: ("planted", {"m.gguf": bytes([draw.randrange(len(plants) + 1)])})
sys.exit(loaders.main(sys.argv[1:]))
"""


def run_fuzz(*args, code=None):
    start = ["-c", code] if code else [str(SCRIPTS / "loaders.py")]
    own = {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join([str(SCRIPTS), os.environ.get("PYTHONPATH", "")])}
    command = [sys.executable, *start, *map(str, args)]
    return subprocess.run(command, env=os.environ | own, capture_output=True, timeout=SECONDS, text=True, check=False)


def test_damaged_checkpoints_load_or_are_refused(tmp_path):
    done = run_fuzz("--cases", 300, "--seed", 7, "--output", tmp_path / "record.json")
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    assert record["all"]["cases"] == 300
    kinds = {"safetensors", "shards", "config", "config, mistral", "config, smollm3", "converted", "tokenizer"}
    assert {row["file"] for row in record["table"]} == kinds | {"gguf", "gguf, sentencepiece", "gguf, smollm3"}
    assert record["all"]["loaded"] > 20
    assert record["all"]["refused"] > 150
    assert record["defects"] == []
    assert sum(row["cases"] for row in record["table"]) == 300
    assert 0 < record["slowest"]["seconds"] <= record["limits"]["seconds"]
    assert "defects" in done.stdout.splitlines()[0]


def test_the_harness_sees_what_a_reader_does_wrong(tmp_path):
    done = run_fuzz("--cases", PLANTED_CASES, "--seed", PLANTED_SEED, "--output", tmp_path / "r.json", code=PLANTED)
    assert done.returncode == 1, done.stdout + done.stderr
    record = json.loads((tmp_path / "r.json").read_text())
    seen = {(case["result"], case["message"].partition(" ")[0]) for case in record["defects"]}
    assert seen == {
        ("other error", "KeyError:"),
        ("late", "stopped"),
        ("killed", "did"),
        ("outside", "open"),  # as Python's audit events tell
        ("outside", "inotify"),  # opened by C, which raises none
        ("memory", "refused"),
        ("crash", "the"),
        ("not one line", "a\nb"),
    }
    assert record["all"]["refused"] > 0
    case = record["defects"][0]
    assert f"--seed {PLANTED_SEED} --first {case['case']} --cases 1 (gguf, planted)" in done.stdout
