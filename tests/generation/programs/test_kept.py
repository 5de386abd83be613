"""Programs that another process has compiled are taken from a folder."""

import os

import jax
import pytest
from checkpoints import make_checkpoint

from jax_probe_mtp import Prompt, Settings
from jax_probe_mtp.decoding.config import DecodeConfig
from jax_probe_mtp.drafting.probe import Probe
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


def test_a_folder_in_which_others_write_is_refused(tmp_path, folder):
    keep_programs(folder)
    assert folder.stat().st_mode & 0o777 == 0o700
    folder.chmod(0o770)
    with pytest.raises(OSError, match="can be written by others; chmod 700"):
        keep_programs(folder)


def test_a_program_under_another_name_is_none(checkpoint, folder):
    keep_programs(folder)
    expected = answer(checkpoint)
    one, two, three = sorted(folder.glob("*.program"))
    held = one.read_bytes(), two.read_bytes(), three.read_bytes()
    for path, content in zip((one, two, three), (held[1], held[2], held[0]), strict=True):
        path.write_bytes(content)
    assert answer(checkpoint) == expected
