"""How rows go through the model: plainly, or by the GPU kernels where the program is for such a GPU."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_probe_mtp.decoding import any_rows
from jax_probe_mtp.decoding.block import Block, absolute_tail, block_can_attend, prompt_tail
from jax_probe_mtp.decoding.config import DecodeConfig
from jax_probe_mtp.kernels import attention, exchange, tiles
from jax_probe_mtp.model import fused_layer, layers, transformer
from jax_probe_mtp.model.config import TENSOR, ModelConfig
from jax_probe_mtp.model.params import Params

# W of `absolute_tail` where a row's bits depend on no other row. Its 16 positions are two for each split of the attention.
WINDOW = 2 * tiles.MAX_SPLITS - 1


def has_one_order(params: Params, cfg: ModelConfig, decode_cfg: DecodeConfig, longest_path: int) -> bool:
    """Says whether a GPU's program gives a row the same bits whatever rows are beside it: the exact mode.

    `generation/one_text.py` refuses models and trees with which it could not.

    Args:
      params: their shapes and dtypes alone; static.
      cfg, decode_cfg: of the program; static.
      longest_path: rows below a root, masks counted; static.
    """
    is_asked = decode_cfg.is_exact and decode_cfg.attention != "plain"
    return is_asked and longest_path <= WINDOW and not any_rows.lacking(params, cfg)


def block_layer(
    params: Params, cfg: ModelConfig, block: Block, num_slots: int, decode_cfg: DecodeConfig
) -> transformer.RunLayer:
    """Makes a layer for a block of R rows that attend to the committed prefix and to what each may read of the block.

    Args:
      params: their shapes and dtypes alone; static.
      cfg: the model; static.
      block: the rows.
      num_slots: S of the cache, its scratch counted; static.
      decode_cfg: which code runs it, and whether sums have one order; static.
    """
    visible, start_B = block.is_visible_BRR, block.start_B
    one_order = has_one_order(params, cfg, decode_cfg, block.longest_path)

    def tail(window: int) -> dict[str, Any]:
        return absolute_tail(visible, block.position_BR, block.length_B, block.start, window)

    if decode_cfg.is_exact:
        attend: transformer.Attend = functools.partial(layers.anchored_attention, **tail(block.longest_path))
        attend_fused = _anchored(block.length_B, tail(WINDOW if one_order else block.longest_path), one_order)
    else:
        attend = transformer.attend_where(block_can_attend(visible, block.length_B, block.start, num_slots))
        attend_fused = functools.partial(
            attention.block_attention, length_B=block.length_B, is_visible_BTT=visible, start_B=start_B
        )
    mix = transformer.write_then_attend(block.start, attend)
    plain = functools.partial(transformer.decoder_layer, cfg=cfg, mix=mix)
    if not tiles.is_supported(cfg.head_dim, params["embed"].dtype):
        return plain
    return _of_layer(plain, cfg, start_B, attend_fused, one_order, decode_cfg)


def mailboxes(
    params: Params, cfg: ModelConfig, decode_cfg: DecodeConfig, num_rows: int, longest_path: int
) -> exchange.Mail | None:
    """Makes the mailboxes for a loop of calls of so many rows; None where devices sum by XLA's collectives.

    They do so where they cannot reach each other (`ModelConfig.has_mailboxes`), where layers are plain, and where the order
    of a sum may not depend on the rows.
    """
    dtype = params["embed"].dtype
    if (
        not cfg.has_mailboxes
        or decode_cfg.attention == "plain"
        or has_one_order(params, cfg, decode_cfg, longest_path)
        or not tiles.is_supported(cfg.head_dim, dtype)
        or not exchange.is_supported(num_rows, cfg.width, dtype)
    ):
        return None
    return exchange.allocate(num_rows, cfg.width, dtype, TENSOR)


def prompt_layer(
    params: Params, cfg: ModelConfig, decode_cfg: DecodeConfig, longest_path: int
) -> transformer.MakeLayer:
    """Makes layers for pieces of prompts: plain ones, unless a row's bits may not depend on the rows beside it."""
    plain = functools.partial(transformer.text_layer, cfg)
    if not has_one_order(params, cfg, decode_cfg, longest_path):
        return plain

    def make(start: Any, can_attend_BUS: jax.Array) -> transformer.RunLayer:
        B, U, _ = can_attend_BUS.shape
        start_B = jnp.broadcast_to(start, B).astype(jnp.int32)
        attend_fused = _anchored(start_B + U, prompt_tail(start_B, U, WINDOW), has_one_order=True)
        return _of_layer(plain(start, can_attend_BUS), cfg, start_B, attend_fused, True, decode_cfg)

    return make


def first_norm(params: Params, cfg: ModelConfig, decode_cfg: DecodeConfig, longest_path: int) -> transformer.Norm:
    """Gives the norm before the layers."""
    plain = functools.partial(layers.rms_norm, eps=cfg.norm_eps)
    if not has_one_order(params, cfg, decode_cfg, longest_path):
        return plain
    return _by_platform(
        decode_cfg, plain, lambda interpret: functools.partial(any_rows.norm, eps=cfg.norm_eps, interpret=interpret)
    )


def head(params: Params, cfg: ModelConfig, decode_cfg: DecodeConfig, longest_path: int) -> transformer.Head:
    """Gives the product with the head."""
    if not has_one_order(params, cfg, decode_cfg, longest_path):
        return transformer.plain_head
    return _by_platform(
        decode_cfg, transformer.plain_head, lambda interpret: functools.partial(any_rows.head, interpret=interpret)
    )


def _anchored(length_B: jax.Array, tail: dict[str, Any], has_one_order: bool) -> Callable[..., jax.Array]:
    def attend(q_BKGTh: jax.Array, k_BKSh: jax.Array, v_BKSh: jax.Array, **more: Any) -> jax.Array:
        of_any_rows = tiles.tiles_for_any_rows(q_BKGTh.shape, q_BKGTh.dtype) if has_one_order else None
        return attention.anchored_attention(
            q_BKGTh, k_BKSh, v_BKSh, length_B=length_B, tiles=of_any_rows, **tail, **more
        )

    return attend


def _of_layer(
    plain: transformer.RunLayer,
    cfg: ModelConfig,
    start_B: jax.Array,
    attend: Callable[..., jax.Array],
    has_one_order: bool,
    decode_cfg: DecodeConfig,
) -> transformer.RunLayer:
    def fused(interpret: bool) -> transformer.RunLayer:
        return functools.partial(
            fused_layer.decoder_layer,
            cfg=cfg,
            start_B=start_B,
            attend=functools.partial(attend, interpret=interpret),
            has_one_order=has_one_order,
            interpret=interpret,
        )

    # Traced once for all layers.
    return plain if decode_cfg.attention == "plain" else jax.jit(_by_platform(decode_cfg, plain, fused))


def _by_platform(
    decode_cfg: DecodeConfig, plain: Callable[..., Any], by_kernels: Callable[[bool], Callable[..., Any]]
) -> Callable[..., Any]:
    """Takes the kernels on CUDA; elsewhere what is plain, or the kernels interpreted if the settings ask for that."""
    elsewhere = by_kernels(True) if decode_cfg.attention == "fused" else plain
    return functools.partial(_platform_dependent, by_kernels(False), elsewhere)


def _platform_dependent(cuda: Callable[..., Any], default: Callable[..., Any], *args: Any) -> Any:
    return jax.lax.platform_dependent(*args, cuda=cuda, default=default)
