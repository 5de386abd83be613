"""How well mask tokens guess: at every place of the model's own answers at once, against the tokens that truly came.

Mask i = 1..M beside the token at t proposes the token at t + i + 1, as in a decode call where the token at t is the last
accepted node. Nothing reads a mask but later masks beside the same token, so a text runs through the model once, plainly, and
the gradient has to pass through the rows of the masks alone.
"""

import functools
import math
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jax_probe_mtp.model import stacked, transformer
from jax_probe_mtp.model.cache import KVCache
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.params import Params
from jax_probe_mtp.model.side_rows import side_hidden

HIT_SIZES = (1, 4, 8, 14, 29)  # candidates among which the true token is looked for
BLOCK = 256  # mask rows whose logits are there at a time


class Texts(flax.struct.PyTreeNode, kw_only=True):
    """Texts and the places beside which masks are run.

    Attributes:
      token_BT: int32 [B, T], prompt and answer, padded on the right.
      length_B: int32 [B], tokens of each; 0 for a row that holds no text.
      place_BQ: int32 [B, Q], places t, any where `num_places_B` says that there is none.
      num_places_B: int32 [B], places of each that count.
    """

    token_BT: jax.Array
    length_B: jax.Array
    place_BQ: jax.Array
    num_places_B: jax.Array


def targets(texts: Texts, num_masks: int) -> tuple[jax.Array, jax.Array]:
    """Gives the tokens that the masks should propose, int32 [B, Q, M], and where there are some, bool [B, Q, M]."""
    B, Q = texts.place_BQ.shape
    target_BQM = texts.place_BQ[..., None] + 2 + jnp.arange(num_masks)[None, None]
    is_place_BQ1 = (jnp.arange(Q)[None] < texts.num_places_B[:, None])[..., None]
    is_used_BQM = is_place_BQ1 & (target_BQM < texts.length_B[:, None, None])
    token_BQM = jnp.take_along_axis(texts.token_BT, target_BQM.reshape(B, -1), axis=1, mode="clip")
    return token_BQM.reshape(target_BQM.shape), is_used_BQM


def cross_entropy(params: Params, cfg: ModelConfig, masks_MD: jax.Array, texts: Texts, cache: KVCache) -> jax.Array:
    """Sums the masks' cross-entropies against the true tokens, float32 [M], in nats; differentiable in `masks_MD`."""
    hidden_BQMD = _hidden(params, cfg, masks_MD, texts, cache, is_differentiated=True)
    token_BQM, is_used_BQM = targets(texts, masks_MD.shape[0])

    def block(hidden_RD: jax.Array, token_R: jax.Array) -> jax.Array:
        logits_RV = _logits(params, cfg, hidden_RD)
        return jax.nn.logsumexp(logits_RV, axis=-1) - _at(logits_RV, token_R)

    loss_BQM = _by_blocks(jax.checkpoint(block), hidden_BQMD, token_BQM)
    return jnp.sum(jnp.where(is_used_BQM, loss_BQM, 0), axis=(0, 1))


def count_hits(params: Params, cfg: ModelConfig, masks_MD: jax.Array, texts: Texts, cache: KVCache) -> jax.Array:
    """Counts the true tokens, int32 [M, 1 + H]: all of them, then those among a mask's best 1, 4, ..., `HIT_SIZES`."""
    hidden_BQMD = _hidden(params, cfg, masks_MD, texts, cache)
    token_BQM, is_used_BQM = targets(texts, masks_MD.shape[0])
    rank_BQM = _by_blocks(functools.partial(ranks, params, cfg), hidden_BQMD, token_BQM)
    size_H = jnp.asarray([cfg.vocab_size, *HIT_SIZES])
    is_hit_BQMH = is_used_BQM[..., None] & (rank_BQM[..., None] < size_H)
    return jnp.sum(is_hit_BQMH, axis=(0, 1), dtype=jnp.int32)


def ranks(params: Params, cfg: ModelConfig, hidden_RD: jax.Array, token_R: jax.Array) -> jax.Array:
    """Counts the tokens that score higher than a given one after each hidden state, int32 [R]; all of them where one is NaN."""
    logits_RV = _logits(params, cfg, hidden_RD)
    is_no_better_RV = logits_RV <= _at(logits_RV, token_R)[:, None]
    return jnp.sum(~is_no_better_RV, axis=-1, dtype=jnp.int32)


def _hidden(
    params: Params, cfg: ModelConfig, masks_MD: jax.Array, texts: Texts, cache: KVCache, is_differentiated: bool = False
) -> jax.Array:
    masks_BQMD = jnp.broadcast_to(masks_MD[None, None], (*texts.place_BQ.shape, *masks_MD.shape))
    how: dict[str, Any] = {"forward": stacked.forward, "is_differentiated": is_differentiated}
    return side_hidden(params, cfg, cache, masks_BQMD, texts.place_BQ, **how)


def _logits(params: Params, cfg: ModelConfig, hidden_RD: jax.Array) -> jax.Array:
    """Gives logits without the columns by which a mesh pads the vocabulary."""
    return transformer.logits(params, cfg, hidden_RD[None])[0, :, : cfg.vocab_size]


def _at(logits_RV: jax.Array, token_R: jax.Array) -> jax.Array:
    return jnp.take_along_axis(logits_RV, token_R[:, None], axis=-1)[:, 0]


def _by_blocks(function: Any, hidden_BQMD: jax.Array, token_BQM: jax.Array) -> jax.Array:
    """Runs a function of hidden states and tokens over blocks of rows: the logits of all would be gigabytes."""
    shape, D = token_BQM.shape, hidden_BQMD.shape[-1]
    num_rows = math.prod(shape)
    num_blocks = -(-num_rows // BLOCK)
    padding = num_blocks * BLOCK - num_rows
    hidden_RD = jnp.pad(hidden_BQMD.reshape(-1, D), ((0, padding), (0, 0))).reshape(num_blocks, BLOCK, D)
    token_R = jnp.pad(token_BQM.reshape(-1), (0, padding)).reshape(num_blocks, BLOCK)
    values = jax.lax.map(lambda rows: function(*rows), (hidden_RD, token_R))
    return values.reshape(-1)[:num_rows].reshape(shape)
