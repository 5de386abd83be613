"""How scripts/stress/loaders.py damages a file: any bytes, JSON by its values, safetensors and GGUF by their parts.

Each takes a random generator and what a file holds, and gives what it holds afterwards. Nothing else decides what comes
out, so that a case is known by its seed and its number.
"""

import dataclasses
import json
import random
import re
import struct
from collections.abc import Callable
from typing import Any

from seeds import ARRAY, GGUFS, NUMBERS, TEXT, Files, Gguf, Seed, gguf_array, gguf_text

Mutation = Callable[[random.Random, bytes], bytes]

OUTSIDE = "canary"  # files of this name lie beside the folder of the model; whoever opens one is seen
TEXTS = [
    *["", ".", "..", "/", "a\nb", "a\r\n\tb", "\u2028\u2029\x85", "\x1b[31mred", "\0", "\ud800", "é" * 300],
    "x" * 5000,
    *[f"../{OUTSIDE}.safetensors", f"../{OUTSIDE}.json", f"x/../../{OUTSIDE}.safetensors", "/etc/x.safetensors"],
    *["C:\\x.safetensors", "a\nb.safetensors", "\ud800.safetensors", "\0.safetensors", "y" * 300 + ".safetensors"],
    *[
        "$A",
        "$A:1",
        "a:b",
        "<0x00>",
        "▁",
        " ",
        "  a  ",
        "\u200b",
        "\ufeff",
        "null",
        "5",
        "F32",
        "F64",
        "I8",
        "BOOL",
        "F4",
    ],
]
# JSON as text: not all of it could be made of Python's values.
NUMBERS_JSON = [
    *["0", "-1", "1", "2", "3", "7", "-0.0", "0.5", "1e308", "1e400", "-1e400", "1e-320", "1e-50", "NaN", "Infinity"],
    *["-Infinity", "1" + "0" * 30, "-1" + "0" * 30, "1" + "0" * 400, "1" + "0" * 4000, "1" + "0" * 5000, "1" * 100000],
    *[str(2**n + d) for n in (15, 16, 31, 32, 53, 63, 64) for d in (-1, 0, 1)],
]
OTHERS_JSON = [
    "null",
    "true",
    "false",
    '""',
    '"text"',
    "[]",
    "{}",
    "[[]]",
    '{"a": {}}',
    "[1]",
    '["x"]',
    '"5"',
    "[null]",
]
KEYS: dict[str, list[Any]] = {  # that a reader knows, each with values worth a try
    "fast_tokenizer_files": [[f"../{OUTSIDE}.tokenizer.4.0.json"], ["tokenizer.4.0.json"], "x", {"a": 1}],
    "tokenizer_file": [f"../{OUTSIDE}.json"],
    "vocab_file": [f"../{OUTSIDE}.json"],
    "merges_file": [f"../{OUTSIDE}.json"],
    "gguf_file": [f"../{OUTSIDE}.gguf"],
    "auto_map": [{"AutoTokenizer": [f"../{OUTSIDE}--x.X", None]}],
    "tokenizer_class": ["LlamaTokenizer", 5],
    "tokenizer_object": ["x", {}],
    "extra_special_tokens": [["<a>"], {"a": "b"}, [{"content": "x"}], 5],
    "additional_special_tokens": [["<a>"], 7],
    "chat_template": [{"a": "b"}, [{"name": "default", "template": "x"}], 5],
    "head_dim": [0, -8, 2, 7, 65536, 65538, 10**9, 10**30],
    "rope_parameters": [{"rope_type": "yarn"}, {"rope_theta": 0}, {"full\nattention": {}}, {"type": "default"}],
    "original_max_position_embeddings": [10**400, 0, -1],
    "quantization_config": [{"quant_method": "a\nb"}, [], 0],
    "num_experts": [0, 8, "a\nb"],
    "is_sharded": [True],
    "rope_divisors": [[1.0] * 4, "abcd", [1] * 20000, [10**400] * 4],
    "__metadata__": [{"format": "pt"}, {"a": 1}, []],
}
ARITHMETIC = [0, 1, 2, 3, 7, 31, 32, 33, 255, 2**15, 2**16, 2**31, 2**32, 2**40, 2**62, 2**63, 2**64]
SIZES = [1_000_000, 4 << 20, 16 << 20]  # bytes that a large case is grown by, so that memory shows


# Any file.


def flip_bits(draw: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(draw.choice([1, 1, 1, 2, 8, 64])):
        out[draw.randrange(len(out))] ^= 1 << draw.randrange(8)
    return bytes(out)


def set_bytes(draw: random.Random, data: bytes) -> bytes:
    at, size = draw.randrange(len(data)), draw.choice([1, 2, 4, 8, 64])
    put = draw.choice([bytes(size), b"\xff" * size, draw.randbytes(size), b"\x80" + bytes(size - 1)])
    return data[:at] + put + data[at + size :]


def cut_short(draw: random.Random, data: bytes) -> bytes:
    return data[: draw.choice([0, 1, 7, 8, 9, 24, draw.randrange(len(data)), draw.randrange(len(data)), len(data) - 1])]


def lengthen(draw: random.Random, data: bytes) -> bytes:
    return data + draw.choice([b"\0", b"}", draw.randbytes(100), data, bytes(4096)])


def move_blocks(draw: random.Random, data: bytes) -> bytes:
    """Copies a block over another, puts it between, or leaves it out."""
    at, to, size = draw.randrange(len(data)), draw.randrange(len(data)), draw.randint(1, 200)
    block = data[at : at + size]
    after = draw.choice([to + len(block), to])
    return draw.choice([data[:to] + block + data[after:], data[:at] + data[at + size :]])


# JSON. A value that Python cannot hold, or a key that is there twice, is marked in the tree and put into the text.


def _raw(text: str) -> str:
    return "\x01" + text + "\x01"


def _dump(tree: Any) -> bytes:
    text = json.dumps(tree)
    text = re.sub(r'"\\u0001(.*?)\\u0001"', lambda match: json.loads(f'"{match[1]}"'), text)
    return text.replace("\\u0002", "").encode()


def _places(tree: Any) -> list[tuple[Any, Any]]:
    """Every value in the tree, as what holds it and its key or index."""
    found, left = [], [tree]
    while left:
        node = left.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else []
        found += [(node, key) for key in keys]
        left += [node[key] for key in keys]
    return found


def _pick(draw: random.Random, tree: Any, *kinds: type) -> tuple[Any, Any]:
    """A value of one of the kinds, or any where there is none; those near the top as often as the many below."""
    places = _places(tree)
    of_kind = [(node, key) for node, key in places if type(node[key]) in kinds] or places
    near = [(node, key) for node, key in of_kind if node is tree] or of_kind
    return draw.choice(draw.choice([of_kind, near]))


def _in_tree(change: Callable[[random.Random, Any], Any], most: int = 4) -> Mutation:
    """Makes a change, up to `most` times."""

    def mutation(draw: random.Random, data: bytes) -> bytes:
        tree = json.loads(data)
        for _ in range(min(most, draw.choice([1, 1, 1, 2, 4]))):
            if _places(tree):
                tree = change(draw, tree)
        return _dump(tree)

    return mutation


def _change_number(draw: random.Random, tree: Any) -> Any:
    node, key = _pick(draw, tree, int, float)
    node[key] = _raw(draw.choice(NUMBERS_JSON))
    return tree


def _change_type(draw: random.Random, tree: Any) -> Any:
    node, key = _pick(draw, tree)
    value = _raw(draw.choice(OTHERS_JSON + NUMBERS_JSON[:8]))
    if draw.random() < 0.03:
        return value
    node[key] = draw.choice([value, [node[key]], {"a": node[key]}])
    return tree


def _change_text(draw: random.Random, tree: Any) -> Any:
    node, key = _pick(draw, tree, str)
    text = draw.choice(TEXTS)
    if isinstance(node, dict) and draw.random() < 0.3:
        node[text] = node.pop(key)
    else:
        node[key] = text
    return tree


def _nest(draw: random.Random, tree: Any) -> Any:
    node, key = _pick(draw, tree)
    depth = draw.choice([20, 100, 130, 400, draw.randint(850, 1000), 1001, 20000])
    before, after = draw.choice([("[", "]"), ('{"a":', "}")])
    node[key] = _raw(before * depth + "0" + after * depth)
    return tree


def _change_keys(draw: random.Random, tree: Any) -> Any:
    """Leaves an entry out, names one twice, gives one another's value, or adds one that a reader knows."""
    node, key = _pick(draw, tree)
    other, other_key = _pick(draw, tree)
    copied = json.loads(json.dumps(other[other_key]))
    name = draw.choice(list(KEYS))
    what = draw.randrange(4)
    if what == 0:
        del node[key]
    elif what == 1 and isinstance(node, dict):
        node[key + "\x02"] = draw.choice([node[key], copied])
    elif what == 2 or not isinstance(tree, dict):
        node[key] = copied
    else:
        tree[name] = draw.choice(KEYS[name])
    return tree


def _many_values(draw: random.Random, tree: Any) -> Any:
    node, key = _pick(draw, tree)
    item, size = draw.choice(["{}", "[]", "0", '"ab"', '{"":0}', "1.5"]), draw.choice(SIZES)
    many = _raw("[" + ",".join([item] * (size // (len(item) + 1))) + "]")
    text = _raw('"' + "x" * size + '"')
    node[key] = draw.choice([many, many, text])
    return tree


JSON: dict[str, Mutation] = {
    "numbers": _in_tree(_change_number),
    "types": _in_tree(_change_type),
    "texts": _in_tree(_change_text),
    "nesting": _in_tree(_nest),
    "keys": _in_tree(_change_keys),
}


def _lead_elsewhere(draw: random.Random, tree: Any) -> Any:
    """Another path for one or all of the tensors in a shard."""
    weight_map = tree["weight_map"]
    old, new = draw.choice(sorted(weight_map.values())), draw.choice(TEXTS)
    one = draw.choice([None, *weight_map])
    for name, shard in weight_map.items():
        if shard == old and one in (None, name):
            weight_map[name] = new
    return tree


INDEX: dict[str, Mutation] = {"paths": _in_tree(_lead_elsewhere, most=1)}
JSON_MANY: dict[str, Mutation] = {"many values": lambda draw, data: _dump(_many_values(draw, json.loads(data)))}


# safetensors: the length of the header in 8 bytes, the header, the numbers.


def _in_header(change: Mutation) -> Mutation:
    def mutation(draw: random.Random, data: bytes) -> bytes:
        size = int.from_bytes(data[:8], "little")
        header = change(draw, data[8 : 8 + size])
        if draw.random() < 0.5:
            header += b" " * (-len(header) % 8)
        return len(header).to_bytes(8, "little") + header + data[8 + size :]

    return mutation


def _change_offsets(draw: random.Random, tree: Any) -> Any:
    """Offsets that overlap, run backwards, leave a gap or leave the file."""
    name, other = draw.choice(list(tree)), draw.choice(list(tree))
    offsets = tree[name]["data_offsets"]
    big = _raw(draw.choice(NUMBERS_JSON))
    tree[name]["data_offsets"] = draw.choice(
        [
            list(tree[other]["data_offsets"]),
            offsets[::-1],
            [offsets[0] + draw.choice([-4, -1, 1, 4]), offsets[1]],
            [offsets[0], offsets[1] + draw.choice([-4, -1, 1, 4])],
            [big, offsets[1]],
            [offsets[0], big],
            offsets[:1],
        ]
    )
    return tree


def _change_shape(draw: random.Random, tree: Any) -> Any:
    name, other = draw.choice(list(tree)), draw.choice(list(tree))
    shape = tree[name]["shape"]
    big = _raw(draw.choice(NUMBERS_JSON))
    tree[name]["shape"] = draw.choice(
        [list(tree[other]["shape"]), shape[::-1], [*shape, 1], [1] * 70 + shape, [big, *shape[1:]], [big, 0], [], [0]]
    )
    return tree


def _change_dtype(draw: random.Random, tree: Any) -> Any:
    names = ["BOOL", "U8", "I8", "F8_E4M3", "F8_E5M2", "F8_E8M0", "F4", "F6_E2M3", "I16", "U16", "F16", "BF16", "I32"]
    names += ["U32", "F32", "F64", "I64", "U64", "C64", "f32", "", "Q8_0"]
    entry, dtype = tree[draw.choice(list(tree))], draw.choice(names)
    if entry["dtype"] == "F32" and draw.random() < 0.5:  # of the same size, so that the header stays consistent
        dtype = draw.choice(["I32", "U32"])
    entry["dtype"] = dtype
    return tree


def _rename(draw: random.Random, tree: Any) -> Any:
    name, other = draw.choice(list(tree)), draw.choice(list(tree))
    tree[draw.choice([*TEXTS, other + "\x02", other + "\x02", "lm_head.weight"])] = tree.pop(name)
    return tree


def _change_length(draw: random.Random, data: bytes) -> bytes:
    size = int.from_bytes(data[:8], "little")
    other = draw.choice(
        [*ARITHMETIC, size - 1, size + 1, size // 2, len(data), len(data) - 8, 10**8, draw.randrange(size)]
    )
    return (other % 2**64).to_bytes(8, "little") + data[8:]


def _many_tensors(draw: random.Random, tree: Any) -> Any:
    end = max(entry["data_offsets"][1] for entry in tree.values())
    empty = {"dtype": "F32", "shape": [0], "data_offsets": [end, end]}
    return tree | {f"t{i}": empty for i in range(draw.choice(SIZES) // 62)}


SAFETENSORS: dict[str, Mutation] = {
    "header: " + name: _in_header(mutation)
    for name, mutation in {
        **JSON,
        "bits": flip_bits,
        "offsets": _in_tree(_change_offsets, most=1),
        "shapes": _in_tree(_change_shape, most=1),
        "types of numbers": _in_tree(_change_dtype, most=1),
        "names": _in_tree(_rename, most=1),
    }.items()
}
SAFETENSORS["header: length"] = _change_length
SAFETENSORS_MANY: dict[str, Mutation] = {
    "many tensors": _in_header(lambda draw, data: _dump(_many_tensors(draw, json.loads(data)))),
    "many values": _in_header(JSON_MANY["many values"]),
}


# GGUF, by the parts it was made of.


def _put_number(draw: random.Random, parts: Gguf, role: str) -> bytes:
    """Another number at one of the places of this role: an absurd one, one nearby, or that of another place."""
    data, marks = parts.encode()
    places = [(at, size) for name, at, size in marks if name == role]
    (at, size), (other, other_size) = draw.choice(places), draw.choice(places)
    old = int.from_bytes(data[at : at + size], "little")
    new = [*ARITHMETIC, *range(14), old + 1, old - 1, old * 2, old // 2, draw.getrandbits(8 * size)]
    new += [int.from_bytes(data[other : other + other_size], "little")] * 10
    return data[:at] + (draw.choice(new) % 256**size).to_bytes(size, "little") + data[at + size :]


def _edit_header(draw: random.Random, data: bytes) -> bytes:
    """Random bits of the part before the weights."""
    return flip_bits(draw, data[:2000]) + data[2000:]


def _change_fields(draw: random.Random, parts: Gguf) -> bytes:
    """A field of another type, absent, there twice, or with a value of its type that is absurd."""
    i, j = draw.randrange(len(parts.fields)), draw.randrange(len(parts.fields))
    key, kind, value = parts.fields[i]
    text = draw.choice(TEXTS).encode("utf-8", "surrogatepass")
    other_kind = draw.choice(list(NUMBERS))
    number = draw.randbytes(struct.calcsize(NUMBERS[other_kind]))
    floats = struct.pack("<f", draw.choice([0.0, -1.0, float("nan"), float("inf"), 1e-45, 3e38]))
    new = [(key, TEXT, gguf_text(text)), (key, other_kind, number), (key, 6, floats), (text, kind, value)]
    new += [(key, ARRAY, gguf_array(TEXT, [text] * draw.choice([0, 1, 40]))), (key, *parts.fields[j][1:])]
    new += [(key, ARRAY, struct.pack("<IQ", other_kind, 1) + number), (key, 10, struct.pack("<Q", 2**64 - 1))]
    new += [(draw.choice([b"llama.expert_count", b"llama.a\nb", b"split.count", b"general.type"]), kind, value)]
    what = draw.randrange(6)
    if what == 0:
        del parts.fields[i]
    elif what == 1:
        parts.fields.append(parts.fields[i])
    else:
        parts.fields[i] = draw.choice(new)
    return parts.encode()[0]


def _change_tokens(draw: random.Random, parts: Gguf) -> bytes:
    """Other texts, or other numbers, in the arrays of the tokenizer."""
    i = draw.choice([i for i, field in enumerate(parts.fields) if field[1] == ARRAY])
    key, _, value = parts.fields[i]
    kind, count = struct.unpack_from("<IQ", value)
    if kind == TEXT:
        items: list[Any] = [draw.choice(["a", "ab", "Ġ", "a b", "\x00", *TEXTS]) for _ in range(count)]
        items = [item.encode("utf-8", "surrogatepass") for item in items]
        kept = _texts(value)
        share = draw.choice([0.05, 0.05, 1.0])
        items = [item if draw.random() < share else old for item, old in zip(items, kept, strict=True)]
    elif kind == 6:
        items = [draw.choice([0.0, float("nan"), float("inf"), -float("inf"), 1e30, -1.0]) for _ in range(count)]
    else:
        items = [draw.choice([0, 1, 2, 3, 4, 5, 6, 7, -1, 2**31 - 1]) for _ in range(count)]
        items = [item if draw.random() < 0.1 else 1 for item in items]
    items = draw.choice([items, items, items[:-1], [*items, items[-1]]])
    parts.fields[i] = (key, ARRAY, gguf_array(kind, items))
    return parts.encode()[0]


def _texts(value: bytes) -> list[bytes]:
    found, at = [], 12
    while at < len(value):
        size = int.from_bytes(value[at : at + 8], "little")
        found.append(value[at + 8 : at + 8 + size])
        at += 8 + size
    return found


def _change_tensors(draw: random.Random, parts: Gguf) -> bytes:
    """A tensor absent, listed twice, renamed, of another type or other axes, or where another lies."""
    i, j = draw.randrange(len(parts.tensors)), draw.randrange(len(parts.tensors))
    name, axes, kind, offset = parts.tensors[i]
    other = parts.tensors[j]
    text = draw.choice(TEXTS).encode("utf-8", "surrogatepass")
    big = draw.choice(ARITHMETIC) % 2**64
    new = [(text, axes, kind, offset), (other[0], axes, kind, offset), (name, axes, draw.randrange(42), offset)]
    new += [(name, axes[::-1], kind, offset), (name, [*axes, 1][:4], kind, offset), (name, other[1], kind, offset)]
    new += [(name, axes, other[2], offset), (name, axes, kind, other[3]), (name, axes, kind, big)]
    new += [(name, [big, *axes[1:]], kind, offset), (name, [*axes[:-1], big], kind, offset)]
    new += [(name, [1] * draw.choice([0, 4, 5, 1000]), kind, offset)]
    what = draw.randrange(8)
    if what == 0:
        del parts.tensors[i]
    elif what == 1:
        parts.tensors.append((draw.choice([name, b"extra", text]), axes, kind, draw.choice([offset, len(parts.data)])))
        parts.data += bytes(1024)
    else:
        parts.tensors[i] = draw.choice(new)
    return parts.encode()[0]


def _many_parts(draw: random.Random, parts: Gguf) -> bytes:
    """A field, an array, a text or a list of tensors of a million bytes."""
    what, number, size = draw.randrange(8), draw.choice([0, 1, 7]), draw.choice(SIZES)
    if what == 0:  # one byte each
        parts.fields.append((b"x", ARRAY, struct.pack("<IQ", number, size) + b"\1" * size))
    elif what == 1:
        i = draw.choice([i for i, field in enumerate(parts.fields) if field[1] == ARRAY])
        items = [f"{i:x}".encode() for i in range(size // 12)]
        parts.fields[i] = (parts.fields[i][0], ARRAY, gguf_array(TEXT, items))
    elif what == 2:
        parts.fields += [(f"{i:x}".encode(), 0, b"\0") for i in range(size // 18)]
    elif what == 3:
        text = draw.choice([b"x" * size, b"ab" * (size // 2) + "🙂".encode(), b"\n" * size])
        i = draw.choice([i for i, field in enumerate(parts.fields) if field[1] == TEXT])
        parts.fields[i] = (parts.fields[i][0], TEXT, gguf_text(text))
    elif what == 4:  # one token of a million letters, among the others
        i = next(i for i, field in enumerate(parts.fields) if field[0] == b"tokenizer.ggml.tokens")
        tokens = _texts(parts.fields[i][2])
        tokens[-1] = draw.choice([b"a", b"ab"]) * draw.choice([200, 20000, size // 2])
        parts.fields[i] = (parts.fields[i][0], ARRAY, gguf_array(TEXT, tokens))
    elif what == 5:
        count = size // 44
        parts.tensors += [(f"{i:x}".encode(), [1], 0, len(parts.data) + 4 * i) for i in range(count)]
        parts.data += bytes(4 * count)
        i = next(i for i, field in enumerate(parts.fields) if field[0] == b"llama.block_count")
        if draw.random() < 0.5:
            parts.fields[i] = (parts.fields[i][0], 4, struct.pack("<I", count // 10))
    elif what == 6:  # as many rope divisors
        parts.tensors = [tensor for tensor in parts.tensors if tensor[0] != b"rope_freqs.weight"]
        parts.tensors.append((b"rope_freqs.weight", [size // 4], 0, len(parts.data)))
        parts.data += struct.pack("<f", 1.5) * (size // 4)
    else:
        parts.fields.append((b"llama." + b"k" * size, 4, bytes(4)))
    return parts.encode()[0]


def _of_parts(change: Callable[[random.Random, Gguf], bytes], name: str) -> Mutation:
    def mutation(draw: random.Random, data: bytes) -> bytes:
        del data  # made anew of its parts
        whole = GGUFS[name]
        parts = dataclasses.replace(whole, fields=list(whole.fields), tensors=list(whole.tensors))
        return change(draw, parts)

    return mutation


def _gguf_mutations(name: str) -> dict[str, Mutation]:
    roles = ["version", "count", "length", "type", "value", "axes", "axis", "tensor type", "offset"]
    numbers = {f"header: {role}": lambda draw, parts, role=role: _put_number(draw, parts, role) for role in roles}
    edits = {"fields": _change_fields, "tokens": _change_tokens, "tensors": _change_tensors}
    return {"header: bits": _edit_header} | {
        role: _of_parts(change, name) for role, change in {**numbers, **edits}.items()
    }


# Which file of a checkpoint is damaged, and how.

BYTES: dict[str, Mutation] = {
    "bits": flip_bits,
    "bytes": set_bytes,
    "cut short": cut_short,
    "lengthened": lengthen,
    "blocks moved": move_blocks,
}
SHARE_LARGE = 0.02  # of the cases are large


def mutations_of(kind: str, path: str) -> tuple[dict[str, Mutation], dict[str, Mutation]]:
    """The mutations of a file by name: those that leave it small, and those that make it large."""
    if path.endswith(".gguf"):
        return BYTES | _gguf_mutations(kind), {"many parts": _of_parts(_many_parts, kind)}
    if path.endswith(".safetensors"):
        return BYTES | SAFETENSORS, SAFETENSORS_MANY
    if path.endswith(".index.json"):
        return BYTES | JSON | INDEX, JSON_MANY
    if path.endswith((".json", ".zarray", "_METADATA")):
        return BYTES | JSON, JSON_MANY
    return BYTES, {}


def _target(draw: random.Random, kind: str, seed: Seed) -> str:
    wanted: dict[str, list[str]] = {
        "safetensors": ["model.safetensors"],
        "shards": ["model.safetensors.index.json"] * 4 + sorted(p for p in seed.files if p.endswith(".safetensors")),
        "config": ["config.json"] * 4 + ["generation_config.json"],
        "tokenizer": ["tokenizer.json", "tokenizer_config.json", "tokenizer_config.json"],
        "converted": ["jax_probe_mtp.json"] * 40 + sorted(path for path in seed.files if path.startswith("params/")),
    }
    return draw.choice(wanted.get(kind, ["m.gguf"]))


def damage(draw: random.Random, kind: str, seed: Seed) -> tuple[str, Files]:
    """One damaged checkpoint.

    Args:
      draw: decides all.
      kind: of the seed.
      seed: the valid checkpoint.

    Returns:
      The name of the mutation, and the files that changed.
    """
    path = _target(draw, kind, seed)
    small, large = mutations_of(kind, path)
    is_large = bool(large) and kind != "tokenizer" and draw.random() < SHARE_LARGE
    name = draw.choice(sorted(large if is_large else small))
    return name, {path: (large if is_large else small)[name](draw, seed.files[path])}
