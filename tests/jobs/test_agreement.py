"""Processes that are not about to do the same: all of them end with one line, before anything runs."""

import datetime
import json
import os
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest
from checkpoints import TEMPLATE, make_checkpoint, write_folder
from safetensors.numpy import load_file, save_file

from jax_probe_mtp.jobs import processes

SECONDS = 400  # more is an error, on a slow and busy machine too


class Threads:
    """As many threads as there are values, each a process to the functions under test."""

    def __init__(self, monkeypatch, num):
        self._barrier, self._values, self._own = threading.Barrier(num, timeout=60), [None] * num, threading.local()
        monkeypatch.setattr(processes, "gather", self._gather)

    def _gather(self, value):
        self._values[self._own.index] = np.asarray(value)
        self._barrier.wait()
        together = np.stack(self._values)
        self._barrier.wait()
        return together

    def run(self, function, values):
        """What `function` gives or raises in each thread, for its value."""
        results = [None] * len(values)

        def one(index):
            self._own.index = index
            try:
                results[index] = function(values[index])
            except (ValueError, OSError) as error:
                results[index] = error

        threads = [threading.Thread(target=one, args=[index]) for index in range(len(values))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


def test_what_differs_is_named_by_all(monkeypatch):
    threads = Threads(monkeypatch, 3)
    same = {"p.jsonl": "f00", "--seed": 7, "--stop": ["a"]}
    assert threads.run(processes.check_same, [same, same, same]) == [None] * 3
    other = same | {"p.jsonl": "f01", "--stop": ["b"]}
    host = socket.gethostname()
    says = f"process 1 on {host} differs from process 0 on {host} in: p.jsonl, --stop; "
    says += "give all the same files and the same command."
    assert list(map(str, threads.run(processes.check_same, [same, other, same]))) == [says] * 3

    def among(parts):
        processes.check_same({"weights": parts[1]}, among=parts[0])

    assert (
        threads.run(among, [("first", 1), ("second", 2), ("first", 1)]) == [None] * 3
    )  # only the same parts are compared
    errors = threads.run(among, [("first", 1), ("second", 2), ("second", 3)])
    assert all("process 2 " in str(error) and "from process 1 " in str(error) for error in errors)


def test_where_one_fails_all_end(monkeypatch):
    threads = Threads(monkeypatch, 3)

    def step(failure):
        with processes.in_step():
            if failure:
                raise failure
        return "done"

    assert threads.run(step, [None, None, None]) == ["done"] * 3
    failure = OSError("no such file")
    first, second, third = threads.run(step, [None, failure, None])
    assert second is failure
    assert str(first) == str(third) == "process 1 cannot run, and says why; give the same command when it can."


def test_the_earliest_start_is_every_ones(monkeypatch):
    days = datetime.datetime(2026, 11, 26, 0, 0, 3, 999), datetime.datetime(2031, 1, 1)
    moments = [days[0], datetime.datetime(2026, 11, 25, 23, 59, 59), days[1]]
    assert Threads(monkeypatch, 3).run(processes.earliest, moments) == [moments[1]] * 3
    assert Threads(monkeypatch, 1).run(processes.earliest, moments[:1]) == [datetime.datetime(2026, 11, 26, 0, 0, 3)]


RECORDS = [{"id": f"record {i}", "prompt_ids": [3 * i, i]} for i in range(6)]


def lines(records):
    return "".join(json.dumps(record) + "\n" for record in records)


def change_weight(model):
    tensors = load_file(model / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][11, 17] *= -1
    save_file(tensors, model / "model.safetensors")


DIFFERENT = {  # what the second process has otherwise: its prompts or its model, and what the line names
    "reversed": (lines(RECORDS[::-1]), None, "prompts.jsonl"),
    "a line that is no JSON": (lines(RECORDS) + "{", None, None),
    "weights": (lines(RECORDS), change_weight, "weights"),
}


@pytest.mark.parametrize("kind", DIFFERENT)
def test_two_processes_with_different_files_end_with_one_line(tiny, tmp_path, kind):
    text, change, name = DIFFERENT[kind]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = []
    for i in range(2):
        own = tmp_path / str(i)
        model = write_folder(own / "tiny", make_checkpoint(tiny, template=TEMPLATE))
        (own / "prompts.jsonl").write_text(text if i else lines(RECORDS))
        if i and change:
            change(model)
        command = [sys.executable, "-m", "jax_probe_mtp", "generate", "--model", "tiny", "--input", "prompts.jsonl"]
        command += [
            "--output",
            "answers.jsonl",
            "--batch-size",
            "2",
            "--tree",
            "3",
            "--max-new-tokens",
            "4",
            "--distributed",
        ]
        command += ["--coordinator", address, "--num-processes", "2", "--process-id", str(i)]
        env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled")}
        started.append(subprocess.Popen(command, cwd=own, env=env, stderr=subprocess.PIPE, text=True))
    try:
        errors = [process.communicate(timeout=SECONDS)[1].splitlines() for process in started]
    finally:
        for process in started:
            process.kill()
    assert [process.returncode for process in started] == [2, 2], errors
    assert [len(error) for error in errors] == [1, 1]
    if name is None:
        assert errors[0][0].startswith("error: process 1 cannot run, and says why; ")
        assert errors[1][0].startswith("error: prompts.jsonl, line 7 is not JSON")
    else:
        assert errors[0] == errors[1]
        assert f" in: {name}; give all the same files" in errors[0][0]
    assert not list(tmp_path.glob("*/answers*"))
