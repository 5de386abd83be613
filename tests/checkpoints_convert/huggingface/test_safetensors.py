"""Tensors of a Hugging Face folder: indexes that mislead, files that are damaged."""

import json
import os
import re

import numpy as np
import pytest
import safetensors
from safetensors.numpy import save_file
from support.checkpoints.hf_folders import D, L, V, hf_config, hf_tensors, sharded, write_hf

from checkpoints_convert import CheckpointError, load_checkpoint
from checkpoints_convert.huggingface.model import open_hf
from checkpoints_convert.mapping.fields import MAX_BYTES


def test_weights_of_other_types_are_named(tmp_path):
    config = hf_config("llama")
    tensors = hf_tensors(config) | {"model.norm.weight": np.ones(D, np.int8)}
    with pytest.raises(CheckpointError, match=r"'model\.norm\.weight' is I8, which is not supported; F32, F16, BF16"):
        load_checkpoint(write_hf(tmp_path / "hf", config, tensors))


def test_a_tensor_in_two_shards_is_named(tmp_path):
    folder, _ = sharded(tmp_path)
    config = hf_config("llama")
    tensors = hf_tensors(config)
    names = list(tensors)
    part = {name: tensors[name] for name in [*names[1::3], names[0]]}
    save_file(part, folder / "model-00002-of-00003.safetensors")
    with pytest.raises(CheckpointError, match=re.escape(f"'{names[0]}' is in both")):
        open_hf(folder)


@pytest.mark.parametrize(
    ("shard", "message"),
    [
        ("/etc/model.safetensors", "outside its folder"),
        ("../hf2/model.safetensors", "outside its folder"),
        ("a/../../model.safetensors", "outside its folder"),
        ("link.safetensors", "a link to .*outside its folder"),
        ("absent.safetensors", "'absent.safetensors', but .* is missing"),
        ("pytorch_model.bin", "only .safetensors files"),
        (5, "must name a file, got 5"),
    ],
)
def test_an_index_cannot_name_files_elsewhere(tmp_path, shard, message):
    folder, index = sharded(tmp_path)
    outside = tmp_path / "outside.safetensors"
    save_file({"model.norm.weight": np.ones(D, np.float32)}, outside)
    os.symlink(outside, folder / "link.safetensors")
    values = json.loads(index.read_text())
    values["weight_map"]["model.norm.weight"] = shard
    index.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=message):
        open_hf(folder)


def test_links_of_a_hub_cache_are_followed(tmp_path):
    folder, _ = sharded(tmp_path)
    repository = tmp_path / "models--org--name"
    snapshot = repository / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (repository / "blobs").mkdir()
    for i, path in enumerate(sorted(folder.iterdir())):
        path.rename(repository / "blobs" / str(i))
        os.symlink(f"../../blobs/{i}", snapshot / path.name)
    assert load_checkpoint(snapshot).params["embed"].shape == (V, D)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "not readable JSON"),
        ("[]", "must hold a JSON object"),
        ('{"weight_map": {}}', "no 'weight_map'"),
        ('{"weight_map": {"a": "x.safetensors", "a": "y.safetensors"}}', "'a' twice"),
    ],
)
def test_a_malformed_index_is_named(tmp_path, text, message):
    folder, index = sharded(tmp_path)
    index.write_text(text)
    with pytest.raises(CheckpointError, match=message):
        open_hf(folder)


def test_index_and_shards_must_agree(tmp_path):
    folder, index = sharded(tmp_path)
    good = json.loads(index.read_text())
    shards = sorted(set(good["weight_map"].values()))
    moved = good["weight_map"] | {"model.norm.weight": shards[0]}
    absent = good["weight_map"] | {"ghost": shards[0]}
    dropped = {name: shard for name, shard in good["weight_map"].items() if name != "model.norm.weight"}
    assert good["weight_map"]["model.norm.weight"] != shards[0]
    for weight_map, message in ((moved, "but it is in"), (absent, "'ghost'.*does not hold"), (dropped, "is not in")):
        index.write_text(json.dumps({"weight_map": weight_map}))
        with pytest.raises(CheckpointError, match=message):
            open_hf(folder)


def test_damaged_safetensors_never_end_in_another_error(tmp_path):
    config = hf_config("llama")
    folder = write_hf(tmp_path / "hf", config, hf_tensors(config))
    path = folder / "model.safetensors"
    whole = path.read_bytes()
    for size in (0, 4, 8, 100, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError, match=r"model\.safetensors is damaged or cut short"):
            open_hf(folder)
    path.write_bytes((2**62).to_bytes(8, "little") + whole[8:])
    with pytest.raises(CheckpointError, match="damaged or cut short"):
        open_hf(folder)


def test_pickled_weights_are_refused(tmp_path):
    config = hf_config("llama")
    folder = write_hf(tmp_path / "hf", config, hf_tensors(config))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(CheckpointError, match="pickled"):
        open_hf(folder)
    with pytest.raises(CheckpointError, match="pickled"):
        load_checkpoint(folder / "pytorch_model.bin")


@pytest.mark.parametrize(
    ("shard", "message"),
    [("y" * 300 + ".safetensors", "cannot be a file .*too long"), ("\ud800.safetensors", "cannot be a file .*encode")],
)
def test_a_shard_s_name_may_be_no_file_s(tmp_path, shard, message):
    folder, index = sharded(tmp_path)
    values = json.loads(index.read_text())
    values["weight_map"]["model.norm.weight"] = shard
    index.write_text(json.dumps(values))
    with pytest.raises(CheckpointError, match=message):
        open_hf(folder)


def test_a_header_of_many_tensors_is_refused_before_it_is_read(tmp_path, monkeypatch):
    config = hf_config("llama")
    folder = write_hf(tmp_path / "hf", config, hf_tensors(config))
    many = {f"t{i}": {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for i in range(20000)}
    raw = json.dumps(many).encode()
    assert len(raw) > MAX_BYTES
    (folder / "model.safetensors").write_bytes(len(raw).to_bytes(8, "little") + raw)
    monkeypatch.setattr(safetensors, "safe_open", None)
    with pytest.raises(CheckpointError, match=f"a header of {len(raw)} bytes; more than {MAX_BYTES}"):
        open_hf(folder)


def test_a_tensor_that_the_index_does_not_know_ends_the_reading(tmp_path):
    folder, _ = sharded(tmp_path)
    save_file({f"t{i}": np.zeros(1, np.float32) for i in range(1000)}, folder / "model-00001-of-00003.safetensors")
    with pytest.raises(CheckpointError, match=r"00001-of-00003\.safetensors: tensor 't\d+' is not in"):
        open_hf(folder)


def test_a_file_of_many_tensors_is_opened_a_few_times(tmp_path, monkeypatch):
    opened = []

    def counted(path, *args, really=safetensors.safe_open):
        opened.append(path)
        return really(path, *args)

    config = hf_config("llama")
    folder = write_hf(tmp_path / "hf", config, hf_tensors(config))
    monkeypatch.setattr(safetensors, "safe_open", counted)
    monkeypatch.setattr("checkpoints_convert.huggingface.safetensors.MAX_MAPPED", 100_000)
    load_checkpoint(folder)
    size = (folder / "model.safetensors").stat().st_size
    assert size // 200_000 <= len(opened) - 1 <= 1 + size // 100_000  # each time a header of 9 L tensors is read
    assert len(opened) < L


@pytest.mark.parametrize("is_in_index", [False, True])
def test_a_buffer_may_be_in_the_index_alone_or_in_a_shard_alone(tmp_path, is_in_index):
    """It is computed, not read: only weights have to be where the index says."""
    folder, index = sharded(tmp_path)
    buffer = "model.layers.0.self_attn.rotary_emb.inv_freq"
    values = json.loads(index.read_text())
    shard = folder / values["weight_map"]["model.norm.weight"]
    if is_in_index:
        values["weight_map"][buffer] = shard.name
        index.write_text(json.dumps(values))
    else:
        with safetensors.safe_open(shard, "np") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
        save_file(tensors | {buffer: np.ones(4, np.float32)}, shard)
    assert load_checkpoint(folder).params["embed"].shape == (V, D)
