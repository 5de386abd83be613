"""The header of a GGUF file: its bounds are respected, whatever it says."""

import os
import struct

import numpy as np
import pytest
from support.checkpoints.gguf_files import header, tensor, text, write_gguf
from support.checkpoints.hf_folders import hf_config, hf_tensors, quiet

from checkpoints_convert import CheckpointError, convert_gguf
from checkpoints_convert.gguf.header import read_header
from checkpoints_convert.gguf.model import open_gguf


@pytest.mark.parametrize(
    ("raw", "message"),
    [
        (b"", "cannot be read as GGUF"),
        (b"GGML" + bytes(60), "does not begin with 'GGUF'"),
        (header(version=1), "version 1"),
        (header(version=3 << 24), "version 50331648"),  # big-endian
        (header(text(b"a") + struct.pack("<IIQ", 9, 4, 2**40), 1), "a at byte .* needs 4398046511104 bytes"),
        (header(text(b"a") + struct.pack("<IIQ", 9, 8, 2**40), 1), "a claims 1099511627776 texts"),
        (header(text(b"a") + struct.pack("<IQ", 8, 2**63), 1), "a at byte .* needs 9223372036854775808 bytes"),
        (header(text(b"a") + struct.pack("<IIQ", 9, 9, 2**40), 1), "array of type 9"),
        (header(struct.pack("<Q", 2**60), 1), "key of field 0"),
        (header(text(b"a") + struct.pack("<I", 77), 1), "unknown type 77"),
        (header(text(b"\xff"), 1), "not UTF-8"),
        (header(2 * (text(b"a") + struct.pack("<IB", 0, 1)), 2), "the field 'a' twice"),
        (header(b"", 2**50), "key of field 0"),
        (header(num_tensors=2**50), "name of tensor 0"),
        (header(tensors=text(b"t") + struct.pack("<I", 2**31), num_tensors=1), "2147483648 axes"),
        (header(tensors=tensor(b"t", [2**40], 0, 0), num_tensors=1), "'t' ends at byte 439804651"),
        (header(tensors=tensor(b"t", [2**63, 2**63], 0, 0), num_tensors=1), "'t' ends at byte"),
        (header(tensors=tensor(b"t", [4], 0, 2**62), num_tensors=1), "'t' ends at byte"),
        (header(tensors=tensor(b"t", [33], 8, 0), num_tensors=1), "does not fill Q8_0 blocks of 32"),
        (header(tensors=tensor(b"t", [0], 0, 0), num_tensors=1), "does not fill F32"),
        (header(tensors=tensor(b"t", [4], 0, 0) * 2, num_tensors=2) + bytes(64), "listed twice"),
        (header(tensors=tensor(b"t", [4], 0, 0) + tensor(b"u", [4], 0, 8), num_tensors=2) + bytes(64), "'u' overlaps"),
    ],
)
def test_lengths_that_do_not_fit_are_named(tmp_path, raw, message):
    path = tmp_path / "m.gguf"
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=message):
        read_header(path)


def test_damage_never_ends_in_another_error(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", "llama", hf_tensors(hf_config("llama")))
    whole = path.read_bytes()
    _, tensors = read_header(path)
    first = min(tensor.offset for tensor in tensors.values())
    for size in [*range(1, first, 211), first, (first + len(whole)) // 2]:
        path.write_bytes(whole[:size])
        with pytest.raises(CheckpointError):
            open_gguf(path)
    rng = np.random.default_rng(0)
    refused = 0
    for at in rng.integers(0, first, 200):
        damaged = bytearray(whole)
        damaged[at] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        try:
            open_gguf(path).load_tokenizer()
        except CheckpointError:
            refused += 1
    assert refused > 20  # the others hit text that no check can know


def test_a_pipe_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "m.gguf")
    with pytest.raises(CheckpointError, match="is not a file"):
        convert_gguf(tmp_path / "m.gguf", tmp_path / "x", note=quiet)
