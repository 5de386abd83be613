"""Damages a safetensors file by its parts: the length of the header in 8 bytes, the header, the numbers."""

import json
import random
from typing import Any

from mutate_bytes import ARITHMETIC, SIZES, TEXTS, Mutation, flip_bits
from mutate_json import JSON, JSON_MANY, NUMBERS_JSON, dump, in_tree, raw


def _in_header(change: Mutation) -> Mutation:
    def mutation(draw: random.Random, data: bytes) -> bytes:
        size = int.from_bytes(data[:8], "little")
        header = change(draw, data[8 : 8 + size])
        if draw.random() < 0.5:
            header += b" " * (-len(header) % 8)
        return len(header).to_bytes(8, "little") + header + data[8 + size :]

    return mutation


def _change_offsets(draw: random.Random, tree: Any) -> Any:
    """Makes offsets that overlap, run backwards, leave a gap or leave the file."""
    name, other = draw.choice(list(tree)), draw.choice(list(tree))
    offsets = tree[name]["data_offsets"]
    big = raw(draw.choice(NUMBERS_JSON))
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
    big = raw(draw.choice(NUMBERS_JSON))
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
        "offsets": in_tree(_change_offsets, most=1),
        "shapes": in_tree(_change_shape, most=1),
        "types of numbers": in_tree(_change_dtype, most=1),
        "names": in_tree(_rename, most=1),
    }.items()
}
SAFETENSORS["header: length"] = _change_length
SAFETENSORS_MANY: dict[str, Mutation] = {
    "many tensors": _in_header(lambda draw, data: dump(_many_tensors(draw, json.loads(data)))),
    "many values": _in_header(JSON_MANY["many values"]),
}
