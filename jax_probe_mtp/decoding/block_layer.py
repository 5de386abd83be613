"""How a block's rows go through a layer: plainly, or by the GPU kernels where the program is for such a GPU."""

import functools
from typing import Any

import jax
import jax.numpy as jnp

from jax_probe_mtp.decoding.block import Block, absolute_tail, block_can_attend
from jax_probe_mtp.decoding.config import DecodeConfig
from jax_probe_mtp.kernels import attention, tiles
from jax_probe_mtp.model import fused_layer, layers, transformer
from jax_probe_mtp.model.config import ModelConfig


def block_layer(
    cfg: ModelConfig, dtype: jnp.dtype, block: Block, num_slots: int, decode_cfg: DecodeConfig
) -> transformer.RunLayer:
    """Makes a layer for a block of R rows that attend to the committed prefix and to what each may read of the block.

    Args:
      cfg: the model; static.
      dtype: of its parameters; static.
      block: the rows.
      num_slots: S of the cache, its scratch counted; static.
      decode_cfg: which code runs it, and whether sums have one order; static.
    """
    visible, start_B = block.is_visible_BRR, block.start_B
    if decode_cfg.is_exact:
        window = 1 << max(block.longest_path - 1, 0).bit_length()
        anchor_BR, slot_BRJ, is_tail_BRJ = absolute_tail(
            visible, block.position_BR, block.length_B, block.start, window
        )
        tail: dict[str, Any] = {"anchor_BT": anchor_BR, "tail_slot_BTJ": slot_BRJ, "is_tail_BTJ": is_tail_BRJ}
        attend: transformer.Attend = functools.partial(layers.anchored_attention, **tail)
        attend_fused = functools.partial(attention.anchored_attention, length_B=block.length_B, **tail)
    else:
        attend = transformer.attend_where(block_can_attend(visible, block.length_B, block.start, num_slots))
        attend_fused = functools.partial(
            attention.block_attention, length_B=block.length_B, is_visible_BTT=visible, start_B=start_B
        )
    mix = transformer.write_then_attend(block.start, attend)
    plain = functools.partial(transformer.decoder_layer, cfg=cfg, mix=mix)
    if decode_cfg.attention == "plain" or not tiles.is_supported(cfg.head_dim, dtype):
        return plain

    def fused(interpret: bool) -> transformer.RunLayer:
        with_kernel = functools.partial(attend_fused, interpret=interpret)
        return functools.partial(
            fused_layer.decoder_layer, cfg=cfg, start_B=start_B, attend=with_kernel, interpret=interpret
        )

    elsewhere = fused(interpret=True) if decode_cfg.attention == "fused" else plain
    # Traced once for all layers.
    return jax.jit(functools.partial(_by_platform, fused(interpret=False), elsewhere))


def _by_platform(cuda: transformer.RunLayer, default: transformer.RunLayer, *args: Any) -> transformer.Stream:
    stream: transformer.Stream = jax.lax.platform_dependent(*args, cuda=cuda, default=default)
    return stream
