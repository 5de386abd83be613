"""The converted folder: complete or absent, described without its weights; the command and its errors."""

import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from support.gguf_files import write_gguf
from support.hf_folders import D, F, G, H, K, L, V, h, hf_config, hf_tensors, quiet, write_hf

import checkpoints_convert.convert
from checkpoints_convert import CheckpointError, convert_gguf, convert_hf, load_checkpoint, read_info
from checkpoints_convert.cli import main
from checkpoints_convert.params.folder import written_whole


@pytest.fixture
def hf_folder(tmp_path):
    config = hf_config("qwen2")
    return write_hf(tmp_path / "hf", config, hf_tensors(config))


def test_a_converted_folder_holds_what_it_needs(tmp_path, hf_folder):
    (hf_folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    convert_hf(hf_folder, tmp_path / "sub" / "ours", note=quiet)
    folder = tmp_path / "sub" / "ours"
    names = {path.name for path in folder.iterdir()}
    assert names >= {"jax_probe_mtp.json", "params", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    metadata = json.loads((folder / "jax_probe_mtp.json").read_text())
    assert metadata["format_version"] == 1
    assert metadata["source"] == {"kind": "hf", "files": ["model.safetensors"], "types": ["F32"]}
    assert metadata["eos_token_ids"] == [7]
    assert metadata["config"]["num_layers"] == L
    assert [path.name for path in folder.parent.iterdir()] == ["ours"]  # nothing left beside it
    chat = load_checkpoint(folder).tokenizer.apply_chat_template([{"role": "user", "content": "a"}], tokenize=False)
    assert chat == "a!"


def test_an_existing_destination_is_refused(tmp_path, hf_folder):
    (tmp_path / "ours").mkdir()
    with pytest.raises(CheckpointError, match="ours exists; remove it or choose another"):
        convert_hf(hf_folder, tmp_path / "ours", note=quiet)
    assert not any((tmp_path / "ours").iterdir())


@pytest.mark.parametrize("error", [RuntimeError("disk"), KeyboardInterrupt(), OSError(28, "No space left on device")])
def test_an_interrupted_conversion_leaves_nothing(tmp_path, hf_folder, monkeypatch, error):
    def fail(folder, params):
        assert (folder / "tokenizer.json").exists()  # it was under way
        raise error

    monkeypatch.setattr(checkpoints_convert.convert, "save_params", fail)
    wanted = CheckpointError if isinstance(error, OSError) else type(error)
    with pytest.raises(wanted):
        convert_hf(hf_folder, tmp_path / "ours", note=quiet)
    assert [path.name for path in tmp_path.iterdir()] == ["hf"]


def test_what_threads_still_write_is_removed_too(tmp_path, monkeypatch):
    """Orbax's go on for a moment after an interrupt; a file that appears while its folder is removed keeps it there."""
    remove, calls = shutil.rmtree, []

    def remove_but_one(folder, **how):
        calls.append(folder)
        remove(folder, **how)
        if len(calls) < 3:
            folder.mkdir()
            (folder / "late").write_text("x")

    monkeypatch.setattr(shutil, "rmtree", remove_but_one)
    with pytest.raises(KeyboardInterrupt), written_whole(tmp_path / "out"):
        raise KeyboardInterrupt
    assert len(calls) == 3
    assert list(tmp_path.iterdir()) == []


def test_a_killed_conversion_leaves_no_finished_folder(tmp_path, hf_folder):
    code = (
        "import os, sys, checkpoints_convert.convert as c\n"
        "c.save_params = lambda folder, params: os._exit(9)\n"
        "c.convert_hf(sys.argv[1], sys.argv[2])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(hf_folder), str(tmp_path / "ours")], capture_output=True)
    assert done.returncode == 9
    assert not (tmp_path / "ours").exists()
    assert not list(tmp_path.glob("*/jax_probe_mtp.json"))
    for left in tmp_path.glob(".ours.unfinished-*"):
        with pytest.raises(CheckpointError):
            load_checkpoint(left)


def test_a_damaged_folder_is_named(tmp_path, hf_folder):
    convert_hf(hf_folder, tmp_path / "ours", note=quiet)
    path = tmp_path / "ours" / "jax_probe_mtp.json"
    good = json.loads(path.read_text())
    changes = {
        "format version 99": {"format_version": 99},
        "unexpected keyword": {"config": good["config"] | {"surprise": 1}},
        "must be a multiple": {"config": good["config"] | {"num_kv_heads": 4}},
        "family must be one of llama, qwen2, qwen3, got \\[\\]": {"config": good["config"] | {"family": []}},
        "is_tied must be true or false, got 1": {"config": good["config"] | {"is_tied": 1}},
        "finite numbers above 0, got \\['a'": {"config": good["config"] | {"rope_divisors": ["a"] * (h // 2)}},
        "dtype 'int8'": {"dtype": "int8"},
        "cannot be restored": {"config": good["config"] | {"mlp_width": F + 1}},
        "do not match": {"config": good["config"] | {"num_layers": L + 1}},
    }
    for message, change in changes.items():
        path.write_text(json.dumps(good | change))
        with pytest.raises(CheckpointError, match=message):
            load_checkpoint(tmp_path / "ours")
    path.write_text("{")
    with pytest.raises(CheckpointError, match="not readable JSON"):
        load_checkpoint(tmp_path / "ours")
    path.write_text(json.dumps(good))
    (tmp_path / "ours" / "params").rename(tmp_path / "elsewhere")
    for read in (load_checkpoint, read_info):
        with pytest.raises(CheckpointError, match="params is missing"):
            read(tmp_path / "ours")


def test_info_counts_without_loading(tmp_path, hf_folder, capsys):
    qkv, attention_out, mlp = D * K * (G + 2) * h + K * (G + 2) * h, H * h * D, 3 * D * F
    num_params = 2 * V * D + D + L * (qkv + attention_out + mlp + 2 * D)
    convert_hf(hf_folder, tmp_path / "ours", dtype="bfloat16", note=quiet)
    gguf_file = write_gguf(tmp_path / "m.gguf", "qwen2", hf_tensors(hf_config("qwen2")))
    for path, kind, dtype, item in (
        (hf_folder, "hf", "float32", 4),
        (gguf_file, "gguf", "float32", 4),
        (tmp_path / "ours", "converted", "bfloat16", 2),
    ):
        info = read_info(path)
        assert (info.kind, info.dtype, info.num_params, info.num_bytes) == (kind, dtype, num_params, num_params * item)
        assert info.kv_bytes_per_token == 2 * K * h * L * item
        assert main(["info", str(path)]) == 0
        shown = capsys.readouterr().out
        tokens = 10**9 // (2 * K * h * L * item)
        for part in (f"qwen2: {L} layers", f"{num_params:,}", dtype, "640 tokens", f"{tokens:,} tokens per GB"):
            assert part in shown
    leaves = jax.tree.leaves(load_checkpoint(tmp_path / "ours").params)
    assert sum(leaf.size for leaf in leaves) == num_params
    assert {str(leaf.dtype) for leaf in leaves} == {"bfloat16"}


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


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match="is not a file"):
        convert_gguf(tmp_path / "m.gguf", tmp_path / "x", note=quiet)


def test_a_reader_that_goes_away_is_no_error(tmp_path, hf_folder):
    command = f"{sys.executable} -m checkpoints_convert info {hf_folder} | true; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert done.stderr == ""
    assert done.returncode in (0, 141)  # 0 where the pipe was still open


def test_neither_kind_takes_the_other(tmp_path, hf_folder):
    with pytest.raises(CheckpointError, match=r"cannot be read as GGUF|not a GGUF file"):
        convert_gguf(hf_folder / "model.safetensors", tmp_path / "x", note=quiet)
    gguf_file = write_gguf(tmp_path / "m.gguf", "qwen2", hf_tensors(hf_config("qwen2")))
    with pytest.raises(CheckpointError, match="is not a folder"):
        convert_hf(gguf_file, tmp_path / "x", note=quiet)
    with pytest.raises(CheckpointError, match="dtype must be one of float32, bfloat16, got 'int8'"):
        load_checkpoint(gguf_file, dtype="int8")


def test_loading_needs_no_torch(hf_folder):
    code = (
        "import sys\n"
        "sys.modules['torch'] = None\n"  # importing it now fails
        "import checkpoints_convert\n"
        "print(checkpoints_convert.load_checkpoint(sys.argv[1]).tokenizer('the')['input_ids'])\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(hf_folder)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("[")
