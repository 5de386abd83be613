"""What a loaded model is: parameters, the model's configuration, its tokenizer and the ids that end a text."""

import dataclasses
from typing import Any

from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.params import Params


@dataclasses.dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model ready to decode.

    Attributes:
      params: the tree of `abstract_params(config)`, or on a mesh of `mesh.sharded_params`; all leaves of one dtype.
      config: the model.
      tokenizer: a `transformers.PreTrainedTokenizerFast`.
      eos_token_ids: the ids that end a text, at least one.
      name: where it came from, for messages and records.
    """

    params: Params
    config: ModelConfig
    tokenizer: Any
    eos_token_ids: tuple[int, ...]
    name: str
