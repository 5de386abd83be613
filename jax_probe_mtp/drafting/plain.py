"""Plain decoding as a draft source: nothing is drafted, each call gives one token."""

import dataclasses

import jax.numpy as jnp

from jax_probe_mtp.drafting.candidates import Candidates
from jax_probe_mtp.drafting.shown import Text
from jax_probe_mtp.drafting.source import DraftSource, SourceState


@dataclasses.dataclass(frozen=True)
class Plain(DraftSource):
    """Drafts nothing: the tree is the root alone."""

    @property
    def num_candidates(self) -> int:
        return 0

    def propose(self, state: SourceState, text: Text) -> Candidates:
        nothing_B0 = jnp.zeros((text.token_BT.shape[0], 0), jnp.int32)
        return Candidates(
            token_BP=nothing_B0,
            parent_BP=nothing_B0,
            depth_BP=nothing_B0,
            score_BP=nothing_B0.astype(jnp.float32),
            kind_BP=nothing_B0,
        )
