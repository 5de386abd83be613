"""JSON that is no configuration: its size and depth are bounded."""

import json

import pytest

from checkpoints_convert import CheckpointError
from checkpoints_convert.mapping.fields import MAX_BYTES, MAX_DEPTH, MAX_VALUES, read_json


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (json.dumps("x" * MAX_BYTES), f"more than {MAX_BYTES} bytes"),
        ("[" + "{}," * MAX_VALUES + "0]", f"more than {MAX_VALUES} values"),
        ("[" * MAX_DEPTH + "0" + "]" * MAX_DEPTH, f"more than {MAX_DEPTH} deep"),
        ('{"a":' * MAX_DEPTH + "0" + "}" * MAX_DEPTH, f"more than {MAX_DEPTH} deep"),
    ],
)
def test_json_that_would_take_much_memory_or_stack_is_refused(tmp_path, value, message):
    path = tmp_path / "config.json"
    path.write_text('{"a": ' + value + "}")
    with pytest.raises(CheckpointError, match=message):
        read_json(path)
    path.write_text('{"a": ' + "[" * (MAX_DEPTH - 1) + "]" * (MAX_DEPTH - 1) + "}")
    assert list(read_json(path)) == ["a"]
