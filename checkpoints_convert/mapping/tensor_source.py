"""Defines what every kind of checkpoint looks like from inside: an opened model, and tensors read in blocks."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy as np

from checkpoints_convert.mapping.names import Row
from jax_probe_mtp.model.config import ModelConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class TensorInfo:
    """A tensor in a file.

    Attributes:
      shape: its shape, slowest axis first.
      dtype: the file's name for its type, such as "BF16" or "Q4_K".
      file: the file that holds it, for messages.
    """

    shape: tuple[int, ...]
    dtype: str
    file: str


class TensorSource(Protocol):
    """The tensors of a checkpoint; the code that fills parameters knows no more of a format than this."""

    @property
    def readable(self) -> tuple[str, ...]:
        """Gives the types, by the file's names for them, that `read` can give."""

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        """Gives every tensor by its name in the file."""

    def read(self, name: str, start: int, stop: int, columns: range | None = None) -> np.ndarray:
        """Reads rows `start` to `stop` of a tensor's first axis, as float32, float16 or bfloat16.

        With `columns`, which only a matrix has, those of its second axis; None is all.
        """


@dataclasses.dataclass(frozen=True, kw_only=True)
class OpenedModel:
    """A checkpoint whose configuration was read and whose weights were not.

    Attributes:
      config: the model.
      eos_token_ids: ids that end a text, at least one.
      source: its tensors.
      rows: which tensor goes where.
      ignored: tensors that may be present and are not weights, as regular expressions.
      dtype: "float32" or "bfloat16", what the weights become unless asked otherwise.
      where: the folder or file, for messages.
      description: kind and file names, for the record.
      load_tokenizer: builds the `transformers.PreTrainedTokenizerFast`.
      generation_defaults: sampling and penalties that the source asks for, by transformers' names.
      check_weights: what opening did not check because it means reading weights; raises CheckpointError.
    """

    config: ModelConfig
    eos_token_ids: tuple[int, ...]
    source: TensorSource
    rows: tuple[Row, ...]
    ignored: tuple[str, ...]
    dtype: str
    where: str
    description: dict[str, Any]
    load_tokenizer: Callable[[], Any]
    generation_defaults: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    check_weights: Callable[[], None] = lambda: None
