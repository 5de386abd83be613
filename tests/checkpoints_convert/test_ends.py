"""The ids that end a text, given in place of those that a model names: in every kind of model, and kept by conversions."""

import re

import numpy as np
import pytest
from support.checkpoints.gguf_files import write_gguf
from support.checkpoints.hf_folders import V, hf_config, hf_tensors, quiet, write_hf

from checkpoints_convert import (
    CheckpointError,
    compare,
    convert_gguf,
    convert_hf,
    load_checkpoint,
    open_checkpoint,
    read_info,
)
from checkpoints_convert.cli import main

NAMED = "--eos-token-id (eos_token_ids=[...] in Python)"


@pytest.fixture
def models(tmp_path, converted):
    """A model of each kind: one that names an end, and one that names none."""
    config = hf_config("qwen2")
    tensors = hf_tensors(config)
    return {
        "converted": converted,
        "hf": converted.with_name("hf"),
        "silent hf": write_hf(tmp_path / "silent", config | {"eos_token_id": None}, tensors),
        "gguf": write_gguf(tmp_path / "m.gguf", "qwen2", tensors),
        "silent gguf": write_gguf(tmp_path / "silent.gguf", "qwen2", tensors, without=["eos_token_id"]),
    }


def test_given_ids_take_the_place_of_the_models_own(models):
    own = {"converted": (7,), "hf": (7,), "gguf": (0,)}
    for name, path in models.items():
        assert open_checkpoint(path, eos_token_ids=[9, 4, 9]).eos_token_ids == (9, 4)
        assert read_info(path, eos_token_ids=(5,)).eos_token_ids == (5,)
        if name in own:
            assert open_checkpoint(path).eos_token_ids == read_info(path).eos_token_ids == own[name]
        else:
            for read in (open_checkpoint, read_info):
                with pytest.raises(CheckpointError, match=rf"{re.escape(NAMED)}\.$"):
                    read(path)
    assert load_checkpoint(models["gguf"], eos_token_ids=np.asarray([3])).eos_token_ids == (3,)


def test_ids_that_the_model_has_wrong_are_not_read(tmp_path):
    config = hf_config("llama", eos_token_id=V)
    folder = write_hf(tmp_path / "hf", config, hf_tensors(config))
    with pytest.raises(CheckpointError, match="eos_token_id 293 is no id below 293"):
        open_checkpoint(folder)
    assert open_checkpoint(folder, eos_token_ids=[1]).eos_token_ids == (1,)


@pytest.mark.parametrize(
    ("ids", "says"),
    [
        ([V], f"{NAMED} 293 is no id below 293."),
        ([1, -1], f"{NAMED} -1 is no id below 293."),
        ([True], f"{NAMED} True is no id below 293."),
        (["1"], f"{NAMED} '1' is no id below 293."),
        ([[1]], f"{NAMED} [1] is no id below 293."),
        ([], f"{NAMED} must give at least one id in a list, got []; or leave it out."),
        (7, f"{NAMED} must give at least one id in a list, got 7; or leave it out."),
        ("7", f"{NAMED} must give at least one id in a list, got '7'; or leave it out."),
    ],
)
def test_bad_ids_are_refused_for_every_kind(models, ids, says):
    for path in models.values():
        with pytest.raises(CheckpointError) as error:
            open_checkpoint(path, eos_token_ids=ids)
        assert str(error.value) == says


def test_conversions_keep_them(models, tmp_path, capsys):
    convert_hf(models["silent hf"], tmp_path / "a", eos_token_ids=[2, 5], note=quiet)
    convert_gguf(models["silent gguf"], tmp_path / "b", eos_token_ids=[3], note=quiet)
    flags = ["--eos-token-id", "8", "--eos-token-id", "6"]
    assert main(["hf", str(models["hf"]), str(tmp_path / "c"), *flags]) == 0
    assert main(["gguf", str(models["gguf"]), str(tmp_path / "d"), *flags]) == 0
    ids = {name: load_checkpoint(tmp_path / name).eos_token_ids for name in "abcd"}
    assert ids == {"a": (2, 5), "b": (3,), "c": (8, 6), "d": (8, 6)}
    capsys.readouterr()
    assert main(["info", str(models["silent gguf"]), *flags]) == 0
    assert re.search(r"^end-of-text ids: +8, 6$", capsys.readouterr().out, re.MULTILINE)
    assert main(["gguf", str(models["silent gguf"]), str(tmp_path / "e")]) == 2
    assert capsys.readouterr().err.endswith(f"give its id with {NAMED}.\n")
    assert not (tmp_path / "e").exists()


def test_the_comparison_with_torch_takes_them(models, monkeypatch):
    seen = []
    monkeypatch.setattr(
        compare,
        "compare",
        lambda *args: (
            seen.append(args) or compare.Difference(num_tokens=1, max_delta=0.0, num_argmax_differs=0, scale=1.0)
        ),
    )
    monkeypatch.setattr("sys.argv", ["compare", "m", "--eos-token-id", "4"])
    assert compare.main() == 0
    assert seen == [("m", [4])]
