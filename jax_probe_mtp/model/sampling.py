"""The one definition of the next token: greedy, or a draw from the distribution that temperature, top-k and top-p cut out.

A draw is argmax(logits / T + Gumbel noise) over the tokens that the cuts leave. The noise depends on the row's own seed
and the position of the drawn token alone, so plain decoding and this method draw the same token at the same place,
whatever the tree, the batch or the neighbours.
"""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp


class Sampling(flax.struct.PyTreeNode, kw_only=True):
    """What a draw depends on besides the logits, one value a row.

    Attributes:
      seed_B: uint32 [B].
      temperature_B: float32 [B]; 0 is greedy. None where all rows are greedy.
      top_k_B: int32 [B]; the most likely k stay, 0 keeps all; None keeps all in every row.
      top_p_B: float32 [B]; then the most likely tokens up to this mass stay, 1 keeps all; None as for top-k.
    """

    seed_B: jax.Array
    temperature_B: Any = None
    top_k_B: Any = None
    top_p_B: Any = None


def prng_key(seed: jax.Array) -> jax.Array:
    """Makes a key of a named generator: the default one can be changed from outside, and with it the tokens."""
    return jax.random.key(seed, impl="threefry2x32")


def gumbel_noise(seed_B: jax.Array, position_B: jax.Array, vocab_size: int) -> jax.Array:
    """Draws the noise that draws the token at `position_B`: float32 [B, V], keyed by (seed, position) and nothing else."""

    def draw(seed: jax.Array, position: jax.Array) -> jax.Array:
        key = jax.random.fold_in(prng_key(seed), position)
        return jax.random.gumbel(key, (vocab_size,), jnp.float32)

    with jax.threefry_partitionable(True):  # a flag that also changes the bits
        return jax.vmap(draw)(seed_B, position_B)


def scale(logits: jax.Array, temperature_B: Any) -> jax.Array:
    """Divides logits [B, ..., V] by each row's temperature, and leaves them as they are where that is 0 or None."""
    if temperature_B is None:
        return logits
    divisor_B = jnp.where(temperature_B > 0, temperature_B, 1)
    return logits / jnp.expand_dims(divisor_B, range(1, logits.ndim))


def scores(logits_BV: jax.Array, position_B: jax.Array, sampling: Sampling | None) -> jax.Array:
    """Computes what the next token maximises: the logits, or logits / T plus noise where top-k and top-p leave a token.

    Args:
      logits_BV: float32 [B, V], at the position before.
      position_B: int32 [B], absolute position of the token to choose.
      sampling: None, or one without temperatures, in a greedy program, which then holds no noise.

    Returns:
      float32 [B, V].
    """
    if sampling is None or sampling.temperature_B is None:
        return logits_BV
    scaled_BV = scale(logits_BV, sampling.temperature_B)
    B = scaled_BV.shape[0]
    top_k_B = jnp.zeros(B, jnp.int32) if sampling.top_k_B is None else sampling.top_k_B
    top_p_B = jnp.ones(B, jnp.float32) if sampling.top_p_B is None else sampling.top_p_B
    is_kept_BV = keep_likely(scaled_BV, top_k_B, top_p_B)
    noisy_BV = scaled_BV + gumbel_noise(sampling.seed_B, position_B, logits_BV.shape[1])
    is_drawn_B1 = (sampling.temperature_B > 0)[:, None]
    return jnp.where(is_drawn_B1, jnp.where(is_kept_BV, noisy_BV, -jnp.inf), logits_BV)


def next_token(logits_BV: jax.Array, position_B: jax.Array, sampling: Sampling | None) -> jax.Array:
    """Chooses the token that the model puts at `position_B`, int32 [B]: plain decoding emits it, and a draft must equal it.

    Takes what `scores` takes. Ties go to the lowest id.
    """
    return jnp.argmax(scores(logits_BV, position_B, sampling), axis=-1).astype(jnp.int32)


def keep_likely(scaled_BV: jax.Array, top_k_B: jax.Array, top_p_B: jax.Array) -> jax.Array:
    """Marks the tokens that top-k, then top-p leave: bool [B, V].

    Top-p works on what top-k left, renormalised, and keeps the fewest most likely tokens whose mass reaches p. Tokens
    tied at a cut all stay, so the result does not depend on an order among equals.
    """
    for_gpu = functools.partial(_keep_likely, few_kernels=True)
    for_others = functools.partial(_keep_likely, few_kernels=False)
    return jax.lax.platform_dependent(scaled_BV, top_k_B, top_p_B, cuda=for_gpu, rocm=for_gpu, default=for_others)


def _keep_likely(scaled_BV: jax.Array, top_k_B: jax.Array, top_p_B: jax.Array, *, few_kernels: bool) -> jax.Array:
    """Does it for a GPU, where each small kernel costs more than its sums and a branch waits for the host, or a CPU."""

    def cut_k(kept_BV: jax.Array) -> jax.Array:
        target_B = jnp.where(top_k_B > 0, top_k_B, scaled_BV.shape[1]).astype(jnp.float32)
        return kept_BV & _top_of_weight(scaled_BV, jnp.ones_like(scaled_BV), target_B, few_kernels=few_kernels)

    def cut_p(kept_BV: jax.Array) -> jax.Array:
        weight_BV = jnp.where(kept_BV, jnp.exp(scaled_BV - jnp.max(scaled_BV, axis=-1, keepdims=True)), 0.0)
        target_B = top_p_B * jnp.sum(weight_BV, axis=-1)
        reached_BV = _top_of_weight(scaled_BV, weight_BV, target_B, few_kernels=few_kernels)
        return kept_BV & (reached_BV | (top_p_B >= 1)[:, None])

    kept_BV = jnp.ones(scaled_BV.shape, jnp.bool_)
    if few_kernels:
        return cut_p(cut_k(kept_BV))
    kept_BV = jax.lax.cond(jnp.any(top_k_B > 0), cut_k, lambda kept: kept, kept_BV)
    return jax.lax.cond(jnp.any(top_p_B < 1), cut_p, lambda kept: kept, kept_BV)


def _top_of_weight(value_BV: jax.Array, weight_BV: jax.Array, target_B: jax.Array, *, few_kernels: bool) -> jax.Array:
    """Marks the largest values, as many as it takes for their weights to sum to the target; ties stay together.

    Finds the threshold digit by digit in an integer that orders as the float does, no sort of the vocabulary: 32 passes
    of one sum, or 8 of 15, which are fewer kernels.
    """
    bits = jax.lax.bitcast_convert_type(value_BV, jnp.uint32)
    sign = jnp.uint32(1 << 31)
    ordered_BV = jnp.where(bits & sign, ~bits, bits | sign)
    digit_bits = 4 if few_kernels else 1
    digit_C = jnp.arange(1, 1 << digit_bits, dtype=jnp.uint32)

    def add_digit(i: jax.Array, threshold_B: jax.Array) -> jax.Array:
        shift = (32 - digit_bits * (i + 1)).astype(jnp.uint32)
        higher_BC = threshold_B[:, None] | (digit_C << shift)[None]
        mass_BC = jnp.sum(weight_BV[:, None], axis=-1, where=ordered_BV[:, None] >= higher_BC[..., None])
        return jnp.max(jnp.where(mass_BC >= target_B[:, None], higher_BC, threshold_B[:, None]), axis=-1)

    none_B = jnp.zeros(value_BV.shape[0], jnp.uint32)
    threshold_B = jax.lax.fori_loop(0, 32 // digit_bits, add_digit, none_B, unroll=few_kernels)
    return ordered_BV >= threshold_B[:, None]
