"""Rows beside a text: they hang off its places, read it up to there, and leave nothing in its cache."""

from typing import Any

import jax
import jax.numpy as jnp

from jax_probe_mtp.model import layers, transformer
from jax_probe_mtp.model.cache import KVCache, Stream
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.params import Params


def side_hidden(
    params: Params,
    cfg: ModelConfig,
    cache: KVCache,
    x_BQMD: jax.Array,
    place_BQ: jax.Array,
    *,
    forward: transformer.Forward = transformer.forward,
    is_differentiated: bool = False,
) -> jax.Array:
    """Runs M rows beside each of Q places of a text that went through the model.

    Row i = 1..M beside place t has position t + i. It reads the text's tokens 0..t and rows 1..i beside the same place. So
    its logits propose the token at t + i + 1, as those of a mask token do that the token at t owns. For two places and M = 2:

               text 0 .. 4   5 .. 7 | 4.1  4.2 | 7.1  7.2
      4.1          x                |  x       |
      4.2          x                |  x    x  |
      7.1          x           x    |          |  x
      7.2          x           x    |          |  x    x

    Args:
      params: the tree of `abstract_params(cfg)`, or what `forward` takes.
      cfg: the model; static.
      cache: holds the text; it is read only.
      x_BQMD: input embeddings of the rows; cast to the model's dtype.
      place_BQ: int32 [B, Q], the places t.
      forward: runs rows through all layers; static.
      is_differentiated: True keeps no more than a layer's input for the gradient, and runs each layer twice; static.

    Returns:
      Hidden states [B, Q, M, D] after the final norm, in the model's dtype.
    """
    B, Q, M, D = x_BQMD.shape
    S = cache.k[0].shape[2]  # of the first layer's keys
    position_BT = (place_BQ[..., None] + 1 + jnp.arange(M)[None, None]).reshape(B, Q * M)
    can_attend_BQS = jnp.arange(S)[None, None] <= place_BQ[..., None]
    can_attend_BTS = jnp.repeat(can_attend_BQS, M, axis=1)

    def mix(q: jax.Array, k: jax.Array, v: jax.Array, k_slots: jax.Array, v_slots: jax.Array) -> transformer.Mixed:
        return layers.side_attention(q, k_slots, v_slots, k, v, can_attend_BTS, M), k_slots, v_slots

    def run_layer(*args: Any) -> Stream:
        return transformer.decoder_layer(*args, cfg=cfg, mix=mix)

    x_BTD = x_BQMD.reshape(B, Q * M, D).astype(params["embed"].dtype)
    layer = jax.checkpoint(run_layer) if is_differentiated else run_layer
    hidden_BTD, _ = forward(params, cfg, x_BTD, position_BT, cache, layer)
    return hidden_BTD.reshape(B, Q, M, D)
