"""Matrices rounded to eight bits as they are read: from files, from folders, and from folders that hold them so."""

import dataclasses
import json

import jax
import numpy as np
import pytest
from support.checkpoints.gguf_files import write_gguf
from support.checkpoints.hf_folders import D, F, V, hf_config, hf_tensors, quiet, write_hf

import checkpoints_convert.convert
from checkpoints_convert import CheckpointError, convert_gguf, convert_hf, load_checkpoint, read_info
from checkpoints_convert.cli import main
from checkpoints_convert.gguf.model import open_gguf
from checkpoints_convert.params import rounding
from jax_probe_mtp.model.params import Int8, abstract_params, dequantize


def by_hand(weight_OI):
    """Row by row, as a file has them: the largest size is 127 steps."""
    values = [[round(float(x) / (float(max(abs(row))) / 127)) for x in row] for row in weight_OI.astype(np.float64)]
    return np.asarray(values), np.abs(weight_OI).max(axis=1) / 127


@pytest.mark.parametrize("is_tied", [True, False])
def test_a_file_s_matrices_are_rounded_by_column(tmp_path, monkeypatch, is_tied):
    monkeypatch.setattr(rounding, "PIECE_NUMBERS", 5 * D)  # some columns at a time, and fewer at the end
    config = hf_config("qwen3", tie_word_embeddings=is_tied)
    tensors = hf_tensors(config)
    folder = write_hf(tmp_path / "hf", config, tensors)
    checkpoint, plain = load_checkpoint(folder, weights="int8"), load_checkpoint(folder)
    assert checkpoint.number_format == "float32, int8 weights"
    wanted = abstract_params(checkpoint.config, weights="int8")
    assert jax.tree.structure(checkpoint.params) == jax.tree.structure(wanted)
    layer = checkpoint.params["layers"][2]
    names = {"gate": "gate_proj", "up": "up_proj", "down": "down_proj"}
    files = [(layer[ours], f"model.layers.2.mlp.{theirs}.weight") for ours, theirs in names.items()]
    files.append((checkpoint.params["head"], "model.embed_tokens.weight" if is_tied else "lm_head.weight"))
    for weight, name in files:
        value_OI, scale_O = by_hand(tensors[name])
        np.testing.assert_allclose(weight.scale, scale_O, rtol=1e-6)
        assert np.mean(np.asarray(weight.value) != value_OI) < 1e-3  # a half, rounded in another precision
        assert np.abs(np.asarray(weight.value, int) - value_OI).max() <= 1
    for name in ("qkv", "out"):  # whose heads lie otherwise in files
        error_OI = np.abs(np.asarray(dequantize(layer[name])) - np.asarray(plain.params["layers"][2][name]).T)
        assert (error_OI <= 0.5001 * np.asarray(layer[name].scale)[:, None]).all()
        assert error_OI.max() > 0
    for name in ("embed", "final_norm"):
        np.testing.assert_array_equal(checkpoint.params[name], plain.params[name])


def assert_same(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for (path, x), (_, y) in zip(jax.tree.leaves_with_path(a), jax.tree.leaves_with_path(b), strict=True):
        np.testing.assert_array_equal(x, y, err_msg=jax.tree_util.keystr(path))
        assert x.dtype == y.dtype


@pytest.mark.parametrize("is_tied", [True, False])
def test_file_and_folders_give_the_same_numbers(tmp_path, is_tied):
    config = hf_config("qwen2", tie_word_embeddings=is_tied)
    folder = write_hf(tmp_path / "hf", config, hf_tensors(config))
    convert_hf(folder, tmp_path / "plain", note=quiet)
    notes = []
    convert_hf(folder, tmp_path / "int8", weights="int8", note=notes.append)
    assert notes[1].endswith("parameters as float32, int8 weights")
    expected = load_checkpoint(folder, weights="int8").params
    assert_same(load_checkpoint(tmp_path / "plain", weights="int8").params, expected)
    assert_same(load_checkpoint(tmp_path / "int8").params, expected)
    assert_same(load_checkpoint(tmp_path / "int8", weights="int8").params, expected)
    about = json.loads((tmp_path / "int8" / "jax_probe_mtp.json").read_text())
    assert (about["format_version"], about["dtype"], about["weights"]) == (3, "float32", "int8")
    info = read_info(tmp_path / "int8")
    assert "dtype:           float32, int8 weights" in str(info)
    assert info.num_bytes == sum(leaf.nbytes for leaf in jax.tree.leaves(expected))
    assert info.num_params == read_info(folder).num_params


def test_values_come_from_the_file_s_numbers_whatever_the_dtype(tmp_path):
    config = hf_config("qwen2")
    folder = write_hf(tmp_path / "hf", config, hf_tensors(config))
    wide, half = (load_checkpoint(folder, dtype=dtype, weights="int8").params for dtype in ("float32", "bfloat16"))
    assert half["embed"].dtype == "bfloat16"
    assert_same(half["layers"][1]["down"], wide["layers"][1]["down"])


@pytest.mark.parametrize(
    ("types", "weights", "is_said"), [("Q8_0", "int8", True), ("Q8_0", None, False), ("F32", "int8", False)]
)
def test_a_gguf_of_eight_bits_is_rounded_again_and_that_is_said(tmp_path, monkeypatch, types, weights, is_said):
    file = write_gguf(tmp_path / "m.gguf", "llama", hf_tensors(hf_config("llama")))

    def opened(path, eos_token_ids):
        model = open_gguf(path, eos_token_ids)
        return dataclasses.replace(model, description=model.description | {"types": ["F32", types]})

    monkeypatch.setattr(checkpoints_convert.convert, "open_gguf", opened)
    notes = []
    convert_gguf(file, tmp_path / "ours", weights=weights, note=notes.append)
    assert any("groups of 32 of Q8_0 are rounded again" in note for note in notes) is is_said


@pytest.fixture
def rounded(tmp_path, hf_folder):
    convert_hf(hf_folder, tmp_path / "rounded", weights="int8", note=quiet)
    return tmp_path / "rounded"


@pytest.mark.parametrize("wrong", [0, -0.5, np.inf, np.nan])
def test_a_scale_that_is_no_number_above_0_is_refused(rounded, wrong):
    chunk = rounded / "params" / "layers.1.down.scale" / "0"
    scale_O = np.frombuffer(chunk.read_bytes(), "<f4").copy()
    assert scale_O.shape == (D,)
    scale_O[3] = wrong
    chunk.write_bytes(scale_O.tobytes())
    with pytest.raises(
        CheckpointError, match=r"\['layers'\]\[1\]\['down'\] has scales .* such as .*: convert again"
    ) as error:
        load_checkpoint(rounded)
    assert "\n" not in str(error.value)


def test_weights_that_are_not_finite_cannot_be_rounded(tmp_path):
    config = hf_config("qwen2")
    tensors = hf_tensors(config)
    tensors["model.layers.1.mlp.up_proj.weight"][2, 3] = np.inf
    with pytest.raises(CheckpointError, match=r"\['layers'\]\[1\]\['up'\] has scales .* its weights are not finite"):
        load_checkpoint(write_hf(tmp_path / "hf", config, tensors), weights="int8")


def test_what_a_folder_does_not_hold_is_refused(rounded, capsys):
    says = "holds int8 weights for float32, not for bfloat16; leave the dtype out, or convert"
    with pytest.raises(CheckpointError, match=says):
        load_checkpoint(rounded, dtype="bfloat16")
    with pytest.raises(CheckpointError, match="weights must be int8 or left out, got 'int4'"):
        load_checkpoint(rounded, weights="int4")
    path = rounded / "jax_probe_mtp.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"weights": "int4"}))
    with pytest.raises(CheckpointError, match="weights 'int4' are not known, only int8; convert again"):
        load_checkpoint(rounded)
    assert main(["info", str(rounded)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_an_array_of_another_type_is_refused(rounded):
    notes = rounded / "params" / "layers.1.down.value" / ".zarray"
    notes.write_text(json.dumps(json.loads(notes.read_text()) | {"dtype": "|u1"}))
    with pytest.raises(CheckpointError, match=r"\['down'\]\.value cannot be restored \(.*one plain chunk of \|i1"):
        load_checkpoint(rounded)


def test_the_command_rounds(tmp_path, hf_folder):
    assert main(["hf", str(hf_folder), str(tmp_path / "a"), "--weights", "int8"]) == 0
    weight = load_checkpoint(tmp_path / "a").params["layers"][0]["gate"]
    assert isinstance(weight, Int8)
    assert weight.value.shape == (F, D)
    assert load_checkpoint(tmp_path / "a").params["head"].value.shape == (V, D)
