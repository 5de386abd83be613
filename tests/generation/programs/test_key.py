"""Two programs share a key only if they are the same."""

import dataclasses
import os
import subprocess
import sys
import time
from functools import partial, wraps
from pathlib import Path
from types import SimpleNamespace

import jax
import numpy as np
import pytest
from checkpoints import make_checkpoint

from jax_probe_mtp import Prompt, Settings
from jax_probe_mtp.decoding.batch import make_batch
from jax_probe_mtp.decoding.config import DecodeConfig
from jax_probe_mtp.decoding.rows import empty, run_calls
from jax_probe_mtp.drafting.merged.source import Merged
from jax_probe_mtp.drafting.probe import Probe
from jax_probe_mtp.drafting.source import SourceState, begin_shared
from jax_probe_mtp.drafting.spec import SOURCES, parse_draft
from jax_probe_mtp.generation.programs import key as keys

PROMPT = Prompt(id="p", token_ids=[3, 1, 4, 1, 5])
SETTINGS = Settings(max_new_tokens=6)
STATIC = {"source": Probe(widths=(3,)), "decode_cfg": DecodeConfig(capacity=32), "num_calls": 4}


@pytest.fixture(scope="module")
def checkpoint(tiny):
    return make_checkpoint(tiny)


def key(tiny, function=run_calls, static=None, args=None, how=None):
    args = (tiny.params, np.zeros((2, 3), np.int32)) if args is None else args
    own = {"cfg": tiny.cfg, **STATIC} if static is None else static
    return keys.key(function, own, args, {"donate": (2,)} if how is None else how)


def changed(value):
    """Another value of the same kind."""
    match value:
        case bool():
            return not value
        case int() | float():
            return value + 2
        case tuple():
            return (*value, 1)
        case None:
            return 1
    return value + "-"


@pytest.mark.parametrize("name", ["cfg", "decode_cfg", "probe", "merged"])
def test_every_field_of_what_is_static_counts(tiny, name):
    static = {"cfg": tiny.cfg, **STATIC}
    place = name if name in static else "source"
    if name == "merged":
        static["source"] = Merged(rows=16)
    value, seen = static[place], {key(tiny, static=static)}
    for field in dataclasses.fields(value):
        other = dataclasses.replace(value)
        object.__setattr__(other, field.name, changed(getattr(value, field.name)))  # whether or not it makes sense
        seen.add(key(tiny, static={**static, place: other}))
    assert len(seen) == 1 + len(dataclasses.fields(value))


def test_all_else_that_decides_a_program_counts(tiny, monkeypatch):
    array = np.zeros((2, 3), np.int32)
    seen = [
        key(tiny),
        key(tiny, function=empty),
        key(tiny, static={"cfg": tiny.cfg, **STATIC, "num_calls": 5}),
        key(tiny, static={"cfg": tiny.cfg, **STATIC, "num_calls": 4.0}),
        key(tiny, how={"donate": ()}),
        key(tiny, args=(tiny.params, array.T)),
        key(tiny, args=(tiny.params, array.astype(np.uint32))),
        key(tiny, args=(tiny.params, (array,))),
        key(tiny, args=(tiny.params, SourceState(rows=array, shared=()))),
        key(tiny, args=(tiny.params, SourceState(rows=(), shared=array))),
        key(tiny, args=(tiny.params, jax.numpy.asarray(2))),  # of a weak type
        key(tiny, args=(tiny.params, np.asarray(2, np.int32))),
    ]
    with jax.default_matmul_precision("highest"):
        seen.append(key(tiny))
    monkeypatch.setenv("TRITON_CACHE", "somewhere")
    seen.append(key(tiny))
    monkeypatch.undo()
    monkeypatch.setitem(keys.VERSIONS, "optax", "0.0.1")
    seen.append(key(tiny))
    monkeypatch.undo()
    monkeypatch.setattr(keys, "source_digest", lambda *_: "another source")
    seen.append(key(tiny))
    monkeypatch.undo()
    devices = [("gpu", "H100", "13", ""), ("gpu", "H200", "13", ""), ("gpu", "H100", "12", "")]
    for platform, kind, version, cpu in [*devices, ("cpu", "cpu", "13", "one"), ("cpu", "cpu", "13", "another")]:
        client = SimpleNamespace(platform_version=version)
        device = SimpleNamespace(platform=platform, device_kind=kind, client=client)
        monkeypatch.setattr(keys, "device_of", lambda args, device=device: device)
        monkeypatch.setattr(keys, "_cpu", lambda cpu=cpu: cpu)
        seen.append(key(tiny))
    assert len(set(seen)) == len(seen)
    monkeypatch.undo()
    assert key(tiny) == seen[0]


class Mine(Probe):
    """A source of a module that the digest does not cover."""


@wraps(run_calls)
def looks_like_run_calls(*args):
    """Has the name of another function."""


@pytest.mark.parametrize(
    "what",
    [
        {"static": {"source": Mine(widths=(3,))}},
        {"static": {"source": object()}},
        {"function": lambda params: params},
        {"function": looks_like_run_calls},
        {"args": (np.zeros(3),)},
    ],
)
def test_what_cannot_be_told_has_no_key(tiny, what):
    with pytest.raises(keys.Unknown):
        key(tiny, **what)


def test_what_was_changed_around_a_process_has_no_key(tiny, monkeypatch):
    assert key(tiny)
    monkeypatch.setenv("XLA_FLAGS", "--xla_dump_to=")  # which a device that runs has not read
    with pytest.raises(keys.Unknown, match="flags that were changed"):
        key(tiny)
    monkeypatch.undo()
    monkeypatch.setattr(keys.jax, "device_count", lambda: 2)
    with pytest.raises(keys.Unknown, match="2 devices"):
        key(tiny)
    monkeypatch.undo()
    with jax.set_mesh(jax.make_mesh((1,), ("x",))), pytest.raises(keys.Unknown, match="a mesh"):
        key(tiny)


def test_a_with_block_of_this_thread_is_noticed():
    assert not keys.has_own_settings()
    with jax.default_matmul_precision("highest"):
        assert keys.has_own_settings()


def test_a_source_digest_reads_every_file_and_its_name(tmp_path):
    files = {"a.py": "x = 1", "data/b.json": "{}"}

    def digest(**changed):
        folder = tmp_path / str(time.perf_counter_ns())
        for name, text in {**files, **changed}.items():
            if text is not None:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_text(text)
        (folder / "__pycache__").mkdir()
        (folder / "__pycache__" / "a.pyc").write_bytes(os.urandom(8))
        return keys.source_digest(folder, time.time() + 1)

    assert digest() == digest()
    others = [digest(**{"a.py": "x = 2"}), digest(**{"a.py": None, "c.py": "x = 1"}), digest(**{"data/b.json": "[]"})]
    assert len({digest(), *others}) == 4


def test_a_package_without_files_has_no_digest(tmp_path):
    with pytest.raises(keys.Unknown, match="no files"):
        keys.source_digest(tmp_path, time.time() + 1)


def test_a_source_that_is_newer_than_the_process_is_not_what_it_runs(tmp_path):
    (tmp_path / "a.py").write_text("x = 1")
    keys.source_digest(tmp_path, time.time() + 1)
    with pytest.raises(keys.Unknown, match=r"a\.py has changed since this process began"):
        keys.source_digest(tmp_path, time.time() - 60)


@pytest.mark.parametrize("name", sorted(SOURCES))
def test_programs_of_every_way_of_drafting_have_a_key(checkpoint, name):
    source = parse_draft(name)
    batch = make_batch(checkpoint.config, source, [PROMPT], SETTINGS, eos_token_ids=checkpoint.eos_token_ids)
    static = {"cfg": checkpoint.config, "source": source, "decode_cfg": batch.config}
    shared = begin_shared(source, checkpoint.config)
    state = jax.eval_shape(partial(empty, **static), checkpoint.params, batch.request, shared)
    assert keys.key(run_calls, static, (checkpoint.params, batch.request, state), {})


def test_two_processes_make_one_key(tiny, tmp_path):
    code = (
        "import jax, numpy as np\n"
        "from jax_probe_mtp.decoding.rows import run_calls\n"
        "from jax_probe_mtp.drafting import Merged\n"
        "from jax_probe_mtp.generation.programs import key as keys\n"
        "print(keys.key(run_calls, {'source': Merged(rows=16)}, (jax.numpy.zeros(2), {'b': 1.0 * np.ones(2)}), {}))"
    )
    package = str(Path(keys.PACKAGE).parent)
    made = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": package, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(made) == 1
