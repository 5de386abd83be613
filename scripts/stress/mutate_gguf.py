"""Damages a GGUF file by the parts it was made of."""

import dataclasses
import random
import struct
from collections.abc import Callable
from typing import Any

from mutate_bytes import ARITHMETIC, SIZES, TEXTS, Mutation, flip_bits
from seeds import ARRAY, GGUFS, NUMBERS, TEXT, Gguf, gguf_array, gguf_text

FIELDS = [b"llama.expert_count", b"llama.a\nb", b"split.count", b"general.type", b"llama.attention.sliding_window"]
FIELDS += [b"smollm3.rope.scaling." + key for key in (b"type", b"factor", b"attn_factor", b"yarn_beta_slow", b"alpha")]


def _put_number(draw: random.Random, parts: Gguf, role: str) -> bytes:
    """Puts another number at one of the places of this role: an absurd one, one nearby, or that of another place."""
    data, marks = parts.encode()
    places = [(at, size) for name, at, size in marks if name == role]
    (at, size), (other, other_size) = draw.choice(places), draw.choice(places)
    old = int.from_bytes(data[at : at + size], "little")
    new = [*ARITHMETIC, *range(14), old + 1, old - 1, old * 2, old // 2, draw.getrandbits(8 * size)]
    new += [int.from_bytes(data[other : other + other_size], "little")] * 10
    return data[:at] + (draw.choice(new) % 256**size).to_bytes(size, "little") + data[at + size :]


def _edit_header(draw: random.Random, data: bytes) -> bytes:
    """Flips random bits of the part before the weights."""
    return flip_bits(draw, data[:2000]) + data[2000:]


def _change_fields(draw: random.Random, parts: Gguf) -> bytes:
    """Makes a field of another type, absent, there twice, or of a value of its type that is absurd."""
    i, j = draw.randrange(len(parts.fields)), draw.randrange(len(parts.fields))
    key, kind, value = parts.fields[i]
    text = draw.choice(TEXTS).encode("utf-8", "surrogatepass")
    other_kind = draw.choice(list(NUMBERS))
    number = draw.randbytes(struct.calcsize(NUMBERS[other_kind]))
    floats = struct.pack("<f", draw.choice([0.0, -1.0, float("nan"), float("inf"), 1e-45, 3e38]))
    new = [(key, TEXT, gguf_text(text)), (key, other_kind, number), (key, 6, floats), (text, kind, value)]
    new += [(key, ARRAY, gguf_array(TEXT, [text] * draw.choice([0, 1, 40]))), (key, *parts.fields[j][1:])]
    new += [(key, ARRAY, struct.pack("<IQ", other_kind, 1) + number), (key, 10, struct.pack("<Q", 2**64 - 1))]
    new += [(draw.choice(FIELDS), kind, value)]
    what = draw.randrange(6)
    if what == 0:
        del parts.fields[i]
    elif what == 1:
        parts.fields.append(parts.fields[i])
    else:
        parts.fields[i] = draw.choice(new)
    return parts.encode()[0]


def _change_tokens(draw: random.Random, parts: Gguf) -> bytes:
    """Puts other texts, or other numbers, into the arrays of the tokenizer."""
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
    """Makes a tensor absent, listed twice, renamed, of another type or other axes, or lie where another does."""
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


def many_parts(draw: random.Random, parts: Gguf) -> bytes:
    """Makes a field, an array, a text or a list of tensors of a million bytes."""
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
        i = next(i for i, field in enumerate(parts.fields) if field[0].endswith(b".block_count"))
        if draw.random() < 0.5:
            parts.fields[i] = (parts.fields[i][0], 4, struct.pack("<I", count // 10))
    elif what == 6:  # as many rope divisors
        parts.tensors = [tensor for tensor in parts.tensors if tensor[0] != b"rope_freqs.weight"]
        parts.tensors.append((b"rope_freqs.weight", [size // 4], 0, len(parts.data)))
        parts.data += struct.pack("<f", 1.5) * (size // 4)
    else:
        parts.fields.append((b"llama." + b"k" * size, 4, bytes(4)))
    return parts.encode()[0]


def of_parts(change: Callable[[random.Random, Gguf], bytes], name: str) -> Mutation:
    def mutation(draw: random.Random, data: bytes) -> bytes:
        del data  # made anew of its parts
        whole = GGUFS[name]
        parts = dataclasses.replace(whole, fields=list(whole.fields), tensors=list(whole.tensors))
        return change(draw, parts)

    return mutation


def gguf_mutations(name: str) -> dict[str, Mutation]:
    roles = ["version", "count", "length", "type", "value", "axes", "axis", "tensor type", "offset"]
    numbers = {f"header: {role}": lambda draw, parts, role=role: _put_number(draw, parts, role) for role in roles}
    edits = {"fields": _change_fields, "tokens": _change_tokens, "tensors": _change_tensors}
    return {"header: bits": _edit_header} | {
        role: of_parts(change, name) for role, change in {**numbers, **edits}.items()
    }
