"""How a block's rows attend to the cache: plainly, or by the fused kernel where the program is compiled for such a GPU."""

import functools

import jax

from jax_probe_mtp import fused_attention, model
from jax_probe_mtp.config import ModelConfig
from jax_probe_mtp.masks import block_can_attend

_fused = jax.jit(fused_attention.block_attention, static_argnames="interpret")  # traced once for all layers


def attend_block(
    cfg: ModelConfig,
    is_visible_BRR: jax.Array,
    length_B: jax.Array,
    start: jax.Array | int,
    num_slots: int,
    how: str,
) -> model.Attend:
    """Attention of a block's R rows to the committed prefix and to what each may read of the block.

    Args:
      cfg: the model; static.
      is_visible_BRR: bool [B, R, R], `masks.block_visible`.
      length_B: int32 [B], committed slots.
      start: slot of the block's first row, for all batch rows or, where R is 1, int32 [B].
      num_slots: S of the cache; static.
      how: "plain", "fused" or "auto", `DecodeConfig.attention`; static.
    """
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
