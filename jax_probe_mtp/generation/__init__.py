"""Prompts in, answers out, with all rows kept busy."""

from jax_probe_mtp.generation.answers import Generation, Stats
from jax_probe_mtp.generation.api import generate, stream
from jax_probe_mtp.generation.decoder import Decoder

__all__ = [
    "Decoder",
    "Generation",
    "Stats",
    "generate",
    "stream",
]
