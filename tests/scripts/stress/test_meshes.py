"""`scripts/stress/meshes.py` and `bench_step.py --mesh`, on two devices that XLA makes of one CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.devices import cpu_devices

SCRIPTS = Path(__file__).resolve().parents[3] / "scripts"
SECONDS = 400  # more is an error, on a slow and busy machine too


def run(script, *flags, output):
    command = [sys.executable, str(SCRIPTS / script), "--shape", "tiny", *flags, "--output", str(output)]
    done = subprocess.run(
        command, env=os.environ | cpu_devices(2), capture_output=True, text=True, timeout=SECONDS, check=False
    )
    return done, json.loads(output.read_text()) if output.exists() else None


def test_what_runs_is_compared_and_what_does_not_is_told(tmp_path):
    flags = ["--layers", "2", "--formats", "float32", "--drafts", "probe:4", "--meshes", "data=2", "tensor=4"]
    done, record = run("stress/meshes.py", *flags, output=tmp_path / "r.json")
    assert done.returncode == 1
    fits, does_not = record["runs"]
    assert (fits["mesh"], fits["same"], fits["of"]) == ("data=2", 6, 6)
    assert fits["tau"] > 1, "no draft was right"
    assert fits["calls"] == fits["calls_of_one"]
    assert (does_not["mesh"], does_not["status"]) == ("tensor=4", 2)
    assert "needs 4 devices" in does_not["error"]
    assert [line.split()[:3] for line in done.stdout.splitlines()] == [
        ["float32", "probe:4", "data=2"],
        ["float32", "probe:4", "tensor=4"],
    ]


@pytest.mark.parametrize(("mesh", "share"), [("data=2", 1.0), ("tensor=2", 0.5)])
def test_a_step_on_a_mesh_reads_each_devices_part(tmp_path, mesh, share):
    flags = ["--rows", "1", "--batch", "2", "--capacity", "64", "--in-use", "40", "--calls", "8", "--repeats", "1"]
    flags += ["--bandwidth-gb", "0.01", "--step-only", "--mesh", mesh]
    done, record = run("measure/bench_step.py", *flags, output=tmp_path / "r.json")
    assert done.returncode == 0, done.stderr
    (of_run,) = record["runs"]
    assert (of_run["batch"], record["settings"]["mesh"]) == (2, mesh)
    assert of_run["step_ms"] > 0
    # By hand, in numbers of two bytes: two layers of qkv, out, gate, up and down 64 wide, their norms, the last norm, the head.
    split = 2 * (64 * (4 + 2 * 2) * 16 + 64 * 64 + 3 * 64 * 128) + 512 * 64
    cache = 2 * 2 * 2 * 2 * (64 + 1) * 16 * 40 // (64 + 1)  # two layers, k and v, batch 2, two kv heads: what is in use
    rows = 2 if mesh == "data=2" else 1  # parts of the batch
    assert of_run["bytes_read"] == 2 * (split * share + 5 * 64 + cache * share / rows)
