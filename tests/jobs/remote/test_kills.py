"""A process that writes to an address and is killed: what is there then, and that another one goes on."""

import os
import signal
import subprocess
import sys
import time

import pytest
from support.files.job_runs import FLAGS, RECORDS, read, write

SECONDS = 300  # more is an error, on a slow and busy machine too
PROGRAM = """
import sys
from jax_probe_mtp.files.remote import working_copy
working_copy.SECONDS_BETWEEN = working_copy.TIMES_BETWEEN = 0
from jax_probe_mtp.commands.main import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM], ids=["KILL", "TERM"])
def test_a_killed_process_is_gone_on_with(generate, model, whole, tmp_path, number):
    there = tmp_path / "there" / "answers.jsonl"
    there.parent.mkdir()
    command = ["--input", write(tmp_path, RECORDS), "--output", f"file://{there}"]
    argv = [sys.executable, "-c", PROGRAM, "generate", "--model", model, *FLAGS, *command]
    own = {"JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"), "TMPDIR": str(tmp_path)}
    with subprocess.Popen([str(arg) for arg in argv], env=os.environ | own, stderr=subprocess.PIPE) as process:
        end = time.monotonic() + SECONDS
        while process.poll() is None and not (there.exists() and there.stat().st_size):
            assert time.monotonic() < end
            time.sleep(0.001)
        process.send_signal(number)
        process.communicate(timeout=SECONDS)
    kept = read(there)
    assert kept == whole[: len(kept)] != []
    assert generate(*command)[0] == 0
    assert read(there)[: len(kept)] == kept
    assert sorted(read(there)) == sorted(whole)
    assert {path.name for path in there.parent.iterdir()} <= {"answers.jsonl", "answers.jsonl.run.json"} | {
        path.name
        for path in there.parent.glob("*.partial")  # of a put that the kill cut off
    }
