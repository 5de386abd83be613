"""Tells what a checkpoint is without loading its weights."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from checkpoints_convert.load import open_source
from checkpoints_convert.mapping.ends import given_ids
from checkpoints_convert.params.fill import plan
from checkpoints_convert.params.folder import is_converted, read_metadata
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.params import abstract_params, format_name

GB = 10**9


@dataclasses.dataclass(frozen=True, kw_only=True)
class Info:
    """A checkpoint in numbers.

    Attributes:
      kind: "converted", "hf" or "gguf".
      config: the model.
      num_params: numbers in all parameters; a tied head is counted once.
      dtype: what the parameters are once loaded.
      weights: "int8" where matrices are `Int8`, else None.
      num_bytes: their size once loaded.
      types: the types of the weights in the file.
      eos_token_ids: ids that end a text.
    """

    kind: str
    config: ModelConfig
    num_params: int
    dtype: str
    weights: str | None
    num_bytes: int
    types: tuple[str, ...]
    eos_token_ids: tuple[int, ...]

    @property
    def kv_bytes_per_token(self) -> int:
        """Gives the size of one token's keys and values over all layers, 2 K h L numbers."""
        cfg = self.config
        return 2 * cfg.num_kv_heads * cfg.head_dim * cfg.num_layers * np.dtype(jax.numpy.dtype(self.dtype)).itemsize

    def __str__(self) -> str:
        cfg = self.config
        rope = f"theta {cfg.rope_theta:g}"
        if cfg.rope_divisors:
            rope += f", frequencies divided by {min(cfg.rope_divisors):g} to {max(cfg.rope_divisors):g}"
        if cfg.rope_scale != 1:
            rope += f", scaled by {cfg.rope_scale:g}"
        if cfg.no_rope_layers:
            rope += f", not in layers {', '.join(map(str, cfg.no_rope_layers))}"
        lines = {
            "kind": f"{self.kind} ({', '.join(self.types)})",
            "architecture": f"{cfg.family}: {cfg.num_layers} layers, width {cfg.width}, mlp {cfg.mlp_width}, "
            f"{cfg.num_heads} query and {cfg.num_kv_heads} kv heads of {cfg.head_dim}, vocabulary {cfg.vocab_size}, "
            f"{'tied' if cfg.is_tied else 'separate'} head",
            "rope": rope,
            "parameters": f"{self.num_params:,}",
            "dtype": format_name(self.dtype, self.weights),
            "size": f"{self.num_bytes / GB:.2f} GB",
            "context length": f"{cfg.context_length:,} tokens",
            "end-of-text ids": ", ".join(map(str, self.eos_token_ids)),
            "KV cache": f"{self.kv_bytes_per_token:,} bytes a token, {GB // self.kv_bytes_per_token:,} tokens per GB",
        }
        return "\n".join(f"{key + ':':17}{value}" for key, value in lines.items())


def read_info(path: str | Path, *, eos_token_ids: Sequence[int] | None = None) -> Info:
    """Describes a converted folder, a Hugging Face folder or a GGUF file.

    Args:
      path: the folder or file.
      eos_token_ids: ids that end a text; None for those that it names.

    Returns:
      Its numbers; only headers and configuration are read.

    Raises:
      CheckpointError: if it is missing, damaged or not supported.
    """
    if is_converted(Path(path)):
        metadata = read_metadata(Path(path))
        kind, cfg, dtype, eos = "converted", metadata.config, metadata.dtype, metadata.eos_token_ids
        weights = metadata.weights
        if eos_token_ids is not None:
            eos = given_ids(eos_token_ids, cfg.vocab_size)
        types: tuple[str, ...] = (f"from {metadata.source.get('kind')}", *map(str, metadata.source.get("files", ())))
    else:
        model = open_source(path, eos_token_ids=eos_token_ids)
        plan(model)  # names and shapes must fit, or the numbers below would be of another model
        kind, cfg, dtype, eos = str(model.description["kind"]), model.config, model.dtype, model.eos_token_ids
        types, weights = tuple(model.description["types"]), None
    leaves = jax.tree.leaves(abstract_params(cfg, jax.numpy.dtype(dtype), weights))
    return Info(
        kind=kind,
        config=cfg,
        num_params=sum(leaf.size for leaf in jax.tree.leaves(abstract_params(cfg))),
        dtype=dtype,
        weights=weights,
        num_bytes=sum(leaf.size * leaf.dtype.itemsize for leaf in leaves),
        types=types,
        eos_token_ids=eos,
    )
