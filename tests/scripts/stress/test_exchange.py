"""`scripts/stress/exchange.py`, which only GPUs can run, where there are none."""

import os
import subprocess
import sys
from pathlib import Path

from support.devices import cpu_devices

SCRIPT = Path(__file__).resolve().parents[3] / "scripts/stress/exchange.py"


def test_refuses_devices_that_cannot_exchange(tmp_path):
    output = tmp_path / "r.json"
    done = subprocess.run(
        [sys.executable, str(SCRIPT), "--devices", "2", "--output", str(output)],
        env=os.environ | cpu_devices(2),
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 2, done.stderr
    assert "these devices cannot write into each other's memory from kernels." in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1
    assert not output.exists()
