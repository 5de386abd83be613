"""`scripts/stress/kill_runs.py`: a run that is killed a few times ends with the answers of one that is left alone."""

import json
import os
import subprocess
import sys
from pathlib import Path

from checkpoints import make_checkpoint, write_folder

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "stress" / "kill_runs.py"
SECONDS = 900  # more is an error, on a slow and busy machine too


def test_runs_that_are_killed_lose_and_repeat_nothing(tiny, tmp_path):
    model = write_folder(tmp_path / "tiny", make_checkpoint(tiny))
    command = [sys.executable, str(SCRIPT), "--model", str(model), "--folder", str(tmp_path / "runs")]
    command += ["--records", "30", "--kills", "4", "--batch-size", "2", "--output", str(tmp_path / "record.json")]
    own = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    done = subprocess.run(command, env=os.environ | own, capture_output=True, timeout=SECONDS, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    assert record | json.loads(done.stdout) == record
    assert (record["records"], record["answers"], record["kills"]) == (30, 30, 4)
    assert (record["ids_there_once"], record["equal_to_the_whole_run"]) == (True, True)
    assert record["exit_status_of_the_last_run"] == 0
    assert 1 <= record["kills_that_left_new_answers"] <= 4
    assert record["kills_that_left_a_torn_line"] <= 4
    lines = [(tmp_path / "runs" / name).read_text().splitlines() for name in ("killed.jsonl", "whole.jsonl")]
    assert sorted(lines[0]) == sorted(lines[1])
    assert {json.loads(line)["id"] for line in lines[0]} == {f"record {i}" for i in range(30)}
