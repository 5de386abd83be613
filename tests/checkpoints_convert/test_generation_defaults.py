"""How a model asks to be decoded: read of every kind of checkpoint, kept by a conversion, and never in the way of loading."""

import json
import math

import pytest
from support.checkpoints.gguf_files import write_gguf
from support.checkpoints.hf_folders import hf_config, hf_tensors, quiet, write_hf

from checkpoints_convert import CheckpointError, convert_gguf, convert_hf, open_checkpoint

ASKED = {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.05}


@pytest.fixture
def folder(tmp_path):
    config = hf_config("llama")
    return write_hf(tmp_path / "hf", config, hf_tensors(config))


def defaults_of(folder, generation):
    (folder / "generation_config.json").write_text(json.dumps(generation))
    return open_checkpoint(folder).generation_defaults


def test_a_folder_says_how_it_asks_to_be_decoded(folder):
    of_limits = {"max_length": 4096, "max_new_tokens": 2048, "eos_token_id": [7], "transformers_version": "5.0.0"}
    assert defaults_of(folder, ASKED | of_limits) == ASKED
    assert defaults_of(folder, {"temperature": None, "top_p": "high", "bad_words_ids": [[5]]}) == {
        "bad_words_ids": [[5]]
    }
    assert defaults_of(folder, {}) == {}
    no_report_holds = {"repetition_penalty": math.nan, "top_p": math.inf, "suppress_tokens": [[-math.inf]]}
    assert defaults_of(folder, no_report_holds | {"sequence_bias": {"\ud83d": 1.0}, "top_k": 9}) == {"top_k": 9}
    (folder / "generation_config.json").write_text("[1]")
    with pytest.raises(CheckpointError, match="must hold a JSON object"):
        open_checkpoint(folder)


def test_without_a_generation_config_the_config_says_it(tmp_path, folder):
    assert open_checkpoint(folder).generation_defaults == {}
    (folder / "config.json").write_text(json.dumps(hf_config("llama", repetition_penalty=1.3, torch_dtype="float32")))
    assert open_checkpoint(folder).generation_defaults == {"repetition_penalty": 1.3}
    assert defaults_of(folder, {"eos_token_id": 7}) == {}


def test_a_conversion_keeps_it(tmp_path, folder):
    defaults_of(folder, ASKED)
    convert_hf(folder, tmp_path / "ours", note=quiet)
    opened = open_checkpoint(tmp_path / "ours")
    assert opened.generation_defaults == ASKED
    assert opened.load().generation_defaults == ASKED
    path = tmp_path / "ours" / "jax_probe_mtp.json"
    metadata = json.loads(path.read_text())
    assert metadata["format_version"] == 3
    del metadata["generation_defaults"]  # a folder of an earlier version
    path.write_text(json.dumps(metadata))
    assert open_checkpoint(tmp_path / "ours").load().generation_defaults == {}
    path.write_text(json.dumps(metadata | {"generation_defaults": {"top_p": math.nan, "top_k": 9}}))
    assert open_checkpoint(tmp_path / "ours").generation_defaults == {"top_k": 9}
    path.write_text(json.dumps(metadata | {"generation_defaults": [1]}))
    with pytest.raises(CheckpointError, match="'generation_defaults' must be an object"):
        open_checkpoint(tmp_path / "ours")


def test_a_gguf_file_says_it_in_its_own_names(tmp_path):
    sampling = {"temp": 0.6, "top_k": 20, "top_p": 0.9, "penalty_repeat": 1.1, "min_p": math.nan, "sequence": "kt"}
    fields = {f"general.sampling.{name}": value for name, value in sampling.items()}
    path = write_gguf(tmp_path / "m.gguf", "llama", hf_tensors(hf_config("llama")), fields=fields)
    asked = {"temperature": 0.6, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.1}
    assert open_checkpoint(path).generation_defaults == asked
    convert_gguf(path, tmp_path / "ours", note=quiet)
    assert open_checkpoint(tmp_path / "ours").generation_defaults == asked
    plain = write_gguf(tmp_path / "plain.gguf", "llama", hf_tensors(hf_config("llama")))
    assert open_checkpoint(plain).generation_defaults == {}
