"""The header of a GGUF file takes little memory, whatever it claims."""

import struct
import tracemalloc

import numpy as np
import pytest
from support.checkpoints.gguf_files import header, tensor, text, write_gguf
from support.checkpoints.hf_folders import hf_config, hf_tensors

from checkpoints_convert import CheckpointError
from checkpoints_convert.gguf.header import read_header
from checkpoints_convert.gguf.model import open_gguf


def peak_of(read, path):
    """Gives the bytes that Python and numpy allocate at most; what is refused is as good as what is read."""
    tracemalloc.start()
    try:
        read(path)
    except CheckpointError as error:
        refused = str(error)
    else:
        refused = None
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak, refused


def array(kind, count, items):
    return text(b"a") + struct.pack("<IIQ", 9, kind, count) + items


NUM = 1 << 20


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (header(array(0, NUM, bytes(NUM)), 1), None),
        (header(array(8, NUM // 8, text(b"ab") * (NUM // 8)), 1), None),
        (
            header(b"".join(text(b"%x" % i) + struct.pack("<IB", 0, 1) for i in range(NUM // 8)), NUM // 8),
            "131072 fields",
        ),
        (
            header(tensors=b"".join(tensor(b"%x" % i, [1], 0, 4 * i) for i in range(NUM // 8)), num_tensors=NUM // 8),
            "131072 tensors",
        ),
        (header(text(b"a" * 2 * NUM) + struct.pack("<IB", 0, 1), 1), "its texts have more than 1048576 bytes"),
        (header(text(b"a") + struct.pack("<I", 8) + text("🙂".encode() * NUM), 1), "its texts have more than"),
    ],
    ids=["numbers", "texts", "fields", "tensors", "a long key", "a long text"],
)
def test_a_header_takes_little_more_memory_than_it_has_bytes(tmp_path, raw, message):
    path = tmp_path / "m.gguf"
    path.write_bytes(raw + bytes(NUM))
    peak, refused = peak_of(read_header, path)
    assert (refused is None) == (message is None)
    assert (message or "") in (refused or "")
    assert peak < 5 << 20


def test_an_array_is_read_when_it_is_gone_through(tmp_path):
    path = tmp_path / "m.gguf"
    numbers = text(b"n") + struct.pack("<IIQ3h", 9, 3, 3, 1, -2, 3)
    path.write_bytes(header(array(8, 2, text("é".encode()) + text(b"")) + numbers, 2))
    fields, _ = read_header(path)
    assert {key: list(value) for key, value in fields.items()} == {"a": ["é", ""], "n": [1, -2, 3]}
    path.write_bytes(header(array(8, 1, text(b"\xff")), 1))
    fields, _ = read_header(path)
    assert len(fields["a"]) == 1
    with pytest.raises(CheckpointError, match="a at byte 57 is not UTF-8 text"):
        list(fields["a"])


def test_rope_divisors_of_no_head_are_not_read(tmp_path):
    many = {"rope_freqs.weight": np.ones(1 << 20, np.float32)}
    path = write_gguf(tmp_path / "m.gguf", "llama", hf_tensors(hf_config("llama")), extra=many)
    peak, refused = peak_of(open_gguf, path)
    assert "must be a vector of F32, h/2 long, got F32 of [1048576]" in refused
    assert peak < 4 << 20
