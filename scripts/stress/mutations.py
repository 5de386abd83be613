"""Chooses which file of a checkpoint scripts/stress/loaders.py damages, and how."""

import random

from mutate_bytes import BYTES, Mutation
from mutate_gguf import gguf_mutations, many_parts, of_parts
from mutate_json import INDEX, JSON, JSON_MANY
from mutate_safetensors import SAFETENSORS, SAFETENSORS_MANY
from seeds import OTHER_FAMILIES, Files, Seed

SHARE_LARGE = 0.02  # of the cases are large


def mutations_of(kind: str, path: str) -> tuple[dict[str, Mutation], dict[str, Mutation]]:
    """Gives the mutations of a file by name: those that leave it small, and those that make it large."""
    if path.endswith(".gguf"):
        return BYTES | gguf_mutations(kind), {"many parts": of_parts(many_parts, kind)}
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
        **{kind: ["config.json"] for kind in OTHER_FAMILIES},
        "tokenizer": ["tokenizer.json", "tokenizer_config.json", "tokenizer_config.json"],
        "converted": ["jax_probe_mtp.json"] * 40 + sorted(path for path in seed.files if path.startswith("params/")),
    }
    return draw.choice(wanted.get(kind, ["m.gguf"]))


def damage(draw: random.Random, kind: str, seed: Seed) -> tuple[str, Files]:
    """Damages one file of a checkpoint.

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
