"""The command `checkpoints-convert` and its errors."""

import subprocess
import sys

import numpy as np
import pytest
from support.checkpoints.gguf_files import write_gguf
from support.checkpoints.hf_folders import hf_config, hf_tensors

from checkpoints_convert import load_checkpoint
from checkpoints_convert.cli import main


def test_the_command_converts(tmp_path, hf_folder, capsys):
    assert main(["hf", str(hf_folder), str(tmp_path / "a"), "--dtype", "bfloat16"]) == 0
    gguf_file = write_gguf(tmp_path / "m.gguf", "qwen2", hf_tensors(hf_config("qwen2")))
    assert main(["gguf", str(gguf_file), str(tmp_path / "b")]) == 0
    captured = capsys.readouterr()
    assert captured.out == ""  # notes go to stderr
    assert f"wrote {tmp_path / 'b'}" in captured.err
    a, b = load_checkpoint(tmp_path / "a").params, load_checkpoint(tmp_path / "b").params
    np.testing.assert_allclose(np.asarray(a["head"], np.float32), b["head"], rtol=2**-8)


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["hf", "nowhere/at/all", "x"], "nowhere/at/all does not exist, and is no hub id of the form org/name."),
        (["gguf", "absent.gguf", "x"], "absent.gguf does not exist."),
        (["info", "absent folder"], "absent folder does not exist"),
    ],
)
def test_the_command_prints_one_line_and_exits_2(tmp_path, argv, message):
    done = subprocess.run([sys.executable, "-m", "checkpoints_convert", *argv], capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_a_reader_that_goes_away_is_no_error(tmp_path, hf_folder):
    command = f"{sys.executable} -m checkpoints_convert info {hf_folder} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode in (0, 141)  # 0 where the pipe was still open


@pytest.mark.parametrize("kind", ["hf", "gguf"])
@pytest.mark.parametrize("text", ["gs://bucket/x", "-", ""])
def test_nothing_is_converted_to_what_is_no_folder_here(kind, text, capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="2"):
        main([kind, "no/model", text])
    assert capsys.readouterr().err.startswith("error: argument DST: ")
    assert list(tmp_path.iterdir()) == []
