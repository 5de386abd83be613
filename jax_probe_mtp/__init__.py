"""Training-free, lossless multi-token prediction for Llama and Qwen models in JAX."""

from jax_probe_mtp.decoding.batch import make_batch
from jax_probe_mtp.decoding.loop import decode
from jax_probe_mtp.decoding.settings import Prompt, Settings
from jax_probe_mtp.drafting.probe import Probe
from jax_probe_mtp.drafting.source import DraftSource
from jax_probe_mtp.generation.api import generate, stream
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.params import abstract_params, check_params, quantize_params
from jax_probe_mtp.sameness.verified_file import verify_file

__all__ = [
    "Checkpoint",
    "DraftSource",
    "ModelConfig",
    "Probe",
    "Prompt",
    "Settings",
    "abstract_params",
    "check_params",
    "decode",
    "generate",
    "make_batch",
    "quantize_params",
    "stream",
    "verify_file",
]
