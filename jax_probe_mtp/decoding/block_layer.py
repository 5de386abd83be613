"""How a block's rows go through a layer: plainly, by the GPU kernels where the program is for such a GPU, or anchored."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jax_probe_mtp.decoding.block import absolute_tail, block_can_attend
from jax_probe_mtp.kernels import attention, tiles
from jax_probe_mtp.model import fused_layer, layers, transformer
from jax_probe_mtp.model.config import ANCHORED, ModelConfig


def block_layer(
    cfg: ModelConfig,
    dtype: jnp.dtype,
    is_visible_BRR: jax.Array,
    position_BR: jax.Array,
    length_B: jax.Array,
    start: jax.Array | int,
    num_slots: int,
    how: str,
    longest_path: int,
) -> transformer.RunLayer:
    """A layer for a block of R rows that attend to the committed prefix and to what each may read of the block.

    Args:
      cfg: the model; static.
      dtype: of its parameters; static.
      is_visible_BRR: bool [B, R, R], `masks.block_visible`.
      position_BR: int32 [B, R], `masks.block_positions`.
      length_B: int32 [B], committed slots.
      start: slot of the block's first row, for all batch rows or, where R is 1, int32 [B].
      num_slots: S of the cache; static.
      how: "plain", "fused", "auto" or "anchored", `DecodeConfig.attention`; static.
      longest_path: positions from the root to the block's deepest row, masks counted; static.
    """
    start_B = jnp.broadcast_to(jnp.asarray(start, jnp.int32), length_B.shape)
    if how == ANCHORED:
        window = 1 << max(longest_path - 1, 0).bit_length()
        anchor_BR, slot_BRJ, is_tail_BRJ = absolute_tail(is_visible_BRR, position_BR, length_B, start, window)
        tail: dict[str, Any] = {"anchor_BT": anchor_BR, "tail_slot_BTJ": slot_BRJ, "is_tail_BTJ": is_tail_BRJ}
        attend: transformer.Attend = functools.partial(layers.anchored_attention, **tail)
        attend_fused = functools.partial(attention.anchored_attention, length_B=length_B, **tail)
    else:
        attend = transformer.attend_where(block_can_attend(is_visible_BRR, length_B, start, num_slots))
        attend_fused = functools.partial(
            attention.block_attention, length_B=length_B, is_visible_BTT=is_visible_BRR, start_B=start_B
        )
    plain = functools.partial(transformer.decoder_layer, cfg=cfg, start=start, attend=attend)
    if how == "plain" or not tiles.is_supported(cfg.head_dim, dtype):
        return plain

    def fused(interpret: bool) -> transformer.RunLayer:
        with_kernel = functools.partial(attend_fused, interpret=interpret)
        return functools.partial(
            fused_layer.decoder_layer, cfg=cfg, start_B=start_B, attend=with_kernel, interpret=interpret
        )

    elsewhere = fused(interpret=True) if how == "fused" else plain
    # Traced once for all layers.
    return jax.jit(functools.partial(_by_platform, fused(interpret=False), elsewhere))


def _by_platform(cuda: transformer.RunLayer, default: transformer.RunLayer, *args: Any) -> transformer.Stream:
    stream: transformer.Stream = jax.lax.platform_dependent(*args, cuda=cuda, default=default)
    return stream
