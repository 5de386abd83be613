"""Makes small valid checkpoints of each kind, as bytes, for scripts/stress/loaders.py to damage; GGUF also in its parts."""

import dataclasses
import json
import multiprocessing
import struct
from pathlib import Path
from typing import Any

import gguf
import ml_dtypes
import numpy as np
from gguf import GGMLQuantizationType as Kind
from safetensors.numpy import save
from tokenizers import Tokenizer, decoders, models, pre_tokenizers

V, D, F, H, K, h = 40, 32, 64, 4, 2, 8  # as in STYLE: vocabulary, width, mlp width, query heads, kv heads, head size
LETTERS = "abcdefghijklmnopqrstuvwxyz"
MERGES = [("a", "b"), ("c", "d"), ("ab", "cd"), ("Ġ", "t"), ("Ġt", "h")]
TOKENS = ["<s>", "</s>", "<unk>", *LETTERS, "Ġ", *("".join(pair) for pair in MERGES)]
ALIGNMENT = 32
TEXT, ARRAY = 8, 9  # value types of a GGUF field
NUMBERS = {0: "B", 1: "b", 2: "H", 3: "h", 4: "I", 5: "i", 6: "f", 7: "?", 10: "Q", 11: "q", 12: "d"}

Files = dict[str, bytes]  # by the path in the folder


@dataclasses.dataclass(frozen=True)
class Seed:
    """A valid checkpoint.

    Attributes:
      files: what its folder holds.
      model: what is opened, as a path in the folder; "" is the folder.
    """

    files: Files
    model: str = ""


@dataclasses.dataclass
class Gguf:
    """A GGUF file in its parts: fields of key, type and encoded value; tensors of name, axes, type and offset."""

    fields: list[tuple[bytes, int, bytes]]
    tensors: list[tuple[bytes, list[int], int, int]]
    data: bytes

    def encode(self) -> tuple[bytes, list[tuple[str, int, int]]]:
        """Gives the file, and where each number of its header lies: what it is, its first byte, its size."""
        out, marks = bytearray(b"GGUF"), []

        def put(role: str, code: str, value: int) -> None:
            marks.append((role, len(out), struct.calcsize("<" + code)))
            out.extend(struct.pack("<" + code, value))

        put("version", "I", 3)
        put("count", "Q", len(self.tensors))
        put("count", "Q", len(self.fields))
        for key, kind, value in self.fields:
            put("length", "Q", len(key))
            out.extend(key)
            put("type", "I", kind)
            if kind == ARRAY:
                marks += [("type", len(out), 4), ("length", len(out) + 4, 8)]
            else:
                marks.append(("length" if kind == TEXT else "value", len(out), 8 if kind == TEXT else len(value)))
            out.extend(value)
        for name, axes, kind, offset in self.tensors:
            put("length", "Q", len(name))
            out.extend(name)
            put("axes", "I", len(axes))
            for axis in axes:
                put("axis", "Q", axis)
            put("tensor type", "I", kind)
            put("offset", "Q", offset)
        out.extend(bytes(-len(out) % ALIGNMENT))
        return bytes(out) + self.data, marks


def gguf_text(value: bytes) -> bytes:
    """Encodes a text as GGUF has it."""
    return struct.pack("<Q", len(value)) + value


def gguf_array(kind: int, items: list) -> bytes:
    """Encodes an array as GGUF has it: of texts (bytes) or of numbers."""
    head = struct.pack("<IQ", kind, len(items))
    if kind == TEXT:
        return head + b"".join(map(gguf_text, items))
    return head + struct.pack(f"<{len(items)}{NUMBERS[kind]}", *items)


def _weights() -> dict[str, np.ndarray]:
    """Draws the weights of a llama model of one layer with a tied head, by their names in a Hugging Face folder."""
    draw = np.random.default_rng(0)
    shapes = {
        "model.embed_tokens.weight": (V, D),
        "model.layers.0.input_layernorm.weight": (D,),
        "model.layers.0.self_attn.q_proj.weight": (H * h, D),
        "model.layers.0.self_attn.k_proj.weight": (K * h, D),
        "model.layers.0.self_attn.v_proj.weight": (K * h, D),
        "model.layers.0.self_attn.o_proj.weight": (D, H * h),
        "model.layers.0.post_attention_layernorm.weight": (D,),
        "model.layers.0.mlp.gate_proj.weight": (F, D),
        "model.layers.0.mlp.up_proj.weight": (F, D),
        "model.layers.0.mlp.down_proj.weight": (D, F),
        "model.norm.weight": (D,),
    }
    return {name: draw.standard_normal(shape, np.float32) for name, shape in shapes.items()}


def _json(values: object) -> bytes:
    return json.dumps(values).encode()


YARN = {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128, "beta_fast": 8, "mscale": 0.7}
OTHER_FAMILIES: dict[str, dict[str, Any]] = {  # what differs in config.json
    "config, mistral": {"architectures": ["MistralForCausalLM"], "model_type": "mistral", "sliding_window": 512},
    "config, smollm3": {
        "architectures": ["SmolLM3ForCausalLM"],
        "model_type": "smollm3",
        "no_rope_layers": [1],
        "no_rope_layer_interval": 4,
        "rope_scaling": YARN,
    },
}


def _folder(**changes: Any) -> Files:
    """Makes what a Hugging Face folder holds beside its weights."""
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate(TOKENS)}, MERGES, unk_token="<unk>"))
    tokenizer.add_special_tokens(["<s>", "</s>", "<unk>"])
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "vocab_size": V,
        "hidden_size": D,
        "intermediate_size": F,
        "num_hidden_layers": 1,
        "num_attention_heads": H,
        "num_key_value_heads": K,
        "head_dim": h,
        "max_position_embeddings": 512,
        "rms_norm_eps": 1e-5,
        "hidden_act": "silu",
        "mlp_bias": False,
        "layer_types": ["full_attention"],
        "rope_theta": 10000.0,
        "rope_scaling": {
            "rope_type": "llama3",
            "factor": 8.0,
            "low_freq_factor": 1.0,
            "high_freq_factor": 4.0,
            "original_max_position_embeddings": 128,
        },
        "tie_word_embeddings": True,
        "eos_token_id": [1],
    }
    special = {"content": "</s>", "lstrip": False, "normalized": False, "rstrip": False, "single_word": False}
    tokenizer_config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "added_tokens_decoder": {"1": special | {"special": True}},
        "eos_token": "</s>",
        "model_max_length": 512,
        "chat_template": "{{ messages[0]['content'] }}",
    }
    return {
        "config.json": _json(config | changes),
        "generation_config.json": _json({"eos_token_id": 1, "temperature": 0.6}),
        "tokenizer.json": tokenizer.to_str().encode(),
        "tokenizer_config.json": _json(tokenizer_config),
    }


def _in_shards(weights: dict[str, np.ndarray]) -> Files:
    names = sorted(weights)
    parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
    weight_map = {name: shard for shard, part in parts.items() for name in part}
    index = {"metadata": {"total_size": 1}, "weight_map": weight_map}
    shards = {shard: save({name: weights[name] for name in part}) for shard, part in parts.items()}
    return shards | {"model.safetensors.index.json": _json(index)}


def _gguf(is_sentencepiece: bool, family: str = "llama") -> Gguf:
    """Makes a file with tensors of several types, with a byte-level or a SentencePiece tokenizer; a llama's with rope_freqs."""
    names = {
        "model.embed_tokens": "token_embd",
        "model.norm": "output_norm",
        "input_layernorm": "attn_norm",
        "self_attn.q_proj": "attn_q",
        "self_attn.k_proj": "attn_k",
        "self_attn.v_proj": "attn_v",
        "self_attn.o_proj": "attn_output",
        "post_attention_layernorm": "ffn_norm",
        "mlp.gate_proj": "ffn_gate",
        "mlp.up_proj": "ffn_up",
        "mlp.down_proj": "ffn_down",
    }
    kinds = {"attn_q": Kind.Q8_0, "attn_k": Kind.Q4_0, "ffn_up": Kind.Q5_1, "ffn_down": Kind.F16, "attn_v": Kind.BF16}
    tensors, data = [], bytearray()
    divisors = {"rope_freqs": np.ones(h // 2, np.float32)} if family == "llama" else {}
    for name, values in (_weights() | divisors).items():
        plain = name.removeprefix("model.layers.0.").removesuffix(".weight")
        ours = names.get(plain, plain)
        kind = kinds.get(ours, Kind.F32)
        full = ("blk.0." if "layers" in name else "") + ours + ".weight"
        tensors.append((full.encode(), list(reversed(values.shape)), int(kind), len(data)))
        data += gguf.quantize(values, kind).tobytes()
        data += bytes(-len(data) % ALIGNMENT)
    numbers = {
        "block_count": 1,
        "context_length": 512,
        "embedding_length": D,
        "feed_forward_length": F,
        "attention.head_count": H,
        "attention.head_count_kv": K,
        "rope.dimension_count": h,
    }
    fields = [
        (b"general.architecture", TEXT, gguf_text(family.encode())),
        (b"general.alignment", 4, struct.pack("<I", 32)),
    ]
    scaling = {"scaling.factor": 4.0, "scaling.attn_factor": 0.9, "scaling.yarn_beta_fast": 8.0, "freq_base": 5000.0}
    floats = {"attention.layer_norm_rms_epsilon": 1e-5}
    if family != "llama":
        numbers |= {"rope.scaling.original_context_length": 128, "attention.sliding_window": 512}
        floats |= {f"rope.{key}": value for key, value in scaling.items()}
        fields.append((f"{family}.rope.scaling.type".encode(), TEXT, gguf_text(b"yarn")))
    fields += [(f"{family}.{key}".encode(), 4, struct.pack("<I", value)) for key, value in numbers.items()]
    fields += [(f"{family}.{key}".encode(), 6, struct.pack("<f", value)) for key, value in floats.items()]
    tokens = [token.replace("Ġ", "▁") if is_sentencepiece else token for token in TOKENS]
    tokenizer: dict[str, tuple[int, bytes]] = {
        "model": (TEXT, gguf_text(b"llama" if is_sentencepiece else b"gpt2")),
        "tokens": (ARRAY, gguf_array(TEXT, [token.encode() for token in tokens])),
        "token_type": (ARRAY, gguf_array(5, [3, 3, 2] + [1] * (len(tokens) - 3))),
        "bos_token_id": (4, struct.pack("<I", 0)),
        "eos_token_id": (4, struct.pack("<I", 1)),
        "add_bos_token": (7, struct.pack("<?", True)),
    }
    if is_sentencepiece:
        tokenizer["scores"] = (ARRAY, gguf_array(6, [-float(i) for i in range(len(tokens))]))
    else:
        tokenizer["pre"] = (TEXT, gguf_text(b"smollm"))
        tokenizer["merges"] = (ARRAY, gguf_array(TEXT, [" ".join(pair).encode() for pair in MERGES]))
    fields += [(f"tokenizer.ggml.{key}".encode(), kind, value) for key, (kind, value) in tokenizer.items()]
    fields.append((b"tokenizer.chat_template", TEXT, gguf_text(b"{{ messages[0]['content'] }}")))
    return Gguf(fields, tensors, bytes(data))


GGUFS = {"gguf": _gguf(False), "gguf, sentencepiece": _gguf(True), "gguf, smollm3": _gguf(False, "smollm3")}


def _convert(source: Path, destination: Path) -> None:
    from checkpoints_convert import convert_hf

    convert_hf(source, destination, note=lambda text: None)


def write_files(folder: Path, files: Files) -> None:
    """Writes files into a folder, with the folders that their paths name."""
    for path, data in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)


def make_seeds(scratch: Path) -> dict[str, Seed]:
    """Makes the valid checkpoints, by the kind of file that is damaged.

    Args:
      scratch: an empty folder. The converted checkpoint is made in it, by a child process, so that JAX does not start
        in this one and it can still be forked.
    """
    weights = _weights()
    halves = {name: values.astype(ml_dtypes.bfloat16) for name, values in weights.items()}
    single = _folder() | {"model.safetensors": save(weights)}
    write_files(scratch / "hf", single)
    child = multiprocessing.get_context("fork").Process(
        target=_convert, args=(scratch / "hf", scratch / "converted"), daemon=True
    )
    child.start()
    child.join()
    stored = [path for path in (scratch / "converted").rglob("*") if path.is_file()]
    converted = {path.relative_to(scratch / "converted").as_posix(): path.read_bytes() for path in stored}
    return {
        "safetensors": Seed(single),
        "shards": Seed(_folder() | _in_shards(halves)),
        "config": Seed(single),
        **{name: Seed(single | _folder(**changes)) for name, changes in OTHER_FAMILIES.items()},
        "tokenizer": Seed(single),
        "converted": Seed(converted),
        **{name: Seed({"m.gguf": parts.encode()[0]}, "m.gguf") for name, parts in GGUFS.items()},
    }
