"""The parameters on disk: what their notes say is not believed."""

import json
import shutil
import subprocess
import sys

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


def test_a_chunk_that_is_missing_or_cut_is_named(converted):
    """A zarr array without its chunk is an array of zeros: a model that answers, wrongly."""
    chunk = converted / "params" / "layers.1.down" / "0.0"
    whole = chunk.read_bytes()
    for damaged, message in ((None, "its chunk is missing"), (whole[:-4], "")):
        chunk.unlink() if damaged is None else chunk.write_bytes(damaged)
        with pytest.raises(CheckpointError, match=rf"\['layers'\]\[1\]\['down'\] cannot be restored \(.*{message}"):
            load_checkpoint(converted)
    chunk.write_bytes(whole)
    load_checkpoint(converted)


def test_an_array_too_many_is_named(converted):
    shutil.copytree(converted / "params" / "embed", converted / "params" / "head2")
    with pytest.raises(CheckpointError, match="they do not match, head2 is not known"):
        load_checkpoint(converted)


def test_reading_a_folder_imports_no_orbax(converted):
    """It takes a second, before the first text."""
    code = (
        "import sys, checkpoints_convert\n"
        "checkpoints_convert.load_checkpoint(sys.argv[1])\n"
        "assert 'orbax' not in sys.modules"
    )
    done = subprocess.run([sys.executable, "-c", code, str(converted)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


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
