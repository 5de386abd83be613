"""How likely a candidate is accepted if its parent is: a sum of one weight for each thing that is known of it, learned.

All that decides a tree is whole numbers: weights are rounded to 1/64 before they are added, and the cost of a candidate,
-log sigmoid(sum), is read from a table in 64ths of a nat. Another implementation that has the same weights builds the same
tree.
"""

import json
from pathlib import Path
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax

from jax_probe_mtp.drafting.merged.facts import FIRST_WEIGHT, GROUPS, NUM_WEIGHTS, Facts, chosen
from jax_probe_mtp.model.top_k import last_axis

STEP = 64  # a weight's and a cost's steps in 1
MOST = 12 * STEP  # sums are cut there
# Measured (docs/drafting.md): more makes the few calls of one answer worse than the weights that it began with.
LEARNING_RATE = 0.1
INITIAL_ACCUMULATOR = 20.0
_RULE = optax.adagrad(LEARNING_RATE, INITIAL_ACCUMULATOR)
# What a candidate costs, by its sum of weights, from -MOST to MOST.
COST = np.round(np.logaddexp(0, -np.arange(-MOST, MOST + 1) / STEP) * STEP).astype(np.int32)


class Weights(flax.struct.PyTreeNode, kw_only=True):
    """Y sets of weights: one a row (cold), or one for all rows (warm).

    Attributes:
      weight_YF: float32 [Y, F].
      rule: the state of optax.adagrad.
    """

    weight_YF: jax.Array
    rule: Any

    @property
    def whole_YF(self) -> jax.Array:
        """Gives the weights in 64ths, int32."""
        return jnp.round(self.weight_YF * STEP).astype(jnp.int32)


def shipped_weights() -> np.ndarray:
    """Reads the weights that come with the package, float32 [F] (docs/drafting.md says how they were made)."""
    values = json.loads(Path(__file__).with_name("weights.json").read_text(encoding="utf-8"))
    return np.concatenate([np.asarray(values[name], np.float32) for name in GROUPS])


def begin_weights(num_sets: int) -> Weights:
    """Begins with the weights that come with the package."""
    weight_YF = jnp.broadcast_to(jnp.asarray(shipped_weights()), (num_sets, NUM_WEIGHTS))
    return Weights(weight_YF=weight_YF, rule=_RULE.init(weight_YF))


def sum_of_weights(whole_YF: jax.Array, note_BX: jax.Array) -> jax.Array:
    """Adds the weights of candidates in 64ths, int32 [B, X], cut to -12 and 12."""
    B, Y = note_BX.shape[0], whole_YF.shape[0]
    table_B1 = (jnp.arange(B, dtype=jnp.int32) % Y)[:, None]
    total = sum(whole_YF[table_B1, FIRST_WEIGHT[group] + i_BX] for group, i_BX in chosen(Facts.unpack(note_BX)).items())
    return jnp.clip(total, -MOST, MOST)


def cost(sum_BX: jax.Array) -> jax.Array:
    """Gives what a candidate costs: -log P(accepted | parent accepted) in 64ths of a nat, int32."""
    return jnp.asarray(COST)[sum_BX + MOST]


@jax.jit  # as `grow`
def learn_weights(weights: Weights, note_BN: jax.Array, is_asked_BN: jax.Array, is_accepted_BN: jax.Array) -> Weights:
    """Makes one step of AdaGrad along the log-likelihood of what a call accepted.

    Args:
      weights: Y sets.
      note_BN: int32 [B, N], what was known of the nodes.
      is_asked_BN: bool [B, N], children of accepted nodes.
      is_accepted_BN: bool [B, N], those of them that were accepted.
    """
    Y = weights.weight_YF.shape[0]
    chance_BN = jax.nn.sigmoid(sum_of_weights(weights.whole_YF, note_BN).astype(jnp.float32) / STEP)
    error_BN = jnp.where(is_asked_BN, is_accepted_BN.astype(jnp.float32) - chance_BN, 0)
    number_BNg = jnp.stack(
        [FIRST_WEIGHT[group] + i_BN for group, i_BN in chosen(Facts.unpack(note_BN)).items()], axis=-1
    )
    is_of_BNgF = number_BNg[..., None] == last_axis(NUM_WEIGHTS, 4)
    gradient_BF = -jnp.sum(jnp.where(is_of_BNgF, error_BN[..., None, None], 0), axis=(1, 2))
    gradient_YF = jnp.sum(gradient_BF.reshape(-1, Y, NUM_WEIGHTS), axis=0)
    step_YF, rule = _RULE.update(gradient_YF, weights.rule)
    return Weights(weight_YF=optax.apply_updates(weights.weight_YF, step_YF), rule=rule)
