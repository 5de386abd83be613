"""Candidates of any draft source -> a tree of fixed size. Where the candidates came from does not matter here."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jax_probe_mtp.drafting.tree import NO_PARENT, Tree

NO_TOKEN = -1  # equals no token of the model: a node that holds it is never accepted


class Candidates(flax.struct.PyTreeNode, kw_only=True):
    """What a draft source proposes for the next tree, P candidates a row, parents before their children.

    Attributes:
      token_BP: int32 [B, P], `NO_TOKEN` where the source has nothing to propose.
      parent_BP: int32 [B, P], index of the candidate it hangs under, `NO_PARENT` for a child of the root.
      depth_BP: int32 [B, P], edges from the root, 1 for its children.
      score_BP: float32 [B, P], log-probability of the path from the root; never above the parent's.
    """

    token_BP: jax.Array
    parent_BP: jax.Array
    depth_BP: jax.Array
    score_BP: jax.Array


def fixed_candidates(token_BP: jax.Array, parent_P: np.ndarray, depth_P: np.ndarray) -> Candidates:
    """Candidates of one shape for all rows and calls, all of which are kept: their scores do not matter."""
    shape = token_BP.shape
    return Candidates(
        token_BP=token_BP,
        parent_BP=jnp.broadcast_to(jnp.asarray(parent_P, jnp.int32), shape),
        depth_BP=jnp.broadcast_to(jnp.asarray(depth_P, jnp.int32), shape),
        score_BP=jnp.zeros(shape, jnp.float32),
    )


def build_tree(root_B: jax.Array, candidates: Candidates, num_nodes: int) -> Tree:
    """Keeps the N - 1 candidates with the best score, best first; among equals the one listed first.

    A path's score is never above that of a path it extends, and parents are listed before their children, so what is
    kept is closed under ancestors. Where there are N - 1 candidates, all are kept in the order given.

    Args:
      root_B: int32 [B], the newest committed token.
      candidates: at least N - 1 of them.
      num_nodes: N, root included; static.

    Returns:
      A tree of N nodes, parents before their children.

    Source: the selection of ESP (arXiv:2603.17942), Algorithm 1.
    """
    B, P = candidates.token_BP.shape
    if num_nodes - 1 == P:
        kept_BN = jnp.broadcast_to(jnp.arange(P), (B, P))
    else:
        _, kept_BN = jax.lax.top_k(candidates.score_BP, num_nodes - 1)

    def keep(values_BP: jax.Array) -> jax.Array:
        return jnp.take_along_axis(values_BP, kept_BN, axis=1)

    # Node n + 1 is candidate kept_BN[n]; a parent's node is found by where its candidate went.
    is_parent_BNN = kept_BN[:, None, :] == keep(candidates.parent_BP)[:, :, None]
    number_N = jnp.arange(1, num_nodes, dtype=jnp.int32)
    parent_BN = jnp.sum(jnp.where(is_parent_BNN, number_N, 0), axis=-1, dtype=jnp.int32)  # none found: the root, 0
    return Tree(
        token_BN=jnp.concatenate([root_B[:, None], keep(candidates.token_BP)], axis=1),
        parent_BN=jnp.pad(parent_BN, ((0, 0), (1, 0)), constant_values=NO_PARENT),
        depth_BN=jnp.pad(keep(candidates.depth_BP), ((0, 0), (1, 0))),
    )
