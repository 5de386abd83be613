"""The merged draft in the size that pays: 64 rows, fewer, or none, chosen between chunks of calls while it runs."""

import dataclasses

import jax.numpy as jnp

from jax_probe_mtp.drafting.candidates import Candidates
from jax_probe_mtp.drafting.merged.keys import CONTEXT
from jax_probe_mtp.drafting.merged.learned import newest
from jax_probe_mtp.drafting.merged.source import Merged
from jax_probe_mtp.drafting.plain import Plain
from jax_probe_mtp.drafting.shown import FinishedCall, Text
from jax_probe_mtp.drafting.source import DraftSource, SourceState

FEWER_ROWS = (16, 32)


@dataclasses.dataclass(frozen=True)
class Auto(Merged):
    """Drafts as `Merged` does, with at most `rows` rows; `choice.Choice` says with how many.

    What a row knows has the same arrays in all sizes, so one can go on where another was. In a program of one's own
    (`decode`), where nobody chooses, it is `Merged` with all its rows.
    """

    @property
    def sizes(self) -> tuple[DraftSource, ...]:
        """Gives the sources among which is chosen, from the one without drafts to the largest."""
        return Resting(self), *(self._of(rows) for rows in FEWER_ROWS if rows < self.rows), self._of(self.rows)

    def _of(self, rows: int) -> Merged:
        options = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.mask_owners is not None:
            options["mask_owners"] = min(self.mask_owners, rows // 2)
        return Merged(**{**options, "rows": rows})


@dataclasses.dataclass(frozen=True)
class Resting(DraftSource):
    """Drafts nothing, as plain decoding, and keeps what a merged draft knows for later.

    Attributes:
      of: whose state it keeps.
    """

    of: Merged

    @property
    def num_candidates(self) -> int:
        return 0

    @property
    def kinds(self) -> tuple[str, ...]:
        return self.of.kinds

    @property
    def learns_shared(self) -> bool:
        return self.of.learns_shared

    def propose(self, state: SourceState, text: Text) -> Candidates:
        return Plain().propose(state, text)

    def learn(self, state: SourceState, call: FinishedCall) -> SourceState:
        """Notes the newest tokens, and learns nothing: so a call costs what one of plain decoding does."""
        text_BT = jnp.concatenate([state.rows.recent_BL, call.new_token_BP], axis=1)
        return state.replace(rows=state.rows.replace(recent_BL=newest(text_BT, CONTEXT + call.num_new_B)))
