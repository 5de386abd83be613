"""The forward pass of Llama, Qwen and their kin; it knows nothing of trees, probes or sampling."""

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from jax_probe_mtp.kernels import int8_product
from jax_probe_mtp.model import layers
from jax_probe_mtp.model.cache import KVCache, Stream, allocate, as_carried, whole, write_rows
from jax_probe_mtp.model.config import TENSOR, ModelConfig
from jax_probe_mtp.model.logits import Logits
from jax_probe_mtp.model.params import Int8, Params

Visit = Callable[[Any, jax.Array, jax.Array, jax.Array], Any]  # carried, start, ids [B, U], hidden [B, U, D] -> carried
Attend = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]  # q [B, T, K, G, h], k and v [B, K, S, h] -> as q
Mixed = tuple[jax.Array, jax.Array, jax.Array]  # as q, and the slots after the layer
Mix = Callable[
    [jax.Array, jax.Array, jax.Array, jax.Array, jax.Array], Mixed
]  # q, own k and v [B, T, K, h], slots of both
Rope = tuple[jax.Array, jax.Array]  # cosines and sines, float32 [B, T, h/2]
Forward = Callable[[Any, ModelConfig, jax.Array, jax.Array, KVCache, Any], tuple[jax.Array, KVCache]]  # as `forward`
Norm = Callable[[jax.Array, jax.Array], jax.Array]  # x and a weight; as `layers.rms_norm`
Head = Callable[[jax.Array, jax.Array | Int8], jax.Array]  # hidden [M, D] and the head -> logits, float32 [M, V]
RunLayer = Callable[[Params, jax.Array, Rope, Stream], Stream]  # with the weight of the next norm
MakeLayer = Callable[[Any, jax.Array], RunLayer]  # of a piece's first slot and what its rows may read, bool [B, U, S]


def embed(params: Params, cfg: ModelConfig, ids: jax.Array) -> jax.Array:
    """Looks up input embeddings [..., D] of token ids [...]; ids outside the vocabulary give its nearest end."""
    table_VD = params["embed"]
    if not cfg.is_sharded:
        return jnp.take(table_VD, ids, axis=0, mode="clip")
    row = jnp.clip(ids, 0, cfg.vocab_size - 1) - jax.lax.axis_index(TENSOR) * table_VD.shape[0]
    is_here = (row >= 0) & (row < table_VD.shape[0])
    return sum_parts(cfg, jnp.where(is_here[..., None], jnp.take(table_VD, row, axis=0, mode="clip"), 0))


def embedding_table(params: Params, cfg: ModelConfig) -> jax.Array:
    """Gives the whole table [V, D], gathered where it is split."""
    if not cfg.is_sharded:
        return params["embed"]
    return jax.lax.all_gather(params["embed"], TENSOR, axis=0, tiled=True)[: cfg.vocab_size]


def sum_parts(cfg: ModelConfig, x: jax.Array) -> jax.Array:
    """Sums what the devices that share the weights hold, on each of them; gives x itself where none are split."""
    return jax.lax.psum(x, TENSOR) if cfg.is_sharded else x


def forward(
    params: Params,
    cfg: ModelConfig,
    x_BTD: jax.Array,
    position_BT: jax.Array,
    cache: KVCache,
    run_layer: RunLayer,
    norm: Norm | None = None,
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
      run_layer: one layer, such as `text_layer(cfg, start, can_attend_BTS)`.
      norm: the one before the layers, which have their own; `layers.rms_norm` when left out.

    Returns:
      The hidden states [B, T, D] after the final norm, and the cache with the rows written.
    """
    ropes = layers.rope_tables(cfg, position_BT)
    norm = norm or functools.partial(layers.rms_norm, eps=cfg.norm_eps)
    normed_BTD = norm(x_BTD, params["layers"][0]["attn_norm"])
    all_k, all_v, mail = [], [], cache.mail
    layers_with_theirs = zip(layers_and_norms(params), ropes, cache.k, cache.v, strict=True)
    for (layer, next_norm_D), rope, k_BKSh, v_BKSh in layers_with_theirs:
        stream = Stream(x_BTD, normed_BTD, k_BKSh, v_BKSh, mail)
        x_BTD, normed_BTD, k_BKSh, v_BKSh, mail = run_layer(layer, next_norm_D, rope, stream)
        all_k.append(k_BKSh)
        all_v.append(v_BKSh)
    return normed_BTD, cache.replace(k=tuple(all_k), v=tuple(all_v), mail=mail)


def layers_and_norms(params: Params) -> list[tuple[Params, jax.Array]]:
    """Pairs each layer's parameters with the weight of the norm that follows it: the next layer's first, or the final one."""
    following = [*(layer["attn_norm"] for layer in params["layers"][1:]), params["final_norm"]]
    return list(zip(params["layers"], following, strict=True))


def decoder_layer(
    layer: Params,
    next_norm_D: jax.Array,
    rope: Rope,
    stream: Stream,
    *,
    cfg: ModelConfig,
    mix: Mix,
) -> Stream:
    """Runs one layer, plainly.

    Args:
      layer: its parameters.
      next_norm_D: weight of the norm that follows it.
      rope: `layers.rope_table`.
      stream: the residual stream before the layer, its norm, and the layer's keys and values.
      cfg: the model; static.
      mix: attention of the T rows, which also says where their keys and values go; such as `write_then_attend`.

    Returns:
      The same after the layer.
    """
    x_BTD, normed_BTD, k_BKSh, v_BKSh, mail = stream
    G = cfg.queries_per_kv
    qkv_BTI = layers.linear(normed_BTD, layer["qkv"])
    # Else the order that suits the heads goes back to the weight, which a TPU's program then copies into it once a run.
    qkv_BTI = jax.lax.optimization_barrier(qkv_BTI)
    if cfg.has_qkv_bias:
        qkv_BTI += layer["qkv_bias"][None, None]
    qkv_BTKnh = qkv_BTI.reshape(*x_BTD.shape[:2], cfg.num_kv_heads, G + 2, cfg.head_dim)
    q_BTKGh, k_BTKh, v_BTKh = qkv_BTKnh[:, :, :, :G], qkv_BTKnh[:, :, :, G], qkv_BTKnh[:, :, :, G + 1]
    if cfg.has_qk_norm:
        q_BTKGh = layers.rms_norm(q_BTKGh, layer["q_norm"], cfg.norm_eps)
        k_BTKh = layers.rms_norm(k_BTKh, layer["k_norm"], cfg.norm_eps)
    q_BTKGh, k_BTKh = layers.rotate(q_BTKGh, *rope), layers.rotate(k_BTKh, *rope)
    mixed_BTKGh, k_BKSh, v_BKSh = mix(q_BTKGh, k_BTKh, v_BTKh, k_BKSh, v_BKSh)
    mixed_BTI = mixed_BTKGh.reshape(*x_BTD.shape[:2], -1)
    x_BTD += sum_parts(cfg, layers.linear(mixed_BTI, layer["out"]))
    normed_BTD = layers.rms_norm(x_BTD, layer["mlp_norm"], cfg.norm_eps)
    x_BTD += sum_parts(cfg, layers.gated_mlp(normed_BTD, layer["gate"], layer["up"], layer["down"]))
    return Stream(x_BTD, layers.rms_norm(x_BTD, next_norm_D, cfg.norm_eps), k_BKSh, v_BKSh, mail)


def attend_where(can_attend_BTS: jax.Array) -> Attend:
    """Makes plain attention over the first S slots; bool [B, T, S], True where a row may read a slot."""
    S = can_attend_BTS.shape[2]

    def attend(q_BTKGh: jax.Array, k_BKSh: jax.Array, v_BKSh: jax.Array) -> jax.Array:
        return layers.attention(q_BTKGh, k_BKSh[:, :, :S], v_BKSh[:, :, :S], can_attend_BTS)

    return attend


def write_then_attend(start: jax.Array | int, attend: Attend) -> Mix:
    """Makes attention over the cache's slots for rows that are first written there.

    Args:
      start: slot of the first row, for all batch rows or int32 [B].
      attend: attention over the slots, the fresh rows among them; such as `attend_where(can_attend_BTS)`.
    """

    def mix(q_BTKGh: jax.Array, k_BTKh: jax.Array, v_BTKh: jax.Array, k_BKSh: jax.Array, v_BKSh: jax.Array) -> Mixed:
        k_BKSh, v_BKSh = write_rows(k_BKSh, k_BTKh, start), write_rows(v_BKSh, v_BTKh, start)
        return attend(q_BTKGh, k_BKSh, v_BKSh), k_BKSh, v_BKSh

    return mix


def text_layer(cfg: ModelConfig, start: jax.Array | int, can_attend_BTS: jax.Array) -> RunLayer:
    """Makes a plain layer for rows that begin at slot `start` and read those of the first S slots marked in bool [B, T, S]."""
    return functools.partial(decoder_layer, cfg=cfg, mix=write_then_attend(start, attend_where(can_attend_BTS)))


def logits(params: Params, cfg: ModelConfig, hidden_BTD: jax.Array) -> jax.Array:
    """Computes next-token logits, float32 [B, T, V], of what `forward` gives; on a mesh whole on every device."""
    return split_logits(params, cfg, hidden_BTD).whole()


def split_logits(params: Params, cfg: ModelConfig, hidden_BTD: jax.Array, head: Head | None = None) -> Logits:
    """Computes next-token logits, each device those of its tokens; `plain_head` does unless another head is given."""
    head_VD = params["head"] if "head" in params else params["embed"]
    logits_MV = (head or plain_head)(hidden_BTD.reshape(-1, cfg.width), head_VD)
    logits_BTV = logits_MV.reshape(*hidden_BTD.shape[:2], -1)
    return Logits.of_part(logits_BTV, cfg.vocab_size) if cfg.is_sharded else Logits.of(logits_BTV)


def plain_head(hidden_MD: jax.Array, head_VD: jax.Array | Int8) -> jax.Array:
    """Computes logits, float32 [M, V], never rounded to a shorter dtype on the way."""
    if isinstance(head_VD, Int8):
        return _int8_logits(hidden_MD, head_VD)

    def of_rows(hidden_MD: jax.Array) -> jax.Array:
        return layers.product("md,vd->mv", hidden_MD, head_VD, out_dtype=jnp.float32)

    def of_several(hidden_MD: jax.Array) -> jax.Array:
        return of_rows(layers.never_one_row(hidden_MD))[: len(hidden_MD)]

    if len(hidden_MD) == 1 and hidden_MD.dtype == jnp.bfloat16:
        # As in `layers.linear`; GPUs multiply one row as fast as they read the weight.
        logits_MV: jax.Array = jax.lax.platform_dependent(hidden_MD, cuda=of_rows, rocm=of_rows, default=of_several)
        return logits_MV
    return of_rows(hidden_MD)


def _int8_logits(hidden_MD: jax.Array, head: Int8) -> jax.Array:
    def by_kernel(hidden_MD: jax.Array, value_VD: jax.Array, scale_V: jax.Array) -> jax.Array:
        parts_PNV = int8_product.product_parts(hidden_MD, (value_VD, scale_V))
        return jnp.sum(parts_PNV, axis=0)[: len(hidden_MD)]

    def by_xla(hidden_MD: jax.Array, value_VD: jax.Array, scale_V: jax.Array) -> jax.Array:
        return layers.int8_linear(hidden_MD, Int8(value_VD, scale_V))

    if not int8_product.is_supported(len(hidden_MD), hidden_MD.dtype, head.value):
        return by_xla(hidden_MD, *head)
    logits_MV: jax.Array = jax.lax.platform_dependent(hidden_MD, *head, cuda=by_kernel, default=by_xla)
    return logits_MV


def read_text(
    params: Params,
    cfg: ModelConfig,
    token_BT: jax.Array,
    cache: KVCache,
    num_tokens: jax.Array,
    chunk: int,
    visit: Visit,
    carried: Any,
    run_rows: Forward = forward,
    make_layer: MakeLayer | None = None,
    first: jax.Array | int = 0,
) -> tuple[KVCache, Any]:
    """Runs texts through the model piece by piece, causally; what padding writes lies behind the texts.

    Args:
      params: the tree of `abstract_params(cfg)`.
      cfg: the model; static.
      token_BT: int32 [B, T], padded on the right.
      cache: holds T slots.
      num_tokens: int32 scalar, tokens of the longest text; pieces behind it are not run.
      chunk: U, tokens of a piece, at most T; static.
      visit: called with what it carries, a piece's place, its tokens and its hidden states; gives what it carries on. The
        last piece may overlap the one before, whose tokens are computed again.
      carried: what the first `visit` is given.
      run_rows: runs a piece through all layers; another than `forward` where the parameters lie otherwise; static.
      make_layer: makes the layer of a piece from its first slot and what its rows may read, bool [B, U, S]; `text_layer`
        when left out; static.
      first: slot of the first token that is run, int32 scalar; those before are in the cache.

    Returns:
      The filled cache, and what the last `visit` gave.
    """
    B, T = token_BT.shape
    num_slots = min(T, cache.k[0].shape[2])  # those behind belong to no text yet

    def fill(i: jax.Array, carry: tuple[KVCache, Any]) -> tuple[KVCache, Any]:
        cache, carried = carry
        start = jnp.minimum(first + i * chunk, T - chunk)
        ids_BU = jax.lax.dynamic_slice_in_dim(token_BT, start, chunk, axis=1)
        position_BU = jnp.broadcast_to(start + jnp.arange(chunk), (B, chunk))
        can_attend_BUS = jnp.arange(num_slots)[None, None] <= position_BU[..., None]
        x_BUD = embed(params, cfg, ids_BU)
        run_layer = (make_layer or functools.partial(text_layer, cfg))(start, can_attend_BUS)
        hidden_BUD, cache = run_rows(params, cfg, x_BUD, position_BU, whole(cache), run_layer)
        return as_carried(cache), visit(carried, start, ids_BU, hidden_BUD)

    num_pieces = (num_tokens - first + chunk - 1) // chunk
    cache, carried = jax.lax.fori_loop(0, num_pieces, fill, (as_carried(cache), carried))
    return whole(cache), carried


def keep_hidden(seen_BTD: jax.Array, start: jax.Array, _: jax.Array, hidden_BUD: jax.Array) -> jax.Array:
    """Visits the pieces of `read_text` by keeping their hidden states, [B, T, D]."""
    return jax.lax.dynamic_update_slice_in_dim(seen_BTD, hidden_BUD, start, axis=1)


def full_logits(params: Params, cfg: ModelConfig, tokens_BT: jax.Array) -> jax.Array:
    """Computes logits after every token of a text, float32 [B, T, V]: the head over `full_hidden`."""
    return logits(params, cfg, full_hidden(params, cfg, tokens_BT))


def full_hidden(params: Params, cfg: ModelConfig, tokens_BT: jax.Array) -> jax.Array:
    """Computes hidden states of a whole text in one call, [B, T, D] in the model's dtype, after the final norm."""
    return full_forward(params, cfg, tokens_BT)[0]


def full_forward(params: Params, cfg: ModelConfig, tokens_BT: jax.Array) -> tuple[jax.Array, KVCache]:
    """Runs a whole text in one call: the plain definition of the model.

    Args:
      params: the tree of `abstract_params(cfg)`.
      cfg: the model; static.
      tokens_BT: int32 [B, T], each row a text from its start.

    Returns:
      The hidden states [B, T, D] in the model's dtype, after the final norm, and the text's keys and values.
    """
    B, T = tokens_BT.shape
    cache = allocate(cfg, batch_size=B, capacity=0, scratch=T, dtype=params["embed"].dtype)
    position_BT = jnp.broadcast_to(jnp.arange(T), (B, T))
    is_causal_BTT = jnp.broadcast_to(jnp.tril(jnp.ones((T, T), jnp.bool_)), (B, T, T))
    x_BTD = embed(params, cfg, tokens_BT)
    return forward(params, cfg, x_BTD, position_BT, cache, text_layer(cfg, 0, is_causal_BTT))
