"""Two processes that answer one file together, each with two devices: what they write, how they stop, and how they go on."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time

import jax
import pytest
from checkpoints import make_checkpoint, write_folder
from support.devices import cpu_devices

from jax_probe_mtp.commands.main import main
from jax_probe_mtp.jobs import processes

FLAGS = ["--tree", "7,3", "--batch-size", "4", "--max-new-tokens", "24", "--calls-per-chunk", "1"]
RECORDS = [
    {"id": f"record {i}", "prompt_ids": [(i * i) % 57, i, 3], "temperature": i % 3 * 0.5, "max_new_tokens": 8 + i % 7}
    for i in range(20)
] + [{"id": "empty", "prompt_ids": []}]
SECONDS = 400  # more is an error, on a slow and busy machine too
NO_LIMIT = resource.RLIM_INFINITY
PROGRAM = """
import resource, sys
size = int(sys.argv[1])  # of the largest file that may be written
resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))
from jax_probe_mtp.commands.main import main
sys.exit(main(sys.argv[2:]))
"""


@pytest.fixture(scope="module")
def folder(tiny, tmp_path_factory):
    """A folder with the model, the prompts and the answers of a run on one device, in the order of the prompts."""
    folder = tmp_path_factory.mktemp("distributed")
    model = write_folder(folder / "tiny", make_checkpoint(tiny))
    prompts, alone = folder / "prompts.jsonl", folder / "alone.jsonl"
    prompts.write_text("".join(json.dumps(record) + "\n" for record in RECORDS))
    command = ["generate", "--model", model, "--input", prompts, "--output", alone, "--ordered", *FLAGS]
    assert main([str(arg) for arg in command]) == 3  # one record is empty
    return folder


def free_address():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"127.0.0.1:{free.getsockname()[1]}"


class Processes:
    """The same command in two processes; a context manager that leaves none behind."""

    def __init__(self, folder, answers, *, room=(NO_LIMIT, NO_LIMIT)):
        """Args: the fixture, the folder of the answers, and the largest file that each process may write, in bytes."""
        address = free_address()
        self.parts = [answers / f"answers.{i}-of-2.jsonl" for i in range(2)]
        self.logs = [answers / f"stderr.{i}" for i in range(2)]
        files = ["--model", folder / "tiny", "--input", folder / "prompts.jsonl", "--output", answers / "answers.jsonl"]
        mesh = ["--mesh", "data=2,tensor=2", "--distributed", "--coordinator", address, "--num-processes", "2"]
        own = cpu_devices(2) | {
            "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled"),
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        self.started = []
        for i, (log, size) in enumerate(zip(self.logs, room, strict=True)):
            command = [sys.executable, "-c", PROGRAM, size, "generate", *files, *mesh, "--process-id", i, *FLAGS]
            with log.open("wb") as stderr:
                started = subprocess.Popen([str(arg) for arg in command], env=os.environ | own, stderr=stderr)
            self.started.append(started)

    def wait_for_an_answer(self):
        """Waits until one of them has written something, both alive."""
        end = time.monotonic() + SECONDS
        while not any(map(lines_of, self.parts)):
            assert time.monotonic() < end
            assert [process.poll() for process in self.started] == [None, None], [log.read_text() for log in self.logs]
            time.sleep(0.001)

    def wait(self):
        """Exit statuses and the lines on stderr of both."""
        end = time.monotonic() + SECONDS
        statuses = [process.wait(max(0.1, end - time.monotonic())) for process in self.started]
        return statuses, [log.read_text().splitlines() for log in self.logs]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        for process in self.started:
            process.kill()
            process.wait()


def lines_of(path):
    return path.read_text(encoding="utf-8").splitlines(keepends=True) if path.exists() else []


def test_a_signal_to_one_process_stops_both_and_both_go_on(folder, run, tmp_path):
    with Processes(folder, tmp_path) as both:
        both.wait_for_an_answer()
        both.started[1].send_signal(signal.SIGTERM)
        statuses, logs = both.wait()
    assert statuses == [143, 143], logs
    kept = list(map(lines_of, both.parts))
    assert 0 < len(kept[0] + kept[1]) < 21
    for part, lines, log in zip(both.parts, kept, logs, strict=True):
        assert log[-1] == f"stopped by SIGTERM: {part} holds {len(lines)} of 21 records; give the same command to go on"

    # As after a crash, too: one of the two files ended earlier, in the middle of a line.
    kept[0] = kept[0][:-1]
    both.parts[0].write_text("".join(kept[0]) + '{"id": "torn')
    with Processes(folder, tmp_path) as both:
        statuses, logs = both.wait()
    assert statuses == [3, 0], logs  # the empty record is in the first one's file
    assert [lines_of(part)[: len(lines)] for part, lines in zip(both.parts, kept, strict=True)] == kept
    alone = lines_of(folder / "alone.jsonl")
    assert sorted(lines_of(both.parts[0])) == sorted(alone[0::2])  # the records of even and odd numbers
    assert sorted(lines_of(both.parts[1])) == sorted(alone[1::2])
    files = [*both.parts, "--output", tmp_path / "whole.jsonl", "--input", folder / "prompts.jsonl"]
    assert run("merge", *files)[:2] == (0, "")
    assert lines_of(tmp_path / "whole.jsonl") == alone


def test_a_process_that_cannot_write_stops_both(folder, tmp_path):
    alone, run = lines_of(folder / "alone.jsonl"), (folder / "alone.jsonl.run.json").read_bytes()
    kept = [alone[0:6:2], alone[1:11:2]]  # three and five answers of two processes that were cut off
    parts = [tmp_path / f"answers.{i}-of-2.jsonl" for i in range(2)]
    for part, lines in zip(parts, kept, strict=True):
        part.write_text("".join(lines))
        part.with_name(part.name + ".run.json").write_bytes(run)
    with Processes(folder, tmp_path, room=(NO_LIMIT, parts[1].stat().st_size + 50)) as both:
        statuses, logs = both.wait()
    assert statuses == [129, 2], logs
    num_first = len(lines_of(parts[0]))
    assert logs[0][-1].startswith(f"stopped by another process: {parts[0]} holds {num_first} of 21 records; ")
    assert logs[1][-1].startswith(f"error: {parts[1]}: File too large; 5 records are whole in it: ")
    assert lines_of(parts[0])[:3] == kept[0]
    assert set(lines_of(parts[0])) <= set(alone[0::2])
    assert lines_of(parts[1]) == kept[1]


LONE = """
import logging, sys
from jax_probe_mtp.jobs import processes
logging.basicConfig(format="%(message)s", stream=sys.stderr)
processes.SECONDS_UNSAID = 0.5
processes.initialize(sys.argv[1], int(sys.argv[2]), int(sys.argv[3]))
"""


@pytest.mark.parametrize(
    ("num", "own", "others"), [(2, 0, "process 1"), (2, 1, "process 0"), (4, 0, "the other 3 processes")]
)
def test_a_lone_process_says_whom_it_waits_for(num, own, others):
    address = free_address()
    command = [sys.executable, "-c", LONE, address, str(num), str(own)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as lone:
        try:
            assert lone.stderr.readline() == f"process {own} of {num} waits for {others} at {address}\n"
            assert lone.poll() is None
        finally:
            lone.kill()


@pytest.mark.parametrize("takes", [0.0, 0.5])
def test_a_process_of_a_cluster_says_once_that_it_waits_long(monkeypatch, caplog, takes):
    monkeypatch.setattr(processes, "SECONDS_UNSAID", 0.1)
    monkeypatch.setattr(jax.config, "update", lambda *_: None)
    monkeypatch.setattr(jax.distributed, "initialize", lambda *_, **__: time.sleep(takes))
    processes.initialize(None, None, None)
    time.sleep(0.3)
    assert caplog.messages == ["this process waits for the other processes of the cluster"][: int(takes > 0)]


@pytest.mark.parametrize(
    "given",
    [
        ["--num-processes", "2"],
        ["--coordinator", "127.0.0.1:1"],
        ["--process-id", "0"],
        ["--coordinator", "127.0.0.1:1", "--num-processes", "2"],
    ],
    ids=" ".join,
)
def test_the_three_options_go_together(run, folder, tmp_path, given):
    command = ["--model", folder / "tiny", "--input", folder / "prompts.jsonl", "--output", tmp_path / "answers.jsonl"]
    code, out, err = run("generate", *command, "--distributed", *given)
    says = "--coordinator, --num-processes and --process-id go together; on a TPU pod leave all three out."
    assert (code, out, err) == (2, "", f"error: {says}\n")
    assert list(tmp_path.iterdir()) == []


def test_the_death_of_one_process_ends_the_other_within_seconds(folder, tmp_path):
    with Processes(folder, tmp_path) as both:
        both.wait_for_an_answer()
        both.started[1].kill()
        died = time.monotonic()
        both.started[0].wait(SECONDS)
        seconds = time.monotonic() - died
    assert both.started[0].returncode not in (0, 3)
    assert seconds < 5 * processes.SECONDS_TO_NOTICE, "as ever, JAX alone would take 100 s"
    kept = lines_of(both.parts[0])
    assert all(line.endswith("\n") for line in kept)
    with Processes(folder, tmp_path) as both:
        statuses, logs = both.wait()
    assert statuses == [3, 0], logs
    assert lines_of(both.parts[0])[: len(kept)] == kept
