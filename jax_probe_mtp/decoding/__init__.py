"""One batch on the device: draft, run, verify, commit."""

from jax_probe_mtp.decoding.batch import Batch, make_batch
from jax_probe_mtp.decoding.config import DecodeConfig
from jax_probe_mtp.decoding.loop import decode
from jax_probe_mtp.decoding.request import Request
from jax_probe_mtp.decoding.settings import Prompt, Settings
from jax_probe_mtp.decoding.state import DecodeResult, DecodeState

__all__ = [
    "Batch",
    "DecodeConfig",
    "DecodeResult",
    "DecodeState",
    "Prompt",
    "Request",
    "Settings",
    "decode",
    "make_batch",
]
