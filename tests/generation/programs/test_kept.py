"""Programs that another process has compiled are taken from a folder, and only they."""

import dataclasses
import os
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

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
from jax_probe_mtp.generation.decoder import Decoder
from jax_probe_mtp.generation.programs import compiled, keep_programs, kept

PROMPT = Prompt(id="p", token_ids=[3, 1, 4, 1, 5])
SETTINGS = Settings(max_new_tokens=6)
STATIC = {"source": Probe(widths=(3,)), "decode_cfg": DecodeConfig(capacity=32), "num_calls": 4}


@pytest.fixture
def folder(tmp_path):
    yield tmp_path / "programs"
    keep_programs(None)


@pytest.fixture(scope="module")
def checkpoint(tiny):
    return make_checkpoint(tiny)


def answer(checkpoint, source=STATIC["source"]):
    """Decodes with programs of its own, as another process would."""
    [generation] = Decoder(checkpoint, source).run([PROMPT], SETTINGS)
    return generation.token_ids, generation.calls, generation.accepted_by_depth


def refuse(*_, **__):
    raise AssertionError("something was compiled")


@pytest.fixture
def nothing_compiles(monkeypatch):
    def forbid():
        monkeypatch.setattr(compiled.jax, "jit", refuse)

    return forbid


def test_what_was_compiled_before_is_neither_traced_nor_compiled_again(checkpoint, folder, nothing_compiles):
    expected = answer(checkpoint)
    assert expected[1] < len(expected[0]), "no draft was accepted, so little would be shown"
    keep_programs(folder)
    assert answer(checkpoint) == expected
    assert len(list(folder.glob("*.program"))) == 3  # an empty batch, a prompt that comes, the calls
    nothing_compiles()
    assert answer(checkpoint) == expected


def test_another_source_is_another_program(checkpoint, folder, nothing_compiles):
    keep_programs(folder)
    answer(checkpoint)
    nothing_compiles()
    with pytest.raises(AssertionError, match="something was compiled"):
        answer(checkpoint, Probe(widths=(2,)))


def test_a_file_that_is_not_whole_is_compiled_again_and_replaced(checkpoint, folder, nothing_compiles):
    keep_programs(folder)
    expected = answer(checkpoint)
    harms = [lambda data: data[:-1], lambda data: data[:40] + bytes([data[40] ^ 1]) + data[41:], lambda data: b""]
    for path, harm in zip(sorted(folder.glob("*.program")), harms, strict=True):
        path.write_bytes(harm(path.read_bytes()))
    assert answer(checkpoint) == expected
    nothing_compiles()
    assert answer(checkpoint) == expected


def test_jaxs_cache_is_as_it_was(checkpoint, folder, monkeypatch):
    before, seen = jax.config.jax_persistent_cache_min_compile_time_secs, []
    honest = compiled.Programs._compile

    def note(self, *args):
        seen.append(jax.config.jax_persistent_cache_min_compile_time_secs)
        return honest(self, *args)

    monkeypatch.setattr(compiled.Programs, "_compile", note)
    keep_programs(folder)
    answer(checkpoint)
    assert seen == [float("inf")] * 3
    assert jax.config.jax_persistent_cache_min_compile_time_secs == before


def test_a_folder_keeps_what_fits_and_lets_go_of_what_was_not_used_the_longest(checkpoint, folder, monkeypatch):
    keep_programs(folder)
    answer(checkpoint)
    sizes = {path: path.stat().st_size for path in folder.glob("*.program")}
    for path in sizes:
        os.utime(path, (0, 0))
    answer(checkpoint)  # they are used, and so newer than what comes now
    old = folder / "old.program"
    old.write_bytes(b"0" * 1000)
    os.utime(old, (1, 1))
    monkeypatch.setattr(kept, "MOST_BYTES", sum(sizes.values()) + 500)
    next(iter(sizes)).unlink()
    answer(checkpoint)
    assert sorted(folder.glob("*.program")) == sorted(sizes)


def test_a_folder_that_cannot_be_written_ends_no_run(checkpoint, folder):
    expected = answer(checkpoint)
    keep_programs(folder)
    folder.rmdir()
    folder.write_text("a file")
    assert answer(checkpoint) == expected


def key(tiny, function=run_calls, static=None, args=None, how=None):
    args = (tiny.params, np.zeros((2, 3), np.int32)) if args is None else args
    own = {"cfg": tiny.cfg, **STATIC} if static is None else static
    return kept.key(function, own, args, {"donate": (2,)} if how is None else how)


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
    keys = [
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
        keys.append(key(tiny))
    monkeypatch.setenv("XLA_FLAGS", os.environ["XLA_FLAGS"] + " --xla_dump_to=")
    keys.append(key(tiny))
    monkeypatch.undo()
    monkeypatch.setattr(kept, "source_digest", lambda *_: "another source")
    keys.append(key(tiny))
    assert len(set(keys)) == len(keys)
    monkeypatch.undo()
    assert key(tiny) == keys[0]


class Mine(Probe):
    """A source of a module that the digest does not cover."""


@pytest.mark.parametrize(
    "what",
    [
        {"static": {"source": Mine(widths=(3,))}},
        {"static": {"source": object()}},
        {"function": lambda params: params},
        {"args": (np.zeros(3),)},
    ],
)
def test_what_cannot_be_told_has_no_key(tiny, what):
    with pytest.raises(kept.Unknown):
        key(tiny, **what)


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
        return kept.source_digest(folder, time.time() + 1)

    assert digest() == digest()
    others = [digest(**{"a.py": "x = 2"}), digest(**{"a.py": None, "c.py": "x = 1"}), digest(**{"data/b.json": "[]"})]
    assert len({digest(), *others}) == 4


def test_a_source_that_is_newer_than_the_process_is_not_what_it_runs(tmp_path):
    (tmp_path / "a.py").write_text("x = 1")
    kept.source_digest(tmp_path, time.time() + 1)
    with pytest.raises(kept.Unknown, match=r"a\.py has changed since this process began"):
        kept.source_digest(tmp_path, time.time() - 60)


@pytest.mark.parametrize("name", sorted(set(SOURCES) - {"auto"}))
def test_programs_of_every_way_of_drafting_have_a_key(checkpoint, name):
    source = parse_draft(name)
    batch = make_batch(checkpoint.config, source, [PROMPT], SETTINGS, eos_token_ids=checkpoint.eos_token_ids)
    static = {"cfg": checkpoint.config, "source": source, "decode_cfg": batch.config}
    shared = begin_shared(source, checkpoint.config)
    state = jax.eval_shape(partial(empty, **static), checkpoint.params, batch.request, shared)
    assert kept.key(run_calls, static, (checkpoint.params, batch.request, state), {})


def test_two_processes_make_one_key(tiny, tmp_path):
    code = (
        "import jax, numpy as np\n"
        "from jax_probe_mtp.decoding.rows import run_calls\n"
        "from jax_probe_mtp.drafting import Merged\n"
        "from jax_probe_mtp.generation.programs import kept\n"
        "print(kept.key(run_calls, {'source': Merged(rows=16)}, (jax.numpy.zeros(2), {'b': 1.0 * np.ones(2)}), {}))"
    )
    package = str(Path(kept.PACKAGE).parent)
    keys = {
        subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, "PYTHONPATH": package, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout
        for seed in ("1", "2")
    }
    assert len(keys) == 1
