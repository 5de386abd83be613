"""Writes tiny GGUF files, whole and in their parts, for tests."""

import json
import struct

import gguf
from gguf import GGMLQuantizationType as Kind

from support.checkpoints.hf_folders import D, F, H, K, L, h, tiny_tokenizer

NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "self_attn.q_norm": "attn_q_norm",
    "self_attn.k_norm": "attn_k_norm",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}


def gguf_name(name):
    if name in NAMES:
        return NAMES[name]
    _, _, layer, rest = name.split(".", 3)
    module, part = rest.rsplit(".", 1)
    return f"blk.{layer}.{NAMES[module]}.{part}"


def llama_permute(weights, n_head):
    """Permutes q or k of a llama model as llama.cpp's convert_hf_to_gguf.py does (`LlamaModel.permute`)."""
    return (
        weights.reshape(n_head, 2, weights.shape[0] // n_head // 2, *weights.shape[1:])
        .swapaxes(1, 2)
        .reshape(weights.shape)
    )


def add_tokenizer(writer, *, names_end=True):
    tokenizer = tiny_tokenizer()
    vocab = tokenizer.get_vocab()
    tokens = sorted(vocab, key=vocab.get)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("gpt-2")
    writer.add_token_list(tokens)
    writer.add_token_types([int(gguf.TokenType.CONTROL if t == "<eos>" else gguf.TokenType.NORMAL) for t in tokens])
    writer.add_token_merges([" ".join(merge) for merge in merges])
    if names_end:
        writer.add_eos_token_id(vocab["<eos>"])


def write_gguf(path, family, tensors, *, kinds=None, fields=None, without=(), extra=None):
    """Writes a file as llama.cpp's converter writes it; `kinds` maps Hugging Face names to quantization types."""
    writer = gguf.GGUFWriter(path, family)
    numbers = {
        "block_count": L,
        "context_length": 640,
        "embedding_length": D,
        "feed_forward_length": F,
        "attention.head_count": H,
        "attention.head_count_kv": K,
        "attention.key_length": h,
        "attention.value_length": h,
        "rope.dimension_count": h,
    }
    for key, value in numbers.items():
        if key not in without:
            writer.add_uint32(f"{family}.{key}", value)
    if "attention.layer_norm_rms_epsilon" not in without:
        writer.add_float32(f"{family}.attention.layer_norm_rms_epsilon", 1e-5)
    if "rope.freq_base" not in without:
        writer.add_float32(f"{family}.rope.freq_base", 5000.0)
    for key, value in (fields or {}).items():
        writer.add_key_value(key, value, gguf.GGUFValueType.get_type(value))
    add_tokenizer(writer, names_end="eos_token_id" not in without)
    for name, values in tensors.items():
        if family in ("llama", "smollm3") and ".q_proj." in name:  # SmolLM3Model is a LlamaModel there
            values = llama_permute(values, H)
        if family in ("llama", "smollm3") and ".k_proj." in name:
            values = llama_permute(values, K)
        kind = (kinds or {}).get(name, Kind.F32)
        raw = gguf.quantize(values, kind)
        writer.add_tensor(gguf_name(name), raw, raw_dtype=kind)
    for name, values in (extra or {}).items():
        writer.add_tensor(name, values)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return path


def header(fields=b"", num_fields=0, tensors=b"", num_tensors=0, version=3):
    return b"GGUF" + struct.pack("<IQQ", version, num_tensors, num_fields) + fields + tensors


def text(value):
    return struct.pack("<Q", len(value)) + value


def tensor(name, shape, kind, offset):
    return (
        text(name)
        + struct.pack("<I", len(shape))
        + struct.pack(f"<{len(shape)}Q", *shape)
        + struct.pack("<IQ", kind, offset)
    )
