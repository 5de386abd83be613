"""Costs of decode calls are measured once and kept: what they depend on, and files that are not what was kept."""

import dataclasses
import json
import math

import pytest
from checkpoints import make_checkpoint
from support.measuring.tree_timer import Timer

from jax_probe_mtp import Settings
from jax_probe_mtp.drafting import Probe
from jax_probe_mtp.measuring import call_cost, tree_choice
from jax_probe_mtp.measuring.tree_choice import choose

SETTINGS = Settings(batch_size=2, capacity=128)


@pytest.fixture(scope="module")
def checkpoint(tiny):
    return make_checkpoint(tiny)


@pytest.fixture
def timer(monkeypatch):
    timer = Timer()
    monkeypatch.setattr(call_cost, "time_step", timer)
    return timer


def test_what_was_measured_once_is_read(checkpoint, timer, tmp_path):
    folder, lines = tmp_path / "new" / "folder", []
    first = choose(checkpoint, SETTINGS, folder=folder, say=lines.append)
    assert len(lines) == 1
    assert "1, 10, 30, 60 rows" in lines[0]
    timer.costs = {}  # it would raise
    again = choose(checkpoint, SETTINGS, folder=folder, say=lines.append)
    assert again == dataclasses.replace(first, is_cached=True)
    assert "(cached: " in str(again)
    assert len(lines) == 1
    # What a call does not cost anything for: other values of the same program.
    like = {"seed": 3, "max_new_tokens": 5}
    assert choose(checkpoint, dataclasses.replace(SETTINGS, **like), folder=folder).is_cached
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 3},
        {"capacity": 256},
        {"temperature": 1.0},
        {"temperature": 1.0, "top_p": 0.5},
        "template",
        "model",
        "dtype",
        "device",
        "jax",
        "jax_probe_mtp",
    ],
    ids=str,
)
def test_another_key_is_measured_by_itself(checkpoint, timer, tmp_path, monkeypatch, change):
    choose(checkpoint, SETTINGS, folder=tmp_path)
    if isinstance(change, dict) and "top_p" in change:
        choose(checkpoint, dataclasses.replace(SETTINGS, temperature=1.0), folder=tmp_path)
    timer.asked.clear()
    other, settings, more = checkpoint, SETTINGS, {}
    if isinstance(change, dict):
        settings = dataclasses.replace(SETTINGS, **change)
    elif change == "template":
        more["template"] = Probe(widths=(14,), prune=False)
    elif change == "model":
        params = checkpoint.params | {"final_norm": checkpoint.params["final_norm"] * 2}
        other = dataclasses.replace(checkpoint, params=params)
    else:
        environment = tree_choice.environment("float32") | {change: "another"}
        monkeypatch.setattr(tree_choice, "environment", lambda dtype: environment)
    assert not choose(other, settings, folder=tmp_path, **more).is_cached
    assert timer.rows == [1, 10, 30, 60]
    assert choose(other, settings, folder=tmp_path, **more).is_cached
    assert len(timer.asked) == 4


def _with_costs(costs):
    return lambda text: json.dumps(json.loads(text) | {"costs": costs})


DAMAGE = {
    "cut short": lambda text: text[:-9],
    "empty": lambda text: "",
    "not UTF-8": lambda text: b"\xff\xfe",
    "deep": lambda text: "[" * 100_000,
    "a list": lambda text: "[]",
    "no object": lambda text: "3",
    "another format": lambda text: json.dumps(json.loads(text) | {"format": 0}),
    "another's costs": lambda text: text.replace("DecodeConfig(capacity=128", "DecodeConfig(capacity=256"),
    "no keys": lambda text: "{}",
    "a number beyond floats": _with_costs({"1": 10, "10": 10**400}),
    "no costs": _with_costs({}),
    "costs of nothing": _with_costs(None),
    "costs in a list": _with_costs([1, 2]),
    "a cost of no number": _with_costs({"1": 10, "10": "many"}),
    "a cost of null": _with_costs({"1": 10, "10": None}),
    "no time at all": _with_costs({"1": 10, "10": 0}),
    "endless": _with_costs({"1": 10, "10": math.inf}),
    "unlike rows": _with_costs({"1": 10, "11": 90}),
    "rows missing": _with_costs({"1": 10, "10": 11, "30": 12}),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_measured_again_and_replaced(checkpoint, timer, tmp_path, name):
    choose(checkpoint, SETTINGS, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_text()
    damaged = DAMAGE[name](whole)
    assert damaged != whole
    path.write_bytes(damaged if isinstance(damaged, bytes) else damaged.encode())
    timer.asked.clear()
    assert not choose(checkpoint, SETTINGS, folder=tmp_path).is_cached
    assert timer.rows == [1, 10, 30, 60]
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == whole


def test_a_folder_that_cannot_be_written_costs_a_line(checkpoint, timer, tmp_path):
    (tmp_path / "file").touch()
    lines = []
    for _ in range(2):
        choice = choose(checkpoint, SETTINGS, folder=tmp_path / "file" / "folder", say=lines.append)
        assert (choice.source.num_rows, choice.is_cached) == (30, False)
    assert len(lines) == 4
    assert lines[1].startswith("what a call costs is not kept: ")
    assert "\n" not in lines[1]
