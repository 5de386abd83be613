"""Reads Hugging Face and GGUF checkpoints of Llama and Qwen models into the parameters of `jax_probe_mtp`."""

from checkpoints_convert.convert import convert_gguf, convert_hf
from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.info import Info, read_info
from checkpoints_convert.load import OpenedCheckpoint, load_checkpoint, open_checkpoint
from checkpoints_convert.params.folder import is_converted

__all__ = [
    "CheckpointError",
    "Info",
    "OpenedCheckpoint",
    "convert_gguf",
    "convert_hf",
    "is_converted",
    "load_checkpoint",
    "open_checkpoint",
    "read_info",
]
