"""A prompt that waits for a row of a running batch, checked and laid out as arrays."""

import dataclasses

from jax_probe_mtp.decoding.batch import Batch
from jax_probe_mtp.decoding.settings import Prompt


@dataclasses.dataclass(frozen=True, kw_only=True)
class WaitingPrompt:
    """A prompt and its arrays.

    Attributes:
      number: the record's, given by whoever made the stream.
      prompt: the record.
      batch: of one row.
    """

    number: int
    prompt: Prompt
    batch: Batch

    @property
    def padded_length(self) -> int:
        """Gives T, which says which compiled prefill takes it."""
        return self.batch.prompt_BT.shape[1]
