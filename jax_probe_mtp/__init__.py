"""Training-free, lossless multi-token prediction for Llama and Qwen models in JAX."""

from jax_probe_mtp.decoding.batch import make_request
from jax_probe_mtp.decoding.step import decode
from jax_probe_mtp.drafting.draft_config import NgramConfig, ProbeConfig, RecycleConfig
from jax_probe_mtp.generation.decoder import Settings, generate, stream
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.config import DecodeConfig, ModelConfig

__all__ = [
    "Checkpoint",
    "DecodeConfig",
    "ModelConfig",
    "NgramConfig",
    "ProbeConfig",
    "RecycleConfig",
    "Settings",
    "decode",
    "generate",
    "make_request",
    "stream",
]
