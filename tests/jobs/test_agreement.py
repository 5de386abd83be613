"""Processes that are not about to do the same: all of them end with one line, before anything runs."""

import datetime
import json
import os
import socket
import subprocess
import sys
import threading
import time

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


def start(tiny, folder, texts, change=None, flags=()):
    """Two processes with a folder each: the model, which `change` has changed for the second, and these prompts."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    started = []
    for i, text in enumerate(texts):
        own = folder / str(i)
        model = write_folder(own / "tiny", make_checkpoint(tiny, template=TEMPLATE))
        (own / "prompts.jsonl").write_text(text)
        if i and change:
            change(model)
        command = [sys.executable, "-m", "jax_probe_mtp", "generate", "--model", "tiny", "--input", "prompts.jsonl"]
        command += ["--output", "answers.jsonl", "--batch-size", "2", "--tree", "3", "--max-new-tokens", "4"]
        command += ["--distributed", "--coordinator", address, "--num-processes", "2", "--process-id", str(i), *flags]
        env = os.environ | {"JAX_PLATFORMS": "cpu", "JAX_COMPILATION_CACHE_DIR": str(folder / "compiled")}
        started.append(subprocess.Popen(command, cwd=own, env=env, stderr=subprocess.PIPE, text=True))
    return started


def end(started):
    """The exit statuses, and the lines on stderr."""
    try:
        errors = [process.communicate(timeout=SECONDS)[1].splitlines() for process in started]
    finally:
        for process in started:
            process.kill()
    return [process.returncode for process in started], errors


@pytest.mark.parametrize("kind", DIFFERENT)
def test_two_processes_with_different_files_end_with_one_line(tiny, tmp_path, kind):
    text, change, name = DIFFERENT[kind]
    statuses, errors = end(start(tiny, tmp_path, [lines(RECORDS), text], change))
    assert statuses == [2, 2], errors
    assert [len(error) for error in errors] == [1, 1]
    if name is None:
        assert errors[0][0].startswith("error: process 1 cannot run, and says why; ")
        assert errors[1][0].startswith("error: prompts.jsonl, line 7 is not JSON")
    else:
        assert errors[0] == errors[1]
        assert f" in: {name}; give all the same files" in errors[0][0]
    assert not list(tmp_path.glob("*/answers*"))


def test_a_file_that_changes_under_one_process_stops_both(tiny, tmp_path):
    records = [{"id": f"record {i}", "prompt_ids": [i % 57, i // 57]} for i in range(600)]  # more than is read ahead
    started = start(tiny, tmp_path, [lines(records)] * 2, flags=["--calls-per-chunk", "1"])
    limit = time.monotonic() + SECONDS
    parts = [tmp_path / str(i) / f"answers.{i}-of-2.jsonl" for i in range(2)]
    while not all(part.exists() and part.stat().st_size for part in parts):
        assert time.monotonic() < limit
        time.sleep(0.01)
    (tmp_path / "1" / "prompts.jsonl").write_text(lines(records[::-1]))
    statuses, errors = end(started)
    assert statuses == [129, 2], errors
    assert errors[0][-1].startswith("stopped by another process: answers.0-of-2.jsonl holds ")
    assert errors[1][-1].startswith("error: prompts.jsonl, line ")
    for part in parts:
        answers = [json.loads(line) for line in part.read_text().splitlines()]
        assert 0 < len(answers) < 300
        for answer in answers:
            record = records[int(answer["id"].split()[1])]
            assert (record["id"], record["prompt_ids"]) == (answer["id"], answer["prompt_ids"])
