"""Every quantization of a GGUF file by its definition."""

import struct

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind

from checkpoints_convert.gguf.header import read_header
from checkpoints_convert.gguf.reader import READABLE, GGUFSource

# The formats, number by number, from the structs and dequantize_row_* of ggml (ggml-common.h, ggml-quants.c).


def half(raw):
    return float(np.frombuffer(bytes(raw), np.float16)[0])


def decode_q8_0(b):
    return [half(b[:2]) * struct.unpack("b", bytes([q]))[0] for q in b[2:34]]


def decode_q4_0(b):
    q = b[2:18]
    return [half(b[:2]) * ((x & 15) - 8) for x in q] + [half(b[:2]) * ((x >> 4) - 8) for x in q]


def decode_q4_1(b):
    d, m, q = half(b[:2]), half(b[2:4]), b[4:20]
    return [d * (x & 15) + m for x in q] + [d * (x >> 4) + m for x in q]


def _five_bits(qh, qs):
    high = int.from_bytes(bytes(qh), "little")
    low = [x & 15 for x in qs] + [x >> 4 for x in qs]
    return [low[i] | (((high >> i) & 1) << 4) for i in range(32)]


def decode_q5_0(b):
    return [half(b[:2]) * (q - 16) for q in _five_bits(b[2:6], b[6:22])]


def decode_q5_1(b):
    return [half(b[:2]) * q + half(b[2:4]) for q in _five_bits(b[4:8], b[8:24])]


def _scale_and_min(j, q):  # get_scale_min_k4
    if j < 4:
        return q[j] & 63, q[j + 4] & 63
    return (q[j + 4] & 15) | ((q[j - 4] >> 6) << 4), (q[j + 4] >> 4) | ((q[j] >> 6) << 4)


def decode_q4_k(b):
    d, dmin, scales, qs = half(b[:2]), half(b[2:4]), b[4:16], b[16:144]
    out = []
    for j in range(8):
        scale, minimum = _scale_and_min(j, scales)
        for x in qs[32 * (j // 2) : 32 * (j // 2) + 32]:
            q = x >> 4 if j % 2 else x & 15
            out.append(d * scale * q - dmin * minimum)
    return out


def decode_q5_k(b):
    d, dmin, scales, qh, qs = half(b[:2]), half(b[2:4]), b[4:16], b[16:48], b[48:176]
    out = []
    for j in range(8):
        scale, minimum = _scale_and_min(j, scales)
        for i, x in enumerate(qs[32 * (j // 2) : 32 * (j // 2) + 32]):
            q = (x >> 4 if j % 2 else x & 15) + (16 if qh[i] >> j & 1 else 0)
            out.append(d * scale * q - dmin * minimum)
    return out


def decode_q6_k(b):
    ql, qh, d = b[:128], b[128:192], half(b[208:210])
    scales = struct.unpack("16b", bytes(b[192:208]))
    out = [0.0] * 256
    for half_block in range(2):
        for i in range(32):
            l0, l1 = ql[64 * half_block + i], ql[64 * half_block + 32 + i]
            high = qh[32 * half_block + i]
            quants = [l0 & 15 | (high & 3) << 4, l1 & 15 | (high >> 2 & 3) << 4]
            quants += [l0 >> 4 | (high >> 4 & 3) << 4, l1 >> 4 | (high >> 6 & 3) << 4]
            for part, q in enumerate(quants):
                scale = scales[8 * half_block + 2 * part + i // 16]
                out[128 * half_block + 32 * part + i] = d * scale * (q - 32)
    return out


# decoder, offsets of the float16 scales in a block
DECODERS = {
    "Q8_0": (decode_q8_0, [0]),
    "Q4_0": (decode_q4_0, [0]),
    "Q4_1": (decode_q4_1, [0, 2]),
    "Q5_0": (decode_q5_0, [0]),
    "Q5_1": (decode_q5_1, [0, 2]),
    "Q4_K": (decode_q4_k, [0, 2]),
    "Q5_K": (decode_q5_k, [0, 2]),
    "Q6_K": (decode_q6_k, [208]),
}


def test_every_readable_type_is_covered():
    assert set(DECODERS) == set(READABLE) - {"F32", "F16", "BF16"}


@pytest.mark.parametrize("name", DECODERS)
def test_quantized_rows_are_what_the_format_says(tmp_path, name):
    decode, scale_offsets = DECODERS[name]
    block, block_bytes = gguf.GGML_QUANT_SIZES[Kind[name]]
    rows, columns = 5, 512
    rng = np.random.default_rng(3)
    blocks = rng.integers(0, 256, (rows * columns // block, block_bytes), dtype=np.uint8)
    for at in scale_offsets:
        scales = rng.uniform(-2, 2, len(blocks)).astype(np.float16)
        blocks[:, at : at + 2] = scales.view(np.uint8).reshape(-1, 2)
    writer = gguf.GGUFWriter(tmp_path / "t.gguf", "llama")
    writer.add_tensor("pad", np.ones(3, np.float32))  # so that the tensor does not begin at the first byte
    writer.add_tensor("t", blocks.reshape(rows, -1), raw_dtype=Kind[name])
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _, header = read_header(tmp_path / "t.gguf")
    source = GGUFSource(tmp_path / "t.gguf", header)
    assert source.tensors["t"].shape == (rows, columns)

    expected = np.array([decode(list(b)) for b in blocks.tolist()]).reshape(rows, columns)
    got = np.concatenate([source.read("t", 0, 1), source.read("t", 1, 4), source.read("t", 4, 5)])
    assert np.abs(expected).max() > 1
    np.testing.assert_allclose(got, expected, rtol=1e-6, atol=1e-5)
    for columns in (range(0, 256), range(250, 300), range(300, 512)):  # whole blocks, and parts of them
        got = source.read("t", 1, 4, columns)
        np.testing.assert_allclose(got, expected[1:4, columns], rtol=1e-6, atol=1e-5)
