"""Plain decoding as a draft source: nothing is drafted, each call gives one token."""

import dataclasses

import jax.numpy as jnp

from jax_probe_mtp.drafting.candidates import Candidates, chain
from jax_probe_mtp.drafting.shown import Text
from jax_probe_mtp.drafting.source import DraftSource, SourceState


@dataclasses.dataclass(frozen=True)
class Plain(DraftSource):
    """Drafts nothing: the tree is the root alone."""

    @property
    def num_candidates(self) -> int:
        return 0

    def propose(self, state: SourceState, text: Text) -> Candidates:
        return chain(jnp.zeros((text.token_BT.shape[0], 0), jnp.int32))
