"""scripts/measure/bench_step.py: its record says what was run and read; its shapes have their models' sizes."""

import json
import subprocess
import sys
from pathlib import Path

import bench_step
import jax
import pytest
from shapes import SHAPES

from jax_probe_mtp.errors import exit_status
from jax_probe_mtp.model.params import abstract_params

SCRIPTS = Path(__file__).parents[3] / "scripts" / "measure"

FLAGS = [
    *["--shape", "tiny", "--dtype", "float32", "--rows", "1", "10", "--batch", "1", "2", "--capacity", "128"],
    *["--in-use", "40", "--calls", "8", "--repeats", "2", "--bandwidth-gb", "0.01", "--layers", "1"],
]
# By hand, in float32s of the shape "tiny": D 64, F 128, 2 kv heads of 2 queries each, h 16, V 512; one layer of its two.
LAYER = 64 + 64 * 2 * (2 + 2) * 16 + 2 * 2 * 16 * 64 + 64 + 64 * 2 * 128 + 128 * 64
TABLE = 512 * 64
WEIGHT_BYTES = 4 * (TABLE + LAYER + 64 + TABLE)
SLOT_BYTES = 4 * 2 * 2 * 16  # float32, keys and values, kv heads, h
PARAMETERS = {  # in millions, as the model cards say
    "llama-3-8b": 8030,
    "qwen3-8b": 8190,
    "llama-3.2-3b": 3210,
    "qwen3-0.6b": 596,
    "smollm2-135m": 134.5,
    "qwen2.5-0.5b": 494,
    "qwen3-32b": 32800,
    "llama-3-70b": 70600,
}


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    """In a process of its own: the script turns on a compilation cache and drops what is compiled."""
    output = tmp_path_factory.mktemp("step") / "record.json"
    command = [sys.executable, str(SCRIPTS / "bench_step.py"), *FLAGS, "--output", str(output)]
    process = subprocess.run(command, capture_output=True, text=True, check=False)
    assert process.returncode == 0, process.stderr
    return json.loads(output.read_text(encoding="utf-8")), process.stdout


def test_the_record_says_what_was_run(finished):
    record, _ = finished
    environment = record["environment"]
    assert environment["jax"] == jax.__version__
    assert environment["dtype"] == "float32"
    assert environment["device"]
    settings = record["settings"]
    assert "output" not in settings
    assert settings["shape"] == "tiny"
    assert settings["attention"] == "auto"
    assert (settings["in_use"], settings["calls"], settings["repeats"]) == (40, 8, 2)
    assert record["read_bytes_per_second"] > 0
    assert [(each["weights"], each["weight_bytes"]) for each in record["runs"]] == [(None, WEIGHT_BYTES)] * 4
    names = ("batch", "rows", "capacity")
    assert [tuple(each[name] for name in names) for each in record["runs"]] == [
        (1, 1, 128), (1, 10, 128), (2, 1, 128), (2, 10, 128),
    ]  # fmt: skip


def test_every_run_has_its_times(finished):
    record, _ = finished
    for each in record["runs"]:
        for kind in ("step_ms", "forward_ms"):
            repeats = each[f"{kind}_repeats"]
            assert len(repeats) == 2
            assert min(repeats) > 0
            assert each[kind] == pytest.approx(sum(repeats) / 2)  # the median of two
        assert each["compile_seconds"] > 0
        assert each["compile_cached_seconds"] is not None
        assert each["compile_cached_seconds"] > 0


def test_bytes_are_those_counted_by_hand(finished):
    record, _ = finished
    for each in record["runs"]:
        slots = 128 + each["rows"]  # the scratch of a call's block behind the capacity
        cache_bytes = each["batch"] * slots * SLOT_BYTES
        assert each["weights_and_cache_bytes"] == WEIGHT_BYTES + cache_bytes
        assert each["bytes_read"] == WEIGHT_BYTES - 4 * TABLE + cache_bytes * 40 // slots
        assert each["bytes_read"] == 279_296 + 10_240 * each["batch"]
        of_bandwidth = each["bytes_read"] / (each["step_ms"] / 1e3) / record["read_bytes_per_second"]
        assert each["of_bandwidth"] == pytest.approx(of_bandwidth)


def test_one_line_a_run_is_printed(finished):
    _, printed = finished
    lines = printed.splitlines()
    assert lines[1].startswith("rows batch slots")
    assert lines[2].startswith("float32: ")
    assert [line.split()[:3] for line in lines[3:]] == [
        ["1", "1", "128"], ["10", "1", "128"], ["1", "2", "128"], ["10", "2", "128"],
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (["--rows", "7"], ["--rows 7", "even number"]),
        (["--capacity", "47"], ["40 tokens in use", "8 new ones", "capacity of 47"]),
        (["--mesh", "tensor=2"], ["--mesh", "--step-only"]),
        (["--mesh", "tensor=3", "--step-only"], ["tensor=3", "2 kv heads", "1, 2"]),
    ],
    ids=["rows", "capacity", "mesh without step-only", "mesh"],
)
def test_what_is_wrong_is_said_in_one_line(tmp_path, capsys, monkeypatch, args, words):
    output = tmp_path / "record.json"
    monkeypatch.setattr(jax.config, "update", lambda *setting: None)  # which the script changes for good
    monkeypatch.setattr(sys, "argv", ["bench_step.py", *FLAGS, *args, "--output", str(output)])
    assert exit_status(bench_step.main) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ")
    for word in words:
        assert word in line
    assert not output.exists()


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_shape_has_the_parameters_of_its_model(name):
    """A tied table is counted once: `abstract_params` has no head then."""
    count = sum(leaf.size for leaf in jax.tree.leaves(abstract_params(SHAPES[name])))
    assert count == pytest.approx(1e6 * PARAMETERS[name], rel=0.01)
