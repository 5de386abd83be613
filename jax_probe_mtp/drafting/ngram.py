"""The draft source prompt lookup: it drafts again what followed the newest tokens when the text had them before."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from jax_probe_mtp.drafting.candidates import NO_TOKEN, Candidates, chain
from jax_probe_mtp.drafting.shown import Text
from jax_probe_mtp.drafting.source import DraftSource, SourceState, check_whole

MATCHES = ("recent", "first")
MAX_NGRAM = 16
MAX_DRAFTS = 64
# How often drafts at depth 1, 2, ... were accepted, of 2,888 calls of SmolLM2-135M and Qwen2.5-Coder-0.5B on 26 questions
# (docs/results, ngram:10); further down each is accepted about as often as the deepest of these after the one before it.
ACCEPTED = (0.144, 0.083, 0.059, 0.045, 0.036, 0.032, 0.027, 0.025, 0.021, 0.018)


@dataclasses.dataclass(frozen=True)
class Ngram(DraftSource):
    """Drafts the text after an earlier occurrence of the newest tokens, a chain.

    Attributes:
      num_drafts: tokens of the chain at most.
      max_ngram: n, the most tokens that are compared; the longest match is taken, down to one token.
      match: which of several equally long matches: the "recent" one or the "first". With `max_ngram` 2, "first" is
        transformers' rule; "recent" needs fewer calls (docs/results).

    Source: prompt lookup decoding (github.com/apoorvumang/prompt-lookup-decoding), as in transformers.
    """

    num_drafts: int = 10
    max_ngram: int = 5
    match: str = "recent"

    def __post_init__(self) -> None:
        check_whole("num_drafts", self.num_drafts, 1, MAX_DRAFTS)
        check_whole("max_ngram", self.max_ngram, 1, MAX_NGRAM)
        if self.match not in MATCHES:
            raise ValueError(f"match must be one of {', '.join(MATCHES)}, got {self.match!r}.")

    @property
    def num_candidates(self) -> int:
        return self.num_drafts

    def propose(self, state: SourceState, text: Text) -> Candidates:
        """Lists the tokens after the longest earlier match of the newest ones, in the row's own prompt and output.

        `NO_TOKEN` stands from where the text ends, and everywhere if no token was there before. Scores are measured means:
        a match says nothing of its own chances.
        """
        token_BT, root_position_B = text.token_BT, text.root_position_B
        T = token_BT.shape[1]
        place_1T = jnp.arange(T)[None]
        is_earlier_BT = place_1T < root_position_B[:, None]  # an earlier place of the newest token itself
        is_match_BT, match_length_BT = is_earlier_BT, jnp.zeros_like(token_BT)
        for back in range(self.max_ngram):  # match_length[j]: how many tokens up to place j equal those up to the root
            newest_B1 = jnp.take_along_axis(token_BT, jnp.maximum(root_position_B - back, 0)[:, None], axis=1)
            behind_BT = jnp.roll(token_BT, back, axis=1)
            is_match_BT &= (behind_BT == newest_B1) & (place_1T >= back)  # j < root, so the root has as many behind it
            match_length_BT += is_match_BT.astype(jnp.int32)
        if self.match == "first":
            end_B = jnp.argmax(match_length_BT, axis=1)
        else:
            end_B = T - 1 - jnp.argmax(match_length_BT[:, ::-1], axis=1)
        is_found_B1 = jnp.max(match_length_BT, axis=1, keepdims=True) > 0
        place_BP = end_B[:, None] + 1 + jnp.arange(self.num_drafts)[None]
        is_text_BP = is_found_B1 & (place_BP <= root_position_B[:, None])
        token_BP = jnp.take_along_axis(token_BT, jnp.minimum(place_BP, T - 1), axis=1)
        score_BP = jnp.broadcast_to(_log_accepted(self.num_drafts), token_BP.shape)
        return chain(jnp.where(is_text_BP, token_BP, NO_TOKEN), score_BP)


def _log_accepted(num_drafts: int) -> np.ndarray:
    """Gives the logarithm of the share of calls that accept a draft at depth 1, 2, ..., float32 [P]."""
    depth_P = np.arange(num_drafts)
    further_P = np.maximum(depth_P - len(ACCEPTED) + 1, 0)
    last_step = ACCEPTED[-1] / ACCEPTED[-2]
    share_P = np.asarray(ACCEPTED)[np.minimum(depth_P, len(ACCEPTED) - 1)] * last_step**further_P
    return np.log(share_P).astype(np.float32)
