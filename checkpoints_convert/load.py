"""Opens a model of any kind, and loads it."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from jax.sharding import Mesh

from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.gguf.model import open_gguf
from checkpoints_convert.huggingface.hub import folder_of
from checkpoints_convert.huggingface.model import open_hf
from checkpoints_convert.huggingface.tokenizer import load_hf_tokenizer
from checkpoints_convert.mapping.ends import given_ids
from checkpoints_convert.mapping.tensor_source import OpenedModel
from checkpoints_convert.params.fill import check_numbers, read_params
from checkpoints_convert.params.folder import is_converted, read_metadata
from checkpoints_convert.params.stored_params import load_params
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.config import DATA, TENSOR, ModelConfig
from jax_probe_mtp.model.mesh import check_mesh
from jax_probe_mtp.model.params import Params, format_name


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenedCheckpoint:
    """A model of which all but the weights was read: enough to count its memory and to make tokens of a text.

    Attributes:
      config: the model.
      tokenizer: a `transformers.PreTrainedTokenizerFast`.
      eos_token_ids: the ids that end a text, at least one.
      name: where it came from, for messages and records.
      dtype: "float32" or "bfloat16", what the weights become.
      weights: "int8" where the matrices become `Int8`, else None.
      generation_defaults: sampling and penalties that the model asks for; told, and applied on demand.
      read_params: reads the weights onto the default device (None) or a mesh; `load` is the way to ask for it.
    """

    config: ModelConfig
    tokenizer: Any
    eos_token_ids: tuple[int, ...]
    name: str
    dtype: str
    weights: str | None
    read_params: Callable[[Mesh | None], Params]
    generation_defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def number_format(self) -> str:
        """Names the numbers as `Checkpoint.number_format` will."""
        return format_name(self.dtype, self.weights)

    def load(self, mesh: Mesh | None = None) -> Checkpoint:
        """Reads the weights.

        Args:
          mesh: devices on the axes `DATA` and `TENSOR` to split them over, as `mesh.make_mesh` gives; of a run of several
            processes, each reads its devices' part. None is JAX's default device.

        Returns:
          The checkpoint; on a mesh its parameters are those of `mesh.sharded_params`.

        Raises:
          CheckpointError: if weights are missing, damaged or not supported.
          ValueError: if the mesh does not split the model into equal parts.
        """
        if mesh is not None:
            rows = mesh.shape[DATA]  # there is no batch yet: as if of one row each
            check_mesh(self.config, rows, rows, mesh.shape[TENSOR])
        return Checkpoint(
            params=self.read_params(mesh),
            config=self.config,
            tokenizer=self.tokenizer,
            eos_token_ids=self.eos_token_ids,
            name=self.name,
            generation_defaults=self.generation_defaults,
        )


def load_checkpoint(
    model: str | Path,
    *,
    dtype: str | None = None,
    weights: str | None = None,
    revision: str | None = None,
    endpoint: str | None = None,
    eos_token_ids: Sequence[int] | None = None,
    mesh: Mesh | None = None,
) -> Checkpoint:
    """Loads a model ready to decode: `open_checkpoint` and `OpenedCheckpoint.load`, whose arguments and errors it has."""
    opened = open_checkpoint(
        model, dtype=dtype, weights=weights, revision=revision, endpoint=endpoint, eos_token_ids=eos_token_ids
    )
    return opened.load(mesh)


def open_checkpoint(
    model: str | Path,
    *,
    dtype: str | None = None,
    weights: str | None = None,
    revision: str | None = None,
    endpoint: str | None = None,
    eos_token_ids: Sequence[int] | None = None,
) -> OpenedCheckpoint:
    """Opens a model, reading its configuration and tokenizer and none of its weights.

    Args:
      model: a folder made by `checkpoints-convert`, a Hugging Face folder, a .gguf file, or a hub id `org/name`.
      dtype: "float32" or "bfloat16"; None keeps what the source has (a quantized GGUF becomes float32). Embedding, norms,
        cache and all that is computed have it.
      weights: "int8" rounds the layers' matrices and the head to eight bits, one scale a column; None keeps what the source
        has.
      revision: branch, tag or commit of a hub id.
      endpoint: address of the hub; None for huggingface_hub's own.
      eos_token_ids: ids that end a text; None for those that the model names.

    Returns:
      The opened model.

    Raises:
      CheckpointError: if the model is missing, damaged or not supported.
    """
    check_numbers(dtype, weights)
    path = Path(model)
    if is_converted(path) and revision is None:
        metadata = read_metadata(path)
        if metadata.weights and dtype not in (None, metadata.dtype):
            raise CheckpointError(
                f"{path} holds {metadata.weights} weights for {metadata.dtype}, not for {dtype}; leave the dtype out, or "
                f"convert its source again with that dtype."
            )
        dtype, weights = dtype or metadata.dtype, weights or metadata.weights
        if eos_token_ids is None:
            eos_token_ids = metadata.eos_token_ids
        return OpenedCheckpoint(
            config=metadata.config,
            tokenizer=load_hf_tokenizer(path),
            eos_token_ids=given_ids(eos_token_ids, metadata.config.vocab_size),
            name=str(model),
            dtype=dtype,
            weights=weights,
            read_params=functools.partial(
                load_params,
                path,
                metadata.config,
                dtype,
                weights,
                stored_weights=metadata.weights,
                version=metadata.version,
            ),
            generation_defaults=metadata.generation_defaults,
        )
    opened = open_source(model, revision=revision, endpoint=endpoint, eos_token_ids=eos_token_ids)
    dtype = dtype or opened.dtype
    return OpenedCheckpoint(
        config=opened.config,
        tokenizer=opened.load_tokenizer(),
        eos_token_ids=opened.eos_token_ids,
        name=str(model),
        dtype=dtype,
        weights=weights,
        read_params=functools.partial(read_params, opened, dtype, weights),
        generation_defaults=opened.generation_defaults,
    )


def open_source(
    model: str | Path,
    *,
    revision: str | None = None,
    endpoint: str | None = None,
    eos_token_ids: Sequence[int] | None = None,
) -> OpenedModel:
    """Opens a GGUF file, a Hugging Face folder or a hub id."""
    path = Path(model)
    if path.is_file() and revision is None:
        if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".pkl"):
            raise CheckpointError(f"{path} is pickled, which can run code and is never read; save it as safetensors.")
        if path.suffix == ".safetensors":
            raise CheckpointError(f"{path} holds weights alone; give the folder it is in.")
        return open_gguf(path, eos_token_ids)
    return open_hf(folder_of(model, revision=revision, endpoint=endpoint), eos_token_ids)
