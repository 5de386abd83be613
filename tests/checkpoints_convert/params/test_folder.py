"""The converted folder: complete or absent, and checked when it is read."""

import json
import shutil
import subprocess
import sys

import pytest
from support.checkpoints.hf_folders import F, L, h, quiet

import checkpoints_convert.convert
from checkpoints_convert import CheckpointError, convert_hf, load_checkpoint, read_info
from checkpoints_convert.params.folder import written_whole


def test_a_converted_folder_holds_what_it_needs(tmp_path, hf_folder):
    (hf_folder / "chat_template.jinja").write_text("{{ messages[0]['content'] }}!")
    convert_hf(hf_folder, tmp_path / "sub" / "ours", note=quiet)
    folder = tmp_path / "sub" / "ours"
    names = {path.name for path in folder.iterdir()}
    assert names >= {"jax_probe_mtp.json", "params", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"}
    metadata = json.loads((folder / "jax_probe_mtp.json").read_text())
    assert metadata["format_version"] == 3
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


def convert_while(destination, meanwhile):
    """Writes a folder, and before it gets its name lets something else happen."""
    with written_whole(destination) as folder:
        (folder / "jax_probe_mtp.json").write_text("{}")
        meanwhile()


def test_of_two_conversions_at_once_the_first_to_finish_stays(tmp_path, hf_folder):
    def convert():
        convert_hf(hf_folder, tmp_path / "ours", note=quiet)

    says = r"ours holds a converted model; use it, or choose another destination\.\Z"
    with pytest.raises(CheckpointError, match=says):
        convert_while(tmp_path / "ours", convert)
    assert {path.name for path in tmp_path.iterdir()} == {"hf", "ours"}
    assert load_checkpoint(tmp_path / "ours").eos_token_ids == (7,)
    with pytest.raises(CheckpointError, match=says):
        convert()


@pytest.mark.parametrize("name", ["ours", "ours/x"])
def test_what_took_the_destination_meanwhile_is_no_conversion(tmp_path, name):
    def take():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("mine")

    with pytest.raises(CheckpointError, match=r"ours exists; remove it or choose another destination\.\Z"):
        convert_while(tmp_path / "ours", take)
    assert [path.name for path in tmp_path.iterdir()] == ["ours"]
    assert (tmp_path / name).read_text() == "mine"


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
        "family must be one of llama, qwen2, qwen3, smollm3, got \\[\\]": {"config": good["config"] | {"family": []}},
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


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"num_layers": 10**12}, "1000000000000 layers are above 1024"),
        ({"vocab_size": 10**400}, "'vocab_size' must be a whole number within 64 bits"),
        ({"rope_theta": float("inf")}, "'rope_theta' must be finite"),
        ({"norm_eps": 10**400}, "'norm_eps' must be finite"),
        ({"rope_divisors": [10**400] * 4}, "too large"),
        ({"is_sharded": True}, "is_sharded must be false"),
    ],
)
def test_a_converted_folder_s_configuration_is_checked(converted, change, message):
    path = converted / "jax_probe_mtp.json"
    values = json.loads(path.read_text())
    values["config"] |= change
    path.write_text(json.dumps(values))
    for read in (load_checkpoint, read_info):
        with pytest.raises(CheckpointError, match=message):
            read(converted)


def test_a_plain_model_is_written_as_earlier_versions_read_it(tmp_path, hf_folder):
    """Fields that came later are there only where they say something; what a device is, a folder never says."""
    convert_hf(hf_folder, tmp_path / "ours", note=quiet)
    path = tmp_path / "ours" / "jax_probe_mtp.json"
    good = json.loads(path.read_text())
    assert {"rope_scale", "no_rope_layers", "has_mailboxes"}.isdisjoint(good["config"])
    path.write_text(json.dumps(good | {"config": good["config"] | {"has_mailboxes": True}}))
    with pytest.raises(CheckpointError, match="has_mailboxes must be false; convert again"):
        load_checkpoint(tmp_path / "ours")
