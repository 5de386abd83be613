"""The forward pass as a scan over layers whose weights are stacked: compiled once for all layers, not once for each.

A scan copies each layer's weights as it comes to it, and the stacked weights take the memory of the model once more: too
dear for decoding, but cheap beside a gradient, whose program would otherwise take minutes to compile.
"""

from typing import Any

import jax
import jax.numpy as jnp

from jax_probe_mtp.model import layers, transformer
from jax_probe_mtp.model.cache import KVCache, Stream
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.params import Params

PIECE = 128  # tokens of a text that enter the model at a time


def stack_layers(params: Params) -> Params:
    """Gives the same parameters with `layers` as one dict of arrays, L in front; each layer holds the norm that follows it."""
    each = [layer | {"next_norm": norm_D} for layer, norm_D in transformer.layers_and_norms(params)]
    return {**params, "layers": jax.tree.map(lambda *leaves: jnp.stack(leaves), *each)}


def forward(
    stacked: Params,
    cfg: ModelConfig,
    x_BTD: jax.Array,
    position_BT: jax.Array,
    cache: KVCache,
    run_layer: transformer.RunLayer,
) -> tuple[jax.Array, KVCache]:
    """Runs T rows through the model, as `transformer.forward` does.

    Args:
      stacked: of `stack_layers`.
      cfg: the model; static.
      x_BTD: input embeddings, in the model's dtype.
      position_BT: int32 [B, T], rotary positions.
      cache: its `k` and `v` are one array each, [L, B, K, S, h].
      run_layer: one layer.

    Returns:
      The hidden states [B, T, D] after the final norm, and the cache with the rows written.
    """
    ropes = jax.tree.map(lambda *each: jnp.stack(each), *layers.rope_tables(cfg, position_BT))
    normed_BTD = layers.rms_norm(x_BTD, stacked["layers"]["attn_norm"][0], cfg.norm_eps)

    def layer(carried: tuple[jax.Array, jax.Array], each: Any) -> Any:
        weights, rope, k_BKSh, v_BKSh = each
        stream = Stream(*carried, k_BKSh, v_BKSh)
        x_BTD, normed_BTD, k_BKSh, v_BKSh, _ = run_layer(weights, weights["next_norm"], rope, stream)
        return (x_BTD, normed_BTD), (k_BKSh, v_BKSh)

    (_, normed_BTD), (k, v) = jax.lax.scan(layer, (x_BTD, normed_BTD), (stacked["layers"], ropes, cache.k, cache.v))
    return normed_BTD, cache.replace(k=k, v=v)


def read(stacked: Params, cfg: ModelConfig, token_BT: jax.Array, length_B: jax.Array) -> KVCache:
    """Runs texts through the model, piece by piece; gives their keys and values.

    Args:
      stacked: of `stack_layers`.
      cfg: the model; static.
      token_BT: int32 [B, T], padded on the right.
      length_B: int32 [B]; what is behind the longest text is not run.
    """
    (B, T), piece = token_BT.shape, min(PIECE, token_BT.shape[1])
    shape = (cfg.num_layers, B, cfg.num_kv_heads, T, cfg.head_dim)
    no_keys: Any = jnp.zeros(shape, stacked["embed"].dtype)
    cache = KVCache(k=no_keys, v=no_keys, capacity=0)

    def visit(carried: Any, start: jax.Array, token_BU: jax.Array, hidden_BUD: jax.Array) -> Any:
        return carried

    return transformer.read_text(stacked, cfg, token_BT, cache, jnp.max(length_B), piece, visit, (), forward)[0]
