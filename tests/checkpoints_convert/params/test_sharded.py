"""Weights loaded straight into their parts on several devices: the same numbers, each read once.

The devices are eight that XLA makes of one CPU. Their number is fixed when JAX starts, so all that needs them is done by
this file as a program of its own: `python test_sharded.py FOLDER`, in whose `results.json` it says what it found.
"""

import dataclasses
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from safetensors.numpy import save_file
from support.checkpoints.counted_models import write_models
from support.checkpoints.gguf_files import write_gguf
from support.checkpoints.hf_folders import L, V, hf_config, hf_tensors, write_hf
from support.devices import cpu_devices

from checkpoints_convert import convert_hf, load_checkpoint
from checkpoints_convert.params import fill
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.mesh import make_mesh
from jax_probe_mtp.model.params import abstract_params

MESHES = [(2, 2), (1, 4), (1, 8), (2, 4)]  # data, tensor
LLAMA = ModelConfig(
    family="llama",
    vocab_size=61,
    width=32,
    num_layers=2,
    num_heads=24,
    num_kv_heads=8,
    head_dim=4,
    mlp_width=160,
    context_length=64,
    norm_eps=1e-5,
    rope_theta=1e4,
)
MODELS = {
    "llama": LLAMA,
    "qwen2": dataclasses.replace(LLAMA, family="qwen2", has_qkv_bias=True, vocab_size=9),  # eight devices: 3 with none
    "qwen3": dataclasses.replace(LLAMA, family="qwen3", has_qk_norm=True, is_tied=True, vocab_size=64),
}
MOST_NUMBERS = 500  # of a tensor, read at once
SECONDS = 900  # more is an error, on a slow and busy machine too


# What is done where there are eight devices.


def wrong_leaves(params, whole):
    """Lists the leaves, by name, that are not the whole ones with zeros behind, all together or on some device."""
    wrong = []
    for (path, leaf), (_, expected) in zip(
        jax.tree.leaves_with_path(params), jax.tree.leaves_with_path(whole), strict=True
    ):
        expected = np.asarray(expected)
        expected = np.pad(expected, [(0, n - m) for n, m in zip(leaf.shape, expected.shape, strict=True)])
        parts = [np.array_equal(shard.data, expected[shard.index]) for shard in leaf.addressable_shards]
        if leaf.dtype != expected.dtype or not np.array_equal(leaf, expected) or not all(parts):
            wrong.append(jax.tree_util.keystr(path))
    return wrong


def measure_files(folder):
    fill.CHUNK_BYTES = 4 * MOST_NUMBERS
    measured = {}
    for family, cfg in MODELS.items():
        for kind, model in write_models(folder / family, cfg):
            whole = fill.read_params(model, "float32", None, None)
            for data, tensor in MESHES:
                model.source.numbers.clear()
                model.source.in_rows.clear()
                mesh = make_mesh(data, tensor)
                params = fill.read_params(model, "float32", None, mesh)
                layer = params["layers"][1]
                measured[f"{family} {kind} {data} {tensor}"] = {
                    "wrong": wrong_leaves(params, whole),
                    "numbers": sum(model.source.numbers),
                    "most": max(model.source.in_rows),
                    "shapes": {
                        name: leaf.sharding.shard_shape(leaf.shape)
                        for name, leaf in [("embed", params["embed"]), *layer.items()]
                    },
                    "devices": sorted({len(leaf.sharding.device_set) for leaf in jax.tree.leaves(params)}),
                    "of_device_0": numbers_of_device(model, params, mesh.devices[0, 0]),
                }
    return measured


def numbers_of_device(model, params, device):
    """Counts the numbers that are read for the parts of one device, as its own process would."""
    model.source.numbers.clear()
    leaves = fill.read_leaves(model, "float32", None)
    for read, leaf in zip(jax.tree.leaves(leaves), jax.tree.leaves(params), strict=True):
        index = leaf.sharding.devices_indices_map(leaf.shape)[device]
        read(tuple(range(n)[part] for n, part in zip(leaf.shape, index, strict=True)))
    return sum(model.source.numbers)


def measure_checkpoints(folder):
    config = hf_config("qwen2")
    models = {"hf": write_hf(folder / "hf", config, hf_tensors(config)), "ours": folder / "ours"}
    models["gguf"] = write_gguf(folder / "m.gguf", "qwen2", hf_tensors(config))
    convert_hf(models["hf"], models["ours"], note=lambda text: None)
    wrong = {}
    convert_hf(models["hf"], folder / "int8", weights="int8", note=lambda text: None)
    numbers = [(kind, how) for kind in models for how in ({}, {"dtype": "bfloat16"}, {"weights": "int8"})]
    for kind, how in [*numbers, ("int8", {})]:
        path = folder / "int8" if kind == "int8" else models[kind]
        whole = load_checkpoint(path, **how)
        sharded = load_checkpoint(path, **how, mesh=make_mesh(2, 2))
        assert dataclasses.replace(whole, params=None, tokenizer=None) == dataclasses.replace(
            sharded, params=None, tokenizer=None
        )
        dtypes = {str(leaf.dtype) for leaf in jax.tree.leaves(sharded.params)}
        assert dtypes == ({"float32", "int8"} if "int8" in (kind, *how.values()) else {how.get("dtype", "float32")})
        wrong[f"{kind} {how}"] = wrong_leaves(sharded.params, whole.params)
    return {"wrong": wrong, "embed": sharded.params["embed"].shape, "messages": measure_messages(folder, models)}


def measure_messages(folder, models):
    """Tells what is said of each flaw, without a mesh and with one."""

    def message(path, mesh):
        try:
            load_checkpoint(path, mesh=mesh)
        except ValueError as error:
            return [type(error).__name__, str(error)]

    def flawed(name, kind, damage):
        copy = folder / name
        shutil.copytree(models[kind], copy) if models[kind].is_dir() else shutil.copy(models[kind], copy)
        damage(copy)
        return copy

    def change(path, key, value):
        config = json.loads(path.read_text())
        (config.get("config") or config)[key] = value
        path.write_text(json.dumps(config))

    def without_a_tensor(copy):
        tensors = hf_tensors(hf_config("qwen2"))
        del tensors["model.layers.3.mlp.down_proj.weight"]
        save_file(tensors, copy / "model.safetensors")

    def cut_short_once_open(copy):
        index = copy / "params" / "layers.3.down" / "0.0"
        index.write_bytes(index.read_bytes()[:100])

    copies = [
        flawed("tensor", "hf", without_a_tensor),
        flawed("layers", "hf", lambda copy: change(copy / "config.json", "num_hidden_layers", 10**12)),
        flawed("vocabulary", "ours", lambda copy: change(copy / "jax_probe_mtp.json", "vocab_size", V + 1)),
        flawed("layer", "ours", lambda copy: change(copy / "jax_probe_mtp.json", "num_layers", L + 1)),
        flawed("file", "ours", cut_short_once_open),
        flawed("cut.gguf", "gguf", lambda copy: copy.write_bytes(copy.read_bytes()[:-100])),
    ]
    pairs = {copy.name: [message(copy, None), message(copy, make_mesh(2, 2))] for copy in copies}
    return pairs | {"mesh": message(models["hf"], make_mesh(1, 4))}


if __name__ == "__main__":
    FOLDER = Path(sys.argv[1])
    RESULTS = {"files": measure_files(FOLDER)}
    fill.CHUNK_BYTES = 8 << 20
    RESULTS["checkpoints"] = measure_checkpoints(FOLDER)
    (FOLDER / "results.json").write_text(json.dumps(RESULTS))
    sys.exit()


# The tests.


@pytest.fixture(scope="module")
def measured(tmp_path_factory):
    folder = tmp_path_factory.mktemp("sharded")
    own = cpu_devices(8) | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, __file__, str(folder)]
    done = subprocess.run(
        command,
        env=os.environ | own,
        capture_output=True,
        timeout=SECONDS,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return json.loads((folder / "results.json").read_text())


@pytest.mark.parametrize("kind", ["safetensors", "gguf"])
@pytest.mark.parametrize("family", MODELS)
def test_every_part_is_the_whole_s_and_is_read_once(measured, family, kind):
    cfg = MODELS[family]
    sizes = {jax.tree_util.keystr(path): leaf.size for path, leaf in jax.tree.leaves_with_path(abstract_params(cfg))}
    replicated = sum(size for name, size in sizes.items() if "norm" in name)
    vocabulary = sum(size for name, size in sizes.items() if name in ("['embed']", "['head']"))
    for data, tensor in MESHES:
        found = measured["files"][f"{family} {kind} {data} {tensor}"]
        assert found["wrong"] == []
        assert found["numbers"] == sum(sizes.values())
        assert found["devices"] == [data * tensor]
        assert 0.5 * MOST_NUMBERS < found["most"] <= MOST_NUMBERS
        tokens = -(-cfg.vocab_size // tensor)
        split = sum(sizes.values()) - replicated - vocabulary
        tables = 1 if cfg.is_tied else 2
        assert found["of_device_0"] == split // tensor + replicated + tables * tokens * cfg.width
        layer = {
            "embed": [tokens, 32],
            "attn_norm": [32],
            "qkv": [32, 8 // tensor * 5 * 4],
            "out": [8 // tensor * 3 * 4, 32],
            "mlp_norm": [32],
            "gate": [32, 160 // tensor],
            "up": [32, 160 // tensor],
            "down": [160 // tensor, 32],
        }
        layer |= {"qkv_bias": [8 // tensor * 5 * 4]} if family == "qwen2" else {}
        layer |= {"q_norm": [4], "k_norm": [4]} if family == "qwen3" else {}
        assert found["shapes"] == layer


def test_every_kind_of_checkpoint_loads_onto_a_mesh(measured):
    found = measured["checkpoints"]
    assert (
        len(found["wrong"]) == 3 * 3 + 1
    )  # each kind as it is, in bfloat16 and in eight bits, and a folder of eight bits
    assert not any(found["wrong"].values()), found["wrong"]
    assert found["embed"] == [V + 1, 36]  # two equal parts


def test_flaws_are_named_as_without_a_mesh(measured):
    messages = measured["checkpoints"]["messages"]
    assert messages.pop("mesh") == [
        "ValueError",
        "tensor=4 must divide the model's 2 kv heads and mlp width 52; tensor may be 1, 2.",
    ]
    parts = {
        "tensor": "'model.layers.3.mlp.down_proj.weight' of shape [36, 52] is missing",
        "layers": "too few for the 1000000000000 layers",
        "vocabulary": "its shape is [293, 36], but its config asks for [294, 36]",
        "layer": "do not match",
        "file": "['layers'][3]['down'] cannot be restored",
        "cut.gguf": "ends at byte",
    }
    assert set(messages) == set(parts)
    for name, part in parts.items():
        whole, sharded = messages[name]
        assert whole == sharded
        assert whole[0] == "CheckpointError"
        assert part in whole[1]
        assert "\n" not in whole[1]
