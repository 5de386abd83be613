"""Measures how well given tokens fit a model's distributions: how far each is from the best, and how likely it was.

Two distributions stand side by side: the model's own (temperature 1, nothing cut), in which any two texts compare, and the
stated one, by which the output says that it was drawn. Of a draw a token's log-probability has the expectation -entropy and
the variance Var(log p), whoever drew it and with whatever seed; so a sum over a file has a known mean and spread.
"""

from typing import Any

import flax.struct
import jax
import jax.numpy as jnp

from jax_probe_mtp.model import sampling
from jax_probe_mtp.model.sampling import Sampling

# A greedy text is judged as one that was drawn at this temperature: so a token that ties with the best costs nothing, and one
# that is a nat behind it costs ten.
GREEDY_TEMPERATURE = 0.1
# Nats beyond the stated cuts from which a token is impossible: two steps of bfloat16 at logits of 16 to 32. Where a cut lies
# changes with rounding.
BORDER = 0.25


class Fit(flax.struct.PyTreeNode, kw_only=True):
    """How tokens fit one distribution p; all float32 of one shape.

    Attributes:
      logprob: log p(token), in nats; -inf where cuts leave the token out.
      entropy: -sum p log p, the expectation of -logprob.
      variance: of log p, under p.
      above: mass of the tokens that go before it: likelier ones, and equal ones of a lower id.
    """

    logprob: jax.Array
    entropy: jax.Array
    variance: jax.Array
    above: jax.Array


class TokenScores(flax.struct.PyTreeNode, kw_only=True):
    """What a model says of given tokens, at each of their places.

    Attributes:
      margin: float32, the best logit less the token's, penalties included; 0 where the token is the best.
      beyond: float32, how far the token is below the least likely one that the stated cuts leave, in scaled logits; at most 0
        where they leave it.
      rank: int32, tokens that go before it: those with a larger logit, and equal ones of a lower id.
      own: in the model's distribution, at temperature 1 and without cuts.
      stated: in the distribution of the row's temperature and cuts; of a greedy row, at `GREEDY_TEMPERATURE`.
      at: [..., T] at each of the temperatures that were asked for, without cuts.
    """

    margin: jax.Array
    beyond: jax.Array
    rank: jax.Array
    own: Fit
    stated: Fit
    at: Fit | None = None


def token_scores(
    logits_BV: jax.Array, given_B: jax.Array, draw: Sampling | None, temperatures: tuple[float, ...] = ()
) -> TokenScores:
    """Scores one token of each row.

    Args:
      logits_BV: float32 [B, V], penalties included, at the place before.
      given_B: int32 [B], the tokens.
      draw: temperatures and cuts of the rows; its seeds are not read. None where all are greedy.
      temperatures: others at which the tokens are scored as well; static.

    Returns:
      Arrays [B], and [B, T] of T other temperatures.
    """
    B, V = logits_BV.shape
    given_B1 = given_B[:, None]
    logit_B1 = jnp.take_along_axis(logits_BV, given_B1, axis=1)
    is_equal_lower_BV = (logits_BV == logit_B1) & (jnp.arange(V, dtype=jnp.int32)[None] < given_B1)
    is_before_BV = (logits_BV > logit_B1) | is_equal_lower_BV
    if draw is None or draw.temperature_B is None:
        stated_BV, is_kept_BV = logits_BV / GREEDY_TEMPERATURE, None
    else:
        temperature_B = jnp.where(draw.temperature_B > 0, draw.temperature_B, GREEDY_TEMPERATURE)
        stated_BV = sampling.scale(logits_BV, temperature_B)
        is_greedy_B1 = ~(draw.temperature_B > 0)[:, None]  # has no cuts
        is_kept_BV = is_greedy_B1 | sampling.keep_likely(
            stated_BV, _or(draw.top_k_B, jnp.zeros(B, jnp.int32)), _or(draw.top_p_B, jnp.ones(B))
        )
    at = None
    if temperatures:  # one after the other: side by side they would take T times the memory

        def at_one(temperature: jax.Array) -> Fit:
            return _fit(logits_BV / temperature, None, given_B1, is_before_BV)

        at = jax.lax.map(at_one, jnp.asarray(temperatures, jnp.float32))
    return TokenScores(
        margin=jnp.max(logits_BV, axis=1) - logit_B1[:, 0],
        beyond=_beyond(stated_BV, is_kept_BV, given_B1),
        rank=jnp.sum(is_before_BV, axis=1, dtype=jnp.int32),
        own=_fit(logits_BV, None, given_B1, is_before_BV),
        stated=_fit(stated_BV, is_kept_BV, given_B1, is_before_BV),
        at=jax.tree.map(lambda fit_TB: fit_TB.T, at),
    )


def _beyond(scaled_BV: jax.Array, is_kept_BV: jax.Array | None, given_B1: jax.Array) -> jax.Array:
    if is_kept_BV is None:
        return jnp.zeros(scaled_BV.shape[0], jnp.float32)
    least_B = jnp.min(jnp.where(is_kept_BV, scaled_BV, jnp.inf), axis=1)
    return least_B - jnp.take_along_axis(scaled_BV, given_B1, axis=1)[:, 0]


def nothing_scored(shape: tuple[int, ...], num_temperatures: int = 0) -> TokenScores:
    """Gives zeros, to be filled in."""
    fit = _zero_fit(shape)
    at = _zero_fit((*shape, num_temperatures)) if num_temperatures else None
    return TokenScores(
        margin=fit.logprob, beyond=fit.logprob, rank=jnp.zeros(shape, jnp.int32), own=fit, stated=fit, at=at
    )


def _zero_fit(shape: tuple[int, ...]) -> Fit:
    zero = jnp.zeros(shape, jnp.float32)
    return Fit(logprob=zero, entropy=zero, variance=zero, above=zero)


def _or(value: Any, otherwise: jax.Array) -> jax.Array:
    return otherwise if value is None else value


def _fit(scaled_BV: jax.Array, is_kept_BV: jax.Array | None, given_B1: jax.Array, is_before_BV: jax.Array) -> Fit:
    kept_BV = scaled_BV if is_kept_BV is None else jnp.where(is_kept_BV, scaled_BV, -jnp.inf)
    logp_BV = jax.nn.log_softmax(kept_BV, axis=1)
    p_BV = jnp.exp(logp_BV)
    finite_BV = jnp.where(p_BV > 0, logp_BV, 0)
    mean_B = jnp.sum(p_BV * finite_BV, axis=1)
    return Fit(
        logprob=jnp.take_along_axis(logp_BV, given_B1, axis=1)[:, 0],
        entropy=-mean_B,
        variance=jnp.sum(p_BV * (finite_BV - mean_B[:, None]) ** 2, axis=1),
        above=jnp.sum(jnp.where(is_before_BV, p_BV, 0), axis=1),
    )
