"""The parameters on disk: what their notes say is not believed."""

import json

import pytest
from support.checkpoints.hf_folders import D

from checkpoints_convert import CheckpointError, load_checkpoint
from checkpoints_convert.mapping.fields import MAX_BYTES


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


def test_arrays_of_another_format_are_not_followed(converted):
    path = converted / "params" / "_METADATA"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_zarr3": True}))
    with pytest.raises(CheckpointError, match="zarr3"):
        load_checkpoint(converted)
