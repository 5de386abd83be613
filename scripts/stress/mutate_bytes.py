"""Damages any file by its bytes; and holds the absurd values that the damage to other formats draws from.

A mutation takes a random generator and what a file holds, and gives what it holds afterwards. Nothing else decides what
comes out, so that a case is known by its seed and its number.
"""

import random
from collections.abc import Callable

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
ARITHMETIC = [0, 1, 2, 3, 7, 31, 32, 33, 255, 2**15, 2**16, 2**31, 2**32, 2**40, 2**62, 2**63, 2**64]
SIZES = [1_000_000, 4 << 20, 16 << 20]  # bytes that a large case is grown by, so that memory shows


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


BYTES: dict[str, Mutation] = {
    "bits": flip_bits,
    "bytes": set_bytes,
    "cut short": cut_short,
    "lengthened": lengthen,
    "blocks moved": move_blocks,
}
