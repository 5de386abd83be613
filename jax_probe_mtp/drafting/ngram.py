"""The draft source prompt lookup: what followed the newest tokens when the text had them before is drafted again."""

import jax
import jax.numpy as jnp
import numpy as np

from jax_probe_mtp.drafting.candidates import NO_TOKEN, Candidates, fixed_candidates
from jax_probe_mtp.drafting.draft_config import NgramConfig


def propose(token_BT: jax.Array, root_position_B: jax.Array, cfg: NgramConfig) -> Candidates:
    """A chain: the tokens after the longest earlier match of the newest ones, in the row's own prompt and output.

    Args:
      token_BT: int32 [B, T], the text of each row; what is behind the root means nothing.
      root_position_B: int32 [B], index of the newest token.
      cfg: lengths and the choice among equals; static.

    Returns:
      `cfg.num_drafts` candidates; `NO_TOKEN` from where the text ends, or everywhere if no token was there before.
    """
    T = token_BT.shape[1]
    place_T = jnp.arange(T)
    is_earlier_BT = place_T < root_position_B[:, None]  # an earlier place of the newest token itself
    is_match_BT, match_length_BT = is_earlier_BT, jnp.zeros_like(token_BT)
    for back in range(cfg.max_ngram):  # match_length[j]: how many tokens up to place j equal those up to the root
        newest_B1 = jnp.take_along_axis(token_BT, jnp.maximum(root_position_B - back, 0)[:, None], axis=1)
        behind_BT = jnp.roll(token_BT, back, axis=1)
        is_match_BT &= (behind_BT == newest_B1) & (place_T >= back)  # j < root, so the root has as many behind it
        match_length_BT += is_match_BT
    if cfg.match == "first":
        end_B = jnp.argmax(match_length_BT, axis=1)
    else:
        end_B = T - 1 - jnp.argmax(match_length_BT[:, ::-1], axis=1)
    is_found_B1 = jnp.max(match_length_BT, axis=1, keepdims=True) > 0
    place_BP = end_B[:, None] + 1 + jnp.arange(cfg.num_drafts)
    is_text_BP = is_found_B1 & (place_BP <= root_position_B[:, None])
    token_BP = jnp.take_along_axis(token_BT, jnp.minimum(place_BP, T - 1), axis=1)
    depth_P = np.arange(1, cfg.num_drafts + 1)
    return fixed_candidates(jnp.where(is_text_BP, token_BP, NO_TOKEN), parent_P=depth_P - 2, depth_P=depth_P)
