"""compiled_step.py: what compilers make of a decode step, and that they copy neither weights nor cache."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import compiled_step
import pytest
from support.devices import cpu_devices

from jax_probe_mtp.errors import exit_status
from jax_probe_mtp.model import layers

pytestmark = pytest.mark.full_compile

SCRIPT = Path(compiled_step.__file__)
needs_libtpu = pytest.mark.skipif(importlib.util.find_spec("libtpu") is None, reason="compiles for TPUs: needs libtpu")


def compiled(output, *flags, **more):
    """In a process of its own: libtpu writes to stderr as it likes, and the number of devices is fixed when JAX starts."""
    env = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONPATH": os.pathsep.join(sys.path)} | more
    command = [sys.executable, str(SCRIPT), *flags, "--output", str(output)]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(output.read_text())["runs"], done.stdout


@pytest.fixture(scope="module")
def on_cpu(tmp_path_factory):
    flags = ["--shape", "tiny", "--drafts", "plain", "probe:4", "--capacity", "128", "--prompt", "33"]
    return compiled(tmp_path_factory.mktemp("cpu") / "r.json", *flags, "--batch", "1", "3", "--programs", "steps")


def test_a_cpu_converts_no_weights_and_no_cache_of_bfloat16(on_cpu):
    """Where rows of several texts were written by a scatter, the cache became float32 and back in every call."""
    runs, _ = on_cpu
    assert [(run["draft"], run["batch"]) for run in runs] == [(d, b) for d in ("plain", "probe:4") for b in (1, 3)]
    for run in runs:
        [loop] = run["loops"]
        assert loop["moved"]["weights"] == loop["moved"]["cache"] == 0
        # Of weights with two axes the table of embeddings alone, once a run.
        matrices = [move for move in run["once"] if move["kind"] == "weights" and move["bytes"] > 4 * 128]
        assert {move["what"] for move in matrices} <= {"params['embed']"}


def test_a_cpu_writes_the_cache_of_one_row_in_place(tmp_path):
    """Where a loop carried a batch axis of 1, XLA:CPU copied each array of the cache in every call of one row."""
    flags = [
        "--shape",
        "tiny",
        "--dtype",
        "float32",
        "--drafts",
        "plain",
        "probe:4",
        "--capacity",
        "128",
        "--prompt",
        "33",
    ]
    runs, _ = compiled(tmp_path / "r.json", *flags, "--programs", "decode")
    for run in runs:
        assert len(run["loops"]) == 2  # of the prompt's chunks, and of calls
        assert [loop["moved"]["cache"] for loop in run["loops"]] == [0, 0]


def test_a_cpu_converts_no_whole_matrix_of_eight_bits(tmp_path):
    """At SmolLM2's widths, where columns go through in pieces: all at once, 1.8 MB of floats were made of qkv's 0.6 MB."""
    flags = ["--shape", "smollm2-135m", "--layers", "1", "--capacity", "64", "--prompt", "33", "--weights", "int8"]
    runs, _ = compiled(tmp_path / "r.json", *flags, "--drafts", "plain", "probe:4", "--programs", "steps")
    for run in runs:
        for loop in run["loops"]:
            converted = [move["bytes"] for move in loop["moves"] if move["kind"] == "weights"]
            assert max(converted, default=0) <= 4 * layers.PIECE_NUMBERS


def check_gathers_no_logits(run, vocabulary):
    """Single numbers of each row travel; the logits of all rows are many times as much."""
    [loop] = run["loops"]
    logits = 4 * run["batch"] * run["rows"] * vocabulary
    assert loop["moved"]["gathered"] < logits / 8


def test_devices_that_share_a_vocabulary_gather_no_logits(tmp_path):
    """The tables and masks of a source know the best tokens of all devices without them, and so does the walk."""
    flags = ["--shape", "tiny", "--mesh", "tensor=2", "--batch", "2", "--dtype", "float32", "--capacity", "64"]
    flags += ["--prompt", "33", "--drafts", "plain", "probe:4", "recycle:12", "--programs", "steps"]
    runs, _ = compiled(tmp_path / "r.json", *flags, **cpu_devices(2))
    assert [run["rows"] for run in runs] == [1, 10, 12]
    for run in runs:
        check_gathers_no_logits(run, 512)


def test_the_table_says_what_was_compiled(on_cpu):
    _, out = on_cpu
    assert "plain, 1 rows, batch 1: steps" in out
    assert "probe:4, 10 rows, batch 1: steps" in out


@needs_libtpu
def test_a_tpu_copies_no_weights(tmp_path):
    """Two layers of a 3B model; with gate and up in one array of three axes, 201 MB were copied in every call."""
    flags = ["--topology", "v6e:2x2", "--shape", "llama-3.2-3b", "--layers", "2"]
    flags += ["--capacity", "256", "--prompt", "129"]
    [run], _ = compiled(tmp_path / "r.json", *flags)
    assert len(run["loops"]) == 2  # of the prompt's chunks, and of calls
    for loop in run["loops"]:
        assert loop["reads"]["weights"] > 0
        # With two layers some weights live in the chip's scratchpad, and starts of copies to and from there are no fault.
        large = [move for move in loop["moves"] if move["kind"] == "weights" and move["bytes"] > 1e5]
        assert {move["opcode"] for move in large} <= {"copy-start"}
    assert [move for move in run["once"] if move["kind"] == "weights" and move["bytes"] > 1e5] == []


@needs_libtpu
@pytest.mark.parametrize("draft", ["plain", "probe:14"])
def test_a_tpu_converts_no_weights_of_eight_bits(tmp_path, draft):
    flags = ["--topology", "v6e:2x2", "--shape", "llama-3.2-3b", "--layers", "1", "--weights", "int8"]
    [run], _ = compiled(tmp_path / "r.json", *flags, "--capacity", "256", "--prompt", "129", "--drafts", draft)
    assert len(run["loops"]) == 2
    for loop in run["loops"]:
        assert loop["reads"]["weights"] > 0
        assert not [move for move in loop["moves"] if move["kind"] == "weights" and move["bytes"] > 1e5]
    assert not [move for move in run["once"] if move["kind"] == "weights" and move["bytes"] > 1e5]


@needs_libtpu
def test_tpus_that_share_a_vocabulary_gather_no_logits(tmp_path):
    """One layer of an 8B model over eight chips; 30 rows of 8 texts gathered 123 MB in every call."""
    flags = ["--topology", "v5e:2x4", "--mesh", "tensor=8", "--shape", "llama-3-8b", "--layers", "1", "--batch", "8"]
    flags += ["--capacity", "256", "--prompt", "129", "--drafts", "probe:14", "--programs", "steps"]
    [run], _ = compiled(tmp_path / "r.json", *flags)
    check_gathers_no_logits(run, 128256)
    [loop] = run["loops"]
    assert loop["moved"]["weights"] == loop["moved"]["cache"] == 0


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (
            ["--topology", "v4:2x2"],
            "--topology must be h100, or one of v5e, v6e, v5p and its chips, such as v6e:2x2, got 'v4:2x2'.",
        ),
        (["--prompt", "200", "--capacity", "64"], "--prompt 200 needs --capacity 199 or more, got 64."),
        (["--mesh", "tensor=3", "--shape", "tiny"], "tensor=3 must divide the model's 2 kv heads and mlp width 128"),
        (["--mesh", "tensor=2", "--shape", "tiny"], "mesh data=1,tensor=2 needs 2 devices"),
        (["--drafts", "nothing:3"], "nothing"),
    ],
)
def test_refuses(capsys, monkeypatch, flags, message):
    monkeypatch.setattr(sys, "argv", ["compiled_step.py", *flags])
    assert exit_status(compiled_step.main) == 2
    err = capsys.readouterr().err
    assert message in err
    assert err.count("\n") == 1


def test_without_libtpu_the_way_out_is_said(capsys, monkeypatch):
    def fail(**how):
        raise RuntimeError("UNKNOWN: Unable to load libtpu.so\nmore")

    monkeypatch.setattr(compiled_step.topologies, "get_topology_desc", fail)
    monkeypatch.setattr(sys, "argv", ["compiled_step.py", "--topology", "v6e:2x2"])
    assert exit_status(compiled_step.main) == 2
    assert 'pip install "jax[tpu]"' in capsys.readouterr().err


@needs_libtpu
def test_a_shape_that_a_chip_cannot_hold_is_refused(capsys, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["compiled_step.py", "--topology", "v5e:2x4", "--shape", "llama-3-8b"])
    assert exit_status(compiled_step.main) == 2
    assert "split the weights with --mesh tensor=T or lower --capacity" in capsys.readouterr().err
