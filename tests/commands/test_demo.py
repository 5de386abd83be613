"""The demo, without the network: it fetches once, answers, and compares; several at once share what the first one made."""

import pytest
from checkpoints import make_checkpoint, write_folder

import checkpoints_convert.convert
from checkpoints_convert import convert_hf
from jax_probe_mtp.commands import demo, demo_model


@pytest.fixture
def converted(tmp_path):
    return tmp_path / "cache" / "jax_probe_mtp" / "SmolLM2-135M-Instruct"


@pytest.fixture
def fetched(tiny, tmp_path, monkeypatch):
    """Has a tiny model converted in the place of the demo's; the list of what was."""
    fetched, source = [], write_folder(tmp_path / "tiny", make_checkpoint(tiny))

    def convert(file, destination):
        fetched.append(file)
        convert_hf(source, destination, note=lambda line: None)

    monkeypatch.setattr(demo_model, "fetch", lambda folder: folder / "fetched.gguf")
    monkeypatch.setattr("checkpoints_convert.convert_gguf", convert)
    return fetched


def test_demo_fetches_once_and_shows_the_proof(run, fetched, converted):
    code, out, err = run("demo")
    assert code == 0
    assert out.endswith("2 same, 0 tie, 0 diverged\n")
    assert all(f"> {prompt}\n" in out for prompt in demo.DEMO_PROMPTS)
    assert "fetching" in err
    assert fetched == [converted.with_name("fetched.gguf")]
    code, again, err = run("demo")
    assert (code, again) == (0, out)
    assert "fetching" not in err
    assert len(fetched) == 1


@pytest.mark.parametrize("when", ["while this one fetches", "while this one converts"])
def test_a_demo_uses_what_another_finished_first(run, tmp_path, fetched, converted, monkeypatch, when):
    def other_demo():
        convert_hf(tmp_path / "tiny", converted, note=lambda line: None)
        (converted / "of the other").touch()

    save = checkpoints_convert.convert.save_params

    def save_after_another(folder, params):
        monkeypatch.setattr(checkpoints_convert.convert, "save_params", save)
        other_demo()
        save(folder, params)

    if when == "while this one fetches":
        monkeypatch.setattr(demo_model, "fetch", lambda folder: other_demo())
    else:
        monkeypatch.setattr(checkpoints_convert.convert, "save_params", save_after_another)
    code, out, err = run("demo")
    assert (code, out.splitlines()[-1]) == (0, "2 same, 0 tie, 0 diverged")
    assert f"another demo was faster: using its {converted}\n" in err
    assert (converted / "of the other").exists()
    assert [path.name for path in converted.parent.iterdir()] == [converted.name]


def test_a_folder_that_is_no_model_is_named(run, fetched, converted):
    (converted / "something").mkdir(parents=True)
    code, out, err = run("demo")
    assert (code, out) == (2, "")
    assert err.splitlines()[-1] == f"error: {converted} exists; remove it or choose another destination."
