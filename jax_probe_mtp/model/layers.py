"""The pieces of a transformer layer: arrays in, arrays out; masks and positions are arguments."""

import jax
import jax.numpy as jnp
import numpy as np

from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.params import Int8

Weight = jax.Array | Int8
PIECE_NUMBERS = 1 << 18  # of a weight of eight bits that a CPU converts at a time: 1 MB of float32


def product(subscripts: str, x: jax.Array, y: jax.Array, *, out_dtype: jnp.dtype | None = None) -> jax.Array:
    """Runs `jnp.einsum` with its precision said: float32 inputs are multiplied in full float32 whatever the global flags.

    Args:
      subscripts: einsum subscripts of two operands.
      x: first operand.
      y: second operand, of the same dtype.
      out_dtype: dtype of the result and of the sums; the inputs' when left out.
    """
    precision = jax.lax.Precision.HIGHEST if x.dtype == jnp.float32 else jax.lax.Precision.DEFAULT
    return jnp.einsum(subscripts, x, y, precision=precision, preferred_element_type=out_dtype or x.dtype)


def rms_norm(x: jax.Array, weight: jax.Array, eps: float) -> jax.Array:
    """Takes the root-mean-square norm over the last axis; statistics in float32, the result in x's dtype."""
    x32 = x.astype(jnp.float32)
    normed = x32 * jax.lax.rsqrt(jnp.mean(jnp.square(x32), axis=-1, keepdims=True) + eps)
    return jnp.expand_dims(weight, range(x.ndim - 1)) * normed.astype(x.dtype)


def rope_table(cfg: ModelConfig, position_BT: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Computes cosines and sines of the rotary embedding, times `rope_scale`, float32 [B, T, h/2] each.

    The angles are float32 whatever the model's dtype: bfloat16 cannot tell position 1000 from 1001.
    """
    exponents = np.arange(0, cfg.head_dim, 2, dtype=np.float64) / cfg.head_dim
    frequencies = cfg.rope_theta**-exponents / np.asarray(cfg.rope_divisors or 1.0)
    angles = position_BT[..., None].astype(jnp.float32) * jnp.asarray(frequencies, jnp.float32)[None, None]
    if cfg.rope_scale == 1:
        return jnp.cos(angles), jnp.sin(angles)
    return jnp.cos(angles) * cfg.rope_scale, jnp.sin(angles) * cfg.rope_scale


def rope_tables(cfg: ModelConfig, position_BT: jax.Array) -> list[tuple[jax.Array, jax.Array]]:
    """Gives each layer its `rope_table`: where rows are not turned, cosines of 1 and sines of 0, which change no bit."""
    turned = rope_table(cfg, position_BT)
    if not cfg.no_rope_layers:
        return [turned] * cfg.num_layers
    unturned = jnp.ones_like(turned[0]), jnp.zeros_like(turned[1])
    return [unturned if i in cfg.no_rope_layers else turned for i in range(cfg.num_layers)]


def rotate(x: jax.Array, cos_BTc: jax.Array, sin_BTc: jax.Array) -> jax.Array:
    """Turns each pair (i, i + h/2) of x [B, T, ..., h] by its angle, in float32; the result has x's dtype."""
    extra = (1,) * (x.ndim - 3)
    cos = cos_BTc.reshape(*cos_BTc.shape[:2], *extra, -1)
    sin = sin_BTc.reshape(*sin_BTc.shape[:2], *extra, -1)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    return jnp.concatenate([first * cos - second * sin, second * cos + first * sin], axis=-1).astype(x.dtype)


def attention(q_BTKGh: jax.Array, k_BKSh: jax.Array, v_BKSh: jax.Array, can_attend_BTS: jax.Array) -> jax.Array:
    """Runs grouped-query attention over all slots of the cache.

    Group and query rows are folded into one matrix product per kv head: the keys and values are then read once for all
    G heads and T rows that share them.

    Args:
      q_BTKGh: queries of T rows, G for each of K kv heads.
      k_BKSh: keys in the cache's slots.
      v_BKSh: values in the cache's slots.
      can_attend_BTS: bool [B, T, S], True where a row may read a slot; each row has at least one.

    Returns:
      [B, T, K, G, h] in the queries' dtype.
    """
    B, T, K, G, h = q_BTKGh.shape
    q_BKRh = q_BTKGh.transpose(0, 2, 3, 1, 4).reshape(B, K, G * T, h)
    scores = product("bkrh,bksh->bkrs", q_BKRh, k_BKSh, out_dtype=jnp.float32) * h**-0.5
    scores = scores.reshape(B, K, G, T, -1)
    scores = jnp.where(can_attend_BTS[:, None, None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(v_BKSh.dtype).reshape(B, K, G * T, -1)
    # float32 is asked for as in `linear`, else CPUs convert the cache.
    out_BKRh = product("bkrs,bksh->bkrh", weights, v_BKSh, out_dtype=jnp.float32)
    return out_BKRh.astype(q_BTKGh.dtype).reshape(B, K, G, T, h).transpose(0, 3, 1, 2, 4)


def side_attention(
    q_BTKGh: jax.Array,
    k_BKSh: jax.Array,
    v_BKSh: jax.Array,
    side_k_BTKh: jax.Array,
    side_v_BTKh: jax.Array,
    can_attend_BTS: jax.Array,
    group: int,
) -> jax.Array:
    """Runs attention of rows beside a cache: each reads slots of it, and of its own group the rows up to itself.

    Args:
      q_BTKGh: queries of T rows, G for each of K kv heads; each `group` rows in turn are a group.
      k_BKSh: keys in the cache's slots.
      v_BKSh: values in the cache's slots.
      side_k_BTKh: the rows' own keys.
      side_v_BTKh: the rows' own values.
      can_attend_BTS: bool [B, T, S], True where a row may read a slot.
      group: M, rows of a group; static.

    Returns:
      [B, T, K, G, h] in the queries' dtype.
    """
    B, T, K, G, h = q_BTKGh.shape
    S, M, Q = k_BKSh.shape[2], group, T // group
    q_BKRh = q_BTKGh.transpose(0, 2, 3, 1, 4).reshape(B, K, G * T, h)
    scores = product("bkrh,bksh->bkrs", q_BKRh, k_BKSh, out_dtype=jnp.float32).reshape(B, K, G, T, S) * h**-0.5
    scores = jnp.where(can_attend_BTS[:, None, None], scores, -jnp.inf)
    q_BQMKGh = q_BTKGh.reshape(B, Q, M, K, G, h)
    side_k_BQMKh, side_v_BQMKh = (side.reshape(B, Q, M, K, h) for side in (side_k_BTKh, side_v_BTKh))
    side = product("bqmkgh,bqnkh->bkgqmn", q_BQMKGh, side_k_BQMKh, out_dtype=jnp.float32) * h**-0.5
    side = jnp.where(jnp.tril(jnp.ones((M, M), jnp.bool_)), side, -jnp.inf).reshape(B, K, G, T, M)
    weights = jax.nn.softmax(jnp.concatenate([scores, side], axis=-1), axis=-1).astype(v_BKSh.dtype)
    out_BKRh = product("bkrs,bksh->bkrh", weights[..., :S].reshape(B, K, G * T, S), v_BKSh)
    weights_side = weights[..., S:].reshape(B, K, G, Q, M, M)
    out_side = product("bkgqmn,bqnkh->bqmkgh", weights_side, side_v_BQMKh).reshape(B, T, K, G, h)
    return out_BKRh.reshape(B, K, G, T, h).transpose(0, 3, 1, 2, 4) + out_side


def anchored_attention(
    q_BTKGh: jax.Array,
    k_BKSh: jax.Array,
    v_BKSh: jax.Array,
    anchor_BT: jax.Array,
    tail_slot_BTJ: jax.Array,
    is_tail_BTJ: jax.Array,
) -> jax.Array:
    """Runs attention whose sums run over absolute positions, in an order that a row's own position alone decides.

    What a row reads comes in two parts under one softmax: slots below its anchor, where slot and position are the same,
    and J positions from the anchor on, wherever in the cache they are. So it does not matter to a bit of the result whether
    a token before it is committed or a draft of the same block.

    Args:
      q_BTKGh: queries of T rows, G for each of K kv heads.
      k_BKSh: keys in the cache's slots.
      v_BKSh: values in the cache's slots.
      anchor_BT: int32 [B, T]; every slot below it is read.
      tail_slot_BTJ: int32 [B, T, J], the slots of positions anchor, anchor + 1, ...
      is_tail_BTJ: bool [B, T, J], True where the row reads it; each row reads itself.

    Returns:
      [B, T, K, G, h] in the queries' dtype.
    """
    B, T, K, G, h = q_BTKGh.shape
    S, J = k_BKSh.shape[2], tail_slot_BTJ.shape[2]
    q_BKRh = q_BTKGh.transpose(0, 2, 3, 1, 4).reshape(B, K, G * T, h)
    scores = product("bkrh,bksh->bkrs", q_BKRh, k_BKSh, out_dtype=jnp.float32).reshape(B, K, G, T, S)
    scores = jnp.where((jnp.arange(S)[None, None] < anchor_BT[..., None])[:, None, None], scores, -jnp.inf)

    def tail(slots_BKSh: jax.Array) -> jax.Array:
        return jax.vmap(lambda slots_KSh, slot_TJ: slots_KSh[:, slot_TJ])(slots_BKSh, tail_slot_BTJ).astype(jnp.float32)

    # The tail is a few positions of each row's own: elementwise products, since a matrix product of so few would be no faster.
    q_BKGT1h = q_BTKGh.transpose(0, 2, 3, 1, 4)[:, :, :, :, None].astype(jnp.float32)
    tail_scores = jnp.sum(q_BKGT1h * tail(k_BKSh)[:, :, None], axis=-1)
    tail_scores = jnp.where(is_tail_BTJ[:, None, None], tail_scores, -jnp.inf)
    weights = jax.nn.softmax(jnp.concatenate([scores, tail_scores], axis=-1) * h**-0.5, axis=-1).astype(v_BKSh.dtype)
    before_BKRh = product("bkrs,bksh->bkrh", weights[..., :S].reshape(B, K, G * T, S), v_BKSh, out_dtype=jnp.float32)
    out_BKGTh = before_BKRh.reshape(B, K, G, T, h)
    tail_v_BKTJh = tail(v_BKSh)
    for j in range(J):
        out_BKGTh += weights[..., S + j, None].astype(jnp.float32) * tail_v_BKTJh[:, :, None, :, j]
    return out_BKGTh.transpose(0, 3, 1, 2, 4).astype(q_BTKGh.dtype)


def linear(x: jax.Array, weight: Weight) -> jax.Array:
    """Multiplies rows x [..., I] with a weight, [I, O] or `Int8`; [..., O] in x's dtype, rounded once.

    In bfloat16 it asks for float32 and rounds itself: asked for bfloat16, XLA's compiler for CPUs converts every weight in
    every call, and takes six times as long. And it never multiplies one row alone, for which CPUs convert the weight all the
    same, and which TPUs keep out of their matrix units (by their compiler's count four times slower).
    """
    x_MI = x.reshape(-1, x.shape[-1])
    if isinstance(weight, Int8):
        out_MO = int8_linear(x_MI, weight)
    elif x.dtype != jnp.bfloat16:
        return product("...i,io->...o", x, weight)
    else:
        out_MO = product("mi,io->mo", never_one_row(x_MI), weight, out_dtype=jnp.float32)[: len(x_MI)]
    return out_MO.astype(x.dtype).reshape(*x.shape[:-1], -1)


def never_one_row(x_MI: jax.Array) -> jax.Array:
    """Gives the rows, with one of zeros behind a row that is alone."""
    return jnp.pad(x_MI, ((0, 1), (0, 0))) if len(x_MI) == 1 else x_MI


def int8_linear(x_MI: jax.Array, weight: Int8) -> jax.Array:
    """Multiplies rows with a weight of eight bits by XLA's products; float32 [M, O], not rounded.

    Compilers for GPUs and TPUs convert the values as they read them. The one for CPUs would write them out as floats, all of
    the weight in every call: there the columns go through in pieces that its caches hold.
    """

    def at_once(x_MI: jax.Array, value_OI: jax.Array) -> jax.Array:
        return product("mi,oi->mo", x_MI, value_OI.astype(x_MI.dtype), out_dtype=jnp.float32)

    def whole(x_MI: jax.Array, value_OI: jax.Array) -> jax.Array:
        return at_once(never_one_row(x_MI), value_OI)[: len(x_MI)]

    def in_pieces(x_MI: jax.Array, value_OI: jax.Array) -> jax.Array:
        x_MI = x_MI.astype(jnp.float32)
        O, I = value_OI.shape
        piece = max(1, min(O, PIECE_NUMBERS // I))
        in_full = O // piece * piece

        def columns_from(start: jax.Array) -> jax.Array:  # cut here: cut before the loop, the weight would be copied
            return at_once(x_MI, jax.lax.dynamic_slice_in_dim(value_OI, start, piece))

        out_NMo = jax.lax.map(columns_from, jnp.arange(0, in_full, piece))
        out_MO = out_NMo.transpose(1, 0, 2).reshape(len(x_MI), -1)
        if in_full < O:
            out_MO = jnp.concatenate([out_MO, at_once(x_MI, value_OI[in_full:])], axis=1)
        return out_MO

    out_MO: jax.Array = jax.lax.platform_dependent(x_MI, weight.value, cpu=in_pieces, default=whole)
    return out_MO * weight.scale[None]


def gated_mlp(x_BTD: jax.Array, gate_DF: Weight, up_DF: Weight, down_FD: Weight) -> jax.Array:
    """Computes down(silu(gate(x)) * up(x))."""
    return linear(jax.nn.silu(linear(x_BTD, gate_DF)) * linear(x_BTD, up_DF), down_FD)
