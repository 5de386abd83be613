"""GGUF files: the same weights as the Hugging Face folder, every quantization by its definition, bounds respected."""

import struct

import gguf
import jax
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Kind
from support.gguf_files import header, tensor, text, write_gguf
from support.hf_folders import D, G, V, hf_config, hf_tensors, write_hf

from checkpoints_convert import CheckpointError, load_checkpoint
from checkpoints_convert.gguf.header import read_header
from checkpoints_convert.gguf.model import open_gguf
from checkpoints_convert.gguf.reader import READABLE, GGUFSource


@pytest.mark.parametrize(("family", "is_tied"), [("llama", True), ("llama", False), ("qwen2", False), ("qwen3", True)])
def test_a_gguf_file_gives_what_the_folder_gives(tmp_path, family, is_tied, monkeypatch):
    monkeypatch.setattr("checkpoints_convert.params.fill.CHUNK_BYTES", 4 * D * 20)
    config = hf_config(family, tie_word_embeddings=is_tied)
    tensors = hf_tensors(config)
    ours = load_checkpoint(write_gguf(tmp_path / "m.gguf", family, tensors))
    theirs = load_checkpoint(write_hf(tmp_path / "hf", config, tensors))
    assert ours.config == theirs.config
    assert ours.eos_token_ids == (0,)  # the file's own: tokenizer.ggml.eos_token_id
    for (path, a), (_, b) in zip(
        jax.tree.leaves_with_path(ours.params), jax.tree.leaves_with_path(theirs.params), strict=True
    ):
        np.testing.assert_array_equal(a, b, err_msg=str(path))


def test_dtype_of_a_file(tmp_path):
    config = hf_config("qwen2")
    tensors = hf_tensors(config)
    all_bf16 = write_gguf(tmp_path / "b.gguf", "qwen2", tensors, kinds=dict.fromkeys(tensors, Kind.BF16))
    mixed = write_gguf(tmp_path / "m.gguf", "qwen2", tensors, kinds={"lm_head.weight": Kind.BF16})
    half = write_gguf(tmp_path / "h.gguf", "qwen2", tensors, kinds=dict.fromkeys(tensors, Kind.F16))
    assert [open_gguf(path).dtype for path in (all_bf16, mixed, half)] == ["bfloat16", "float32", "float32"]
    loaded = load_checkpoint(half).params["head"]
    np.testing.assert_array_equal(loaded, tensors["lm_head.weight"].astype(np.float16).astype(np.float32))
    assert load_checkpoint(half, dtype="bfloat16").params["head"].dtype == "bfloat16"


def test_rope_divisors_are_read(tmp_path):
    tensors = hf_tensors(hf_config("llama"))
    divisors = np.array([1.0, 1.25, 4.0, 8.0], np.float32)
    extra = {"rope_freqs.weight": divisors}
    assert open_gguf(write_gguf(tmp_path / "m.gguf", "llama", tensors, extra=extra)).config.rope_divisors == (
        1,
        1.25,
        4,
        8,
    )
    for bad, message in ((np.ones(3, np.float32), "must hold 4 numbers, got 3"), (divisors * 0, "not above 0")):
        path = write_gguf(tmp_path / "bad.gguf", "llama", tensors, extra={"rope_freqs.weight": bad})
        with pytest.raises(CheckpointError, match=message):
            open_gguf(path)


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


def test_a_quantized_model_becomes_float32(tmp_path):
    tensors = {"model.embed_tokens.weight": np.ones((V, 64), np.float32)}
    path = write_gguf(tmp_path / "q.gguf", "llama", tensors, kinds=dict.fromkeys(tensors, Kind.Q8_0))
    model = open_gguf(path)
    assert (model.description["types"], model.dtype) == (["Q8_0"], "float32")


def test_other_types_are_named(tmp_path):
    tensors = hf_tensors(hf_config("llama"))
    path = write_gguf(tmp_path / "m.gguf", "llama", tensors)
    raw = bytearray(path.read_bytes())
    name = b"output_norm.weight"
    at = raw.index(name) + len(name) + 4 + 8  # after the name: axes, one length, then the type
    raw[at : at + 4] = struct.pack("<I", int(Kind.I32))
    path.write_bytes(raw)
    with pytest.raises(
        CheckpointError, match=r"'output_norm\.weight' is I32, which is not supported; F32, F16.*Q6_K are"
    ):
        load_checkpoint(path)
    raw[at : at + 4] = struct.pack("<I", 99)
    path.write_bytes(raw)
    with pytest.raises(CheckpointError, match=r"'output_norm\.weight' has the unknown type 99"):
        load_checkpoint(path)


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
