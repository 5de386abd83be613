"""How a block's rows attend to the cache: plainly, by the fused kernel where the program is for such a GPU, or anchored."""

import functools

import jax

from jax_probe_mtp import fused_attention, layers, model
from jax_probe_mtp.config import ANCHORED, ModelConfig
from jax_probe_mtp.masks import absolute_tail, block_can_attend

_fused = jax.jit(fused_attention.block_attention, static_argnames="interpret")  # traced once for all layers


def attend_block(
    cfg: ModelConfig,
    is_visible_BRR: jax.Array,
    position_BR: jax.Array,
    length_B: jax.Array,
    start: jax.Array | int,
    num_slots: int,
    how: str,
    longest_path: int,
) -> model.Attend:
    """Attention of a block's R rows to the committed prefix and to what each may read of the block.

    Args:
      cfg: the model; static.
      is_visible_BRR: bool [B, R, R], `masks.block_visible`.
      position_BR: int32 [B, R], `masks.block_positions`.
      length_B: int32 [B], committed slots.
      start: slot of the block's first row, for all batch rows or, where R is 1, int32 [B].
      num_slots: S of the cache; static.
      how: "plain", "fused", "auto" or "anchored", `DecodeConfig.attention`; static.
      longest_path: positions from the root to the block's deepest row, masks counted; static.
    """
    if how == ANCHORED:
        window = 1 << max(longest_path - 1, 0).bit_length()
        anchor_BR, slot_BRJ, is_tail_BRJ = absolute_tail(is_visible_BRR, position_BR, length_B, start, window)
        return functools.partial(
            layers.anchored_attention, anchor_BT=anchor_BR, tail_slot_BTJ=slot_BRJ, is_tail_BTJ=is_tail_BRJ
        )
    plain = model.attend_where(block_can_attend(is_visible_BRR, length_B, start, num_slots))

    def attend(q_BTKGh: jax.Array, k_BKSh: jax.Array, v_BKSh: jax.Array) -> jax.Array:
        if how == "plain" or not fused_attention.is_supported(cfg.head_dim, q_BTKGh.dtype):
            return plain(q_BTKGh, k_BKSh, v_BKSh)

        def fused(interpret: bool, q: jax.Array, k: jax.Array, v: jax.Array) -> jax.Array:
            return _fused(q, k, v, length_B, is_visible_BRR, start, interpret=interpret)

        elsewhere = functools.partial(fused, True) if how == "fused" else plain
        return jax.lax.platform_dependent(
            q_BTKGh, k_BKSh, v_BKSh, cuda=functools.partial(fused, False), default=elsewhere
        )

    return attend
