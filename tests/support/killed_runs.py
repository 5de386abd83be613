"""Runs a script of `scripts/stress/` that kills runs over a tiny model."""

import json
import os
import subprocess
import sys
from pathlib import Path

from checkpoints import make_checkpoint, write_folder

STRESS = Path(__file__).resolve().parents[2] / "scripts" / "stress"
SECONDS = 900  # more is an error, on a slow and busy machine too


def killed_runs(script, tiny, folder):
    """The record of 4 kills and 30 records; the files of the runs are in `folder`/runs."""
    model = write_folder(folder / "tiny", make_checkpoint(tiny))
    command = [sys.executable, str(STRESS / script), "--model", str(model), "--folder", str(folder / "runs")]
    command += ["--records", "30", "--kills", "4", "--batch-size", "2", "--output", str(folder / "record.json")]
    own = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    done = subprocess.run(command, env=os.environ | own, capture_output=True, timeout=SECONDS, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((folder / "record.json").read_text())
    assert record | json.loads(done.stdout) == record
    return record
