"""Training-free, lossless multi-token prediction for Llama and Qwen models in JAX."""

from jax_probe_mtp.checkpoint import Checkpoint
from jax_probe_mtp.config import DecodeConfig, ModelConfig
from jax_probe_mtp.decode_loop import decode
from jax_probe_mtp.draft_config import NgramConfig, ProbeConfig, RecycleConfig
from jax_probe_mtp.generation import Settings, generate, stream
from jax_probe_mtp.request import make_request

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
