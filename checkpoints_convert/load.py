"""Loads a model of any kind."""

from pathlib import Path

import jax
import numpy as np

from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.fill import DTYPES, read_params
from checkpoints_convert.folder import METADATA, read_metadata
from checkpoints_convert.gguf_model import open_gguf
from checkpoints_convert.hf_model import load_hf_tokenizer, open_hf
from checkpoints_convert.hub import folder_of
from checkpoints_convert.sources import OpenedModel
from checkpoints_convert.stored_params import load_params
from jax_probe_mtp.checkpoint import Checkpoint


def load_checkpoint(
    model: str | Path, *, dtype: str | None = None, revision: str | None = None, endpoint: str | None = None
) -> Checkpoint:
    """Loads a model ready to decode.

    Args:
      model: a folder made by `checkpoints-convert`, a Hugging Face folder, a .gguf file, or a hub id `org/name`.
      dtype: "float32" or "bfloat16"; None keeps what the source has (a quantized GGUF becomes float32).
      revision: branch, tag or commit of a hub id.
      endpoint: address of the hub; None for huggingface_hub's own.

    Returns:
      The checkpoint, its parameters on JAX's default device.

    Raises:
      CheckpointError: if the model is missing, damaged or not supported.
    """
    if dtype not in (None, *DTYPES):
        raise CheckpointError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    path = Path(model)
    if (path / METADATA).is_file() and revision is None:
        return _load_converted(path, dtype, str(model))
    opened = open_source(model, revision=revision, endpoint=endpoint)
    tokenizer = opened.load_tokenizer()
    params = read_params(opened, dtype or opened.dtype, _to_device)
    return Checkpoint(
        params=params,
        config=opened.config,
        tokenizer=tokenizer,
        eos_token_ids=opened.eos_token_ids,
        name=str(model),
    )


def open_source(model: str | Path, *, revision: str | None = None, endpoint: str | None = None) -> OpenedModel:
    """Opens a GGUF file, a Hugging Face folder or a hub id."""
    path = Path(model)
    if path.is_file() and revision is None:
        if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
            raise CheckpointError(f"{path} is pickled, which can run code and is never read; save it as safetensors.")
        if path.suffix == ".safetensors":
            raise CheckpointError(f"{path} holds weights alone; give the folder it is in.")
        return open_gguf(path)
    return open_hf(folder_of(model, revision=revision, endpoint=endpoint))


def _to_device(leaf: np.ndarray) -> jax.Array:
    return jax.block_until_ready(jax.device_put(leaf))  # only then can the host's copy go


def _load_converted(folder: Path, dtype: str | None, name: str) -> Checkpoint:
    metadata = read_metadata(folder)
    return Checkpoint(
        params=load_params(folder, metadata.config, dtype or metadata.dtype),
        config=metadata.config,
        tokenizer=load_hf_tokenizer(folder),
        eos_token_ids=metadata.eos_token_ids,
        name=name,
    )
