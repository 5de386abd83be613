"""The forward pass of Llama, Qwen2 and Qwen3 (dense); it knows nothing of trees, probes or sampling."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_probe_mtp import layers
from jax_probe_mtp.cache import KVCache, allocate, write_rows
from jax_probe_mtp.config import TENSOR, ModelConfig
from jax_probe_mtp.params import Params

Look = Callable[[Any, jax.Array, jax.Array, jax.Array], Any]  # seen, start, ids [B, C], hidden [B, C, D] -> seen
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # q [B, T, K, G, h], k and v [B, K, S, h] -> as q


def embed(params: Params, cfg: ModelConfig, ids: jax.Array) -> jax.Array:
    """Input embeddings [..., D] of token ids [...]; ids outside the vocabulary give its nearest end."""
    table_VD = params["embed"]
    if not cfg.is_sharded:
        return jnp.take(table_VD, ids, axis=0, mode="clip")
    row = jnp.clip(ids, 0, cfg.vocab_size - 1) - jax.lax.axis_index(TENSOR) * table_VD.shape[0]
    is_here = (row >= 0) & (row < table_VD.shape[0])
    return sum_parts(cfg, jnp.where(is_here[..., None], jnp.take(table_VD, row, axis=0, mode="clip"), 0))


def embedding_table(params: Params, cfg: ModelConfig) -> jax.Array:
    """The whole table [V, D], gathered where it is split."""
    if not cfg.is_sharded:
        return params["embed"]
    return jax.lax.all_gather(params["embed"], TENSOR, axis=0, tiled=True)[: cfg.vocab_size]


def sum_parts(cfg: ModelConfig, x: jax.Array) -> jax.Array:
    """The sum of what the devices that share the weights hold, on each of them; x itself where none are split."""
    return jax.lax.psum(x, TENSOR) if cfg.is_sharded else x


def forward(
    params: Params,
    cfg: ModelConfig,
    x_BTD: jax.Array,
    position_BT: jax.Array,
    cache: KVCache,
    start: jax.Array | int,
    attend: Attend,
) -> tuple[jax.Array, KVCache]:
    """Runs T rows through the model, writing their keys and values into the cache before they are attended to.

    The layers are a Python loop over separate arrays: a scan over stacked weights would copy each layer's weights at
    every call (3 times slower at batch 1 on a GPU).

    Args:
      params: the tree of `abstract_params(cfg)`.
      cfg: the model; static.
      x_BTD: input embeddings, in the model's dtype.
      position_BT: int32 [B, T], rotary positions.
      cache: where the rows before these are.
      start: slot of the first of the T rows, for all batch rows or int32 [B].
      attend: attention over the slots of the cache, the T fresh rows among them; such as `attend_where(can_attend_BTS)`.

    Returns:
      The hidden states [B, T, D] before the final norm, and the cache with the rows written.
    """
    rope = layers.rope_table(cfg, position_BT)
    all_k, all_v = [], []
    for layer, k_BKSh, v_BKSh in zip(params["layers"], cache.k, cache.v, strict=True):
        x_BTD, k_BKSh, v_BKSh = decoder_layer(layer, cfg, x_BTD, rope, k_BKSh, v_BKSh, start, attend)
        all_k.append(k_BKSh)
        all_v.append(v_BKSh)
    return x_BTD, cache.replace(k=tuple(all_k), v=tuple(all_v))


def decoder_layer(
    layer: Params,
    cfg: ModelConfig,
    x_BTD: jax.Array,
    rope: tuple[jax.Array, jax.Array],
    k_BKSh: jax.Array,
    v_BKSh: jax.Array,
    start: jax.Array | int,
    attend: Attend,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """One layer of `forward`: the residual stream after it, and its keys and values with the T fresh rows written."""
    G = cfg.queries_per_kv
    x_BTD, normed = layers.norm_residual(x_BTD, layer["attn_norm"], cfg.norm_eps)
    # All products are of two axes: with more XLA may copy a weight into the order that suits a neighbour, in every call.
    qkv_BTI = layers.product("btd,di->bti", normed, layer["qkv"].reshape(cfg.width, -1))
    qkv_BTKnh = qkv_BTI.reshape(*x_BTD.shape[:2], *layer["qkv"].shape[1:])
    if cfg.has_qkv_bias:
        qkv_BTKnh += layer["qkv_bias"]
    q_BTKGh, k_BTKh, v_BTKh = qkv_BTKnh[:, :, :, :G], qkv_BTKnh[:, :, :, G], qkv_BTKnh[:, :, :, G + 1]
    if cfg.has_qk_norm:
        q_BTKGh = layers.rms_norm(q_BTKGh, layer["q_norm"], cfg.norm_eps)
        k_BTKh = layers.rms_norm(k_BTKh, layer["k_norm"], cfg.norm_eps)
    k_BKSh = write_rows(k_BKSh, layers.rotate(k_BTKh, *rope), start)
    v_BKSh = write_rows(v_BKSh, v_BTKh, start)
    mixed_BTKGh = attend(layers.rotate(q_BTKGh, *rope), k_BKSh, v_BKSh)
    mixed_BTI = mixed_BTKGh.reshape(*x_BTD.shape[:2], -1)
    x_BTD = x_BTD + sum_parts(cfg, layers.product("bti,id->btd", mixed_BTI, layer["out"].reshape(-1, cfg.width)))
    x_BTD, normed = layers.norm_residual(x_BTD, layer["mlp_norm"], cfg.norm_eps)
    return x_BTD + sum_parts(cfg, layers.gated_mlp(normed, layer["gate_up"], layer["down"])), k_BKSh, v_BKSh


def attend_where(can_attend_BTS: jax.Array) -> Attend:
    """Plain attention over all slots; bool [B, T, S], True where a row may read a slot."""
    return functools.partial(layers.attention, can_attend_BTS=can_attend_BTS)


def logits(params: Params, cfg: ModelConfig, hidden_BTD: jax.Array) -> jax.Array:
    """Next-token logits, float32 [B, T, V], of hidden states; never rounded to a shorter dtype on the way."""
    normed = layers.rms_norm(hidden_BTD, params["final_norm"], cfg.norm_eps)
    head_VD = params["embed"] if cfg.is_tied else params["head"]
    logits_BTV = layers.product("btd,vd->btv", normed, head_VD, out_dtype=jnp.float32)
    if not cfg.is_sharded:
        return logits_BTV
    return jax.lax.all_gather(logits_BTV, TENSOR, axis=2, tiled=True)[..., : cfg.vocab_size]


def read_text(
    params: Params,
    cfg: ModelConfig,
    token_BT: jax.Array,
    cache: KVCache,
    num_tokens: jax.Array,
    chunk: int,
    look: Look,
    seen: Any,
) -> tuple[KVCache, Any]:
    """Runs texts through the model from slot 0 on, chunk by chunk, causally; what padding writes lies behind the texts.

    Args:
      params: the tree of `abstract_params(cfg)`.
      cfg: the model; static.
      token_BT: int32 [B, T], padded on the right.
      cache: holds T slots.
      num_tokens: int32 scalar, tokens of the longest text; chunks behind it are not run.
      chunk: C, tokens of a chunk, at most T; static.
      look: is given what it has seen so far, a chunk's place, its tokens and its hidden states before the final norm; gives
        what it has seen now. The last chunk may overlap the one before, whose tokens are computed again.
      seen: what `look` begins with.

    Returns:
      The filled cache, and what was seen.
    """
    B, T = token_BT.shape
    num_slots = cache.k[0].shape[2]

    def fill(i: jax.Array, carry: tuple[KVCache, Any]) -> tuple[KVCache, Any]:
        cache, seen = carry
        start = jnp.minimum(i * chunk, T - chunk)
        ids_BC = jax.lax.dynamic_slice_in_dim(token_BT, start, chunk, axis=1)
        position_BC = jnp.broadcast_to(start + jnp.arange(chunk), (B, chunk))
        can_attend_BCS = jnp.arange(num_slots) <= position_BC[..., None]
        x_BCD = embed(params, cfg, ids_BC)
        hidden_BCD, cache = forward(params, cfg, x_BCD, position_BC, cache, start, attend_where(can_attend_BCS))
        return cache, look(seen, start, ids_BC, hidden_BCD)

    return jax.lax.fori_loop(0, (num_tokens + chunk - 1) // chunk, fill, (cache, seen))


def full_logits(params: Params, cfg: ModelConfig, tokens_BT: jax.Array) -> jax.Array:
    """Logits after every token of a text, float32 [B, T, V]: the head over `full_hidden`."""
    return logits(params, cfg, full_hidden(params, cfg, tokens_BT))


def full_hidden(params: Params, cfg: ModelConfig, tokens_BT: jax.Array) -> jax.Array:
    """Hidden states of a whole text in one call, nothing kept: the plain definition of the model.

    Args:
      params: the tree of `abstract_params(cfg)`.
      cfg: the model; static.
      tokens_BT: int32 [B, T], each row a text from its start.

    Returns:
      [B, T, D] in the model's dtype, before the final norm.
    """
    B, T = tokens_BT.shape
    cache = allocate(cfg, batch_size=B, capacity=0, scratch=T, dtype=params["embed"].dtype)
    position_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
    is_causal_BTT = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), jnp.bool_)), (B, T, T))
    return forward(params, cfg, embed(params, cfg, tokens_BT), position_BT, cache, 0, attend_where(is_causal_BTT))[0]
