"""A loaded model: parameters, the model's configuration, its tokenizer and the ids that end a text."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax

from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.params import Params, format_name, weights_of


@dataclasses.dataclass(frozen=True, kw_only=True, repr=False)
class Checkpoint:
    """A model ready to decode.

    Attributes:
      params: the tree of `abstract_params(config)`, or on a mesh of `mesh.sharded_params`; all arrays of one dtype, but
        those of matrices of eight bits (`params.Int8`).
      config: the model.
      tokenizer: a `transformers.PreTrainedTokenizerFast`; None where prompts come as token ids.
      eos_token_ids: the ids that end a text, at least one.
      name: where it came from, for messages and records.
      generation_defaults: sampling and penalties that the model asks for, by transformers' names; told, and applied on demand.
    """

    params: Params
    config: ModelConfig
    tokenizer: Any
    eos_token_ids: tuple[int, ...]
    name: str
    generation_defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    def __repr__(self) -> str:
        """Says in one line what it is, without the values of the weights."""
        cfg = self.config
        size = sum(leaf.size for leaf in jax.tree.leaves(self.params))
        return (
            f"Checkpoint({self.name!r}, {cfg.family}, {cfg.num_layers} layers of width {cfg.width}, {size:,} parameters, "
            f"{self.number_format})"
        )

    @property
    def number_format(self) -> str:
        """Names the numbers of the model for records and messages: "bfloat16", or "bfloat16, int8 weights"."""
        return format_name(str(self.params["embed"].dtype), weights_of(self.params))
