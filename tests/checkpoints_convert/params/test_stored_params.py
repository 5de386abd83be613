"""The parameters on disk: what their notes say is not believed."""

import json
import shutil

import jax
import numpy as np
import pytest
from support.checkpoints.hf_folders import D, F, G, K, h

from checkpoints_convert import CheckpointError, load_checkpoint
from checkpoints_convert.mapping.fields import MAX_BYTES
from checkpoints_convert.params.stored_params import save_params


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"chunks": [2**32 + 1, D]}, "one plain chunk"),  # memory for it would be asked for, and the process end
        ({"dtype": "|V4294967296"}, "one plain chunk"),
        ({"compressor": {"id": "zlib", "level": 1}}, "one plain chunk"),
        ({"shape": [2**40, D]}, "its shape is"),
        ({"order": "x" * MAX_BYTES}, f"more than {MAX_BYTES} bytes"),
    ],
)
def test_sizes_in_an_array_s_notes_are_not_believed(converted, change, message):
    path = converted / "params" / "embed" / ".zarray"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(CheckpointError, match=rf"\['embed'\] cannot be restored \(.*{message}"):
        load_checkpoint(converted)


@pytest.mark.parametrize("dtype", [None, "bfloat16"])
def test_a_folder_of_version_1_still_loads(converted, dtype):
    """There the heads had axes of their own, and gate and up were one array."""
    expected = load_checkpoint(converted, dtype=dtype).params
    stored = jax.tree.map(np.asarray, load_checkpoint(converted).params)
    for layer in stored["layers"]:
        layer["gate_up"] = np.stack([layer.pop("gate"), layer.pop("up")], axis=1)
        layer["qkv"] = layer["qkv"].reshape(D, K, G + 2, h)
        layer["qkv_bias"] = layer["qkv_bias"].reshape(K, G + 2, h)
        layer["out"] = layer["out"].reshape(K, G, h, D)
        assert layer["gate_up"].shape == (D, 2, F)
    shutil.rmtree(converted / "params")
    save_params(converted, stored)
    notes = converted / "jax_probe_mtp.json"
    notes.write_text(json.dumps(json.loads(notes.read_text()) | {"format_version": 1}))
    got = load_checkpoint(converted, dtype=dtype).params
    assert jax.tree.structure(got) == jax.tree.structure(expected)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, got, expected)))


def test_arrays_of_another_format_are_not_followed(converted):
    path = converted / "params" / "_METADATA"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_zarr3": True}))
    with pytest.raises(CheckpointError, match="zarr3"):
        load_checkpoint(converted)
