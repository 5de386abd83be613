"""The fields of a GGUF file: what is read, what is refused."""

import pytest
from support.checkpoints.gguf_files import write_gguf
from support.checkpoints.hf_folders import G, V, hf_config, hf_tensors

from checkpoints_convert import CheckpointError
from checkpoints_convert.gguf.model import open_gguf


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"llama.expert_count": 8}, r"llama\.expert_count = 8 is not supported"),
        ({"llama.rope.scaling.type": "yarn"}, r"llama\.rope\.scaling\.type = yarn is not supported"),
        ({"llama.rope.scaling.type": "linear"}, r"llama\.rope\.scaling\.type = linear"),
        ({"llama.attention.sliding_window": 4096}, r"sliding_window = 4096"),
        ({"llama.attn_logit_softcapping": 50.0}, r"attn_logit_softcapping = 50"),
        ({"llama.something.new": 1}, r"llama\.something\.new = 1 is not supported"),
        ({"general.type": "adapter"}, "general.type is 'adapter'"),
        ({"split.count": 2}, "one part of 2"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(tmp_path, fields, message):
    path = write_gguf(tmp_path / "m.gguf", "llama", hf_tensors(hf_config("llama")), fields=fields)
    with pytest.raises(CheckpointError, match=message):
        open_gguf(path)


def test_neutral_fields_are_accepted(tmp_path):
    fields = {"llama.expert_count": 0, "llama.rope.scaling.type": "none", "llama.vocab_size": V}
    model = open_gguf(write_gguf(tmp_path / "m.gguf", "llama", hf_tensors(hf_config("llama")), fields=fields))
    assert (model.config.norm_eps, model.config.queries_per_kv) == (1e-5, G)


def test_partial_rope_and_missing_fields_are_named(tmp_path):
    tensors = hf_tensors(hf_config("llama"))
    path = write_gguf(
        tmp_path / "a.gguf",
        "llama",
        tensors,
        without=["rope.dimension_count"],
        fields={"llama.rope.dimension_count": 4},
    )
    with pytest.raises(CheckpointError, match=r"rope\.dimension_count = 4 must equal the head size 8"):
        open_gguf(path)
    path = write_gguf(tmp_path / "b.gguf", "llama", tensors, without=["block_count"])
    with pytest.raises(CheckpointError, match="has no 'block_count'"):
        open_gguf(path)
    path = write_gguf(tmp_path / "c.gguf", "gemma2", {})
    with pytest.raises(CheckpointError, match="'gemma2' is not supported; llama, qwen2, qwen3 are"):
        open_gguf(path)
