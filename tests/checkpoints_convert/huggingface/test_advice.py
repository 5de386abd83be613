"""Folders that are not quite a model's: each is told what it is, and what helps."""

import json

import pytest
from support.checkpoints.hf_folders import hf_config, hf_tensors, write_hf

from checkpoints_convert import CheckpointError, load_checkpoint


@pytest.mark.parametrize(
    ("prefix", "advice"),
    [
        ("module.", "save the model that DataParallel holds, its .module"),
        ("_orig_mod.", "save the model that torch.compile was given"),
        ("base_model.model.", "merge the adapter into it with peft's merge_and_unload()"),
    ],
)
def test_a_wrapper_s_prefix_is_explained(tmp_path, prefix, advice):
    config = hf_config("llama")
    tensors = {prefix + name: tensor for name, tensor in hf_tensors(config).items()}
    with pytest.raises(CheckpointError, match=r"\A[^\n]*\Z") as error:
        load_checkpoint(write_hf(tmp_path / "hf", config, tensors))
    assert f"is missing; its tensors' names begin with {prefix!r}: {advice}" in str(error.value)


def test_a_missing_head_may_be_the_embedding(tmp_path):
    config = hf_config("llama")
    tensors = hf_tensors(config)
    del tensors["lm_head.weight"]
    with pytest.raises(
        CheckpointError, match='is missing; if its head is the embedding, add "tie_word_embeddings": true'
    ):
        load_checkpoint(write_hf(tmp_path / "hf", config, tensors))
    del tensors["model.norm.weight"]
    with pytest.raises(CheckpointError, match="is missing; give the files and the config of one model"):
        load_checkpoint(write_hf(tmp_path / "less", config, tensors))


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (
            {"adapter_config.json": '{"base_model_name_or_path": "org/base"}', "adapter_model.safetensors": ""},
            "holds an adapter of 'org/base', not a model; merge it with peft's merge_and_unload(), and save that.",
        ),
        ({"a.Q8_0.gguf": "", "b.gguf": ""}, "is no Hugging Face folder, but holds 'a.Q8_0.gguf'; give that file."),
        ({"README.md": ""}, "config.json is missing; a model folder must hold it."),
    ],
)
def test_a_folder_of_something_else_is_told_so(tmp_path, files, says):
    for name, text in files.items():
        (tmp_path / name).write_text(text)
    with pytest.raises(CheckpointError, match=r"\A[^\n]*\Z") as error:
        load_checkpoint(tmp_path)
    assert str(error.value).startswith(str(tmp_path))
    assert str(error.value).endswith(says)


def test_a_part_of_a_gguf_is_told_so(tmp_path):
    (tmp_path / "m-00002-of-00003.gguf").write_bytes(b"GGUF")
    with pytest.raises(
        CheckpointError, match=r"is part 2 of 3; join them with llama\.cpp's llama-gguf-split --merge\."
    ):
        load_checkpoint(tmp_path / "m-00002-of-00003.gguf")


def test_many_added_tokens_are_no_reason_to_refuse(tmp_path):
    """As of a model with 28,683 of them: 5 MB and 200,000 values, which are read; a hundred times as many are not."""
    config = hf_config("llama")
    folder = write_hf(tmp_path / "hf", config, hf_tensors(config))
    settings = json.loads((folder / "tokenizer_config.json").read_text())
    flags = dict.fromkeys(("lstrip", "normalized", "rstrip", "single_word", "special"), False)
    decoder = {str(300 + i): {"content": f"<|unused token number {i}|>" + "x" * 40, **flags} for i in range(28_683)}
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"more": decoder}))
    assert (folder / "tokenizer_config.json").stat().st_size > 5_000_000
    assert load_checkpoint(folder).tokenizer is not None
    (folder / "tokenizer_config.json").write_text(json.dumps(settings | {"more": [0] * (1 << 20)}))
    with pytest.raises(CheckpointError, match=r"more than 524288 values, too many for what it is\."):
        load_checkpoint(folder)
