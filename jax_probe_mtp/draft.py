"""Candidates -> a tree of fixed size. Where the candidates came from does not matter here."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jax_probe_mtp.config import ProbeConfig
from jax_probe_mtp.tree import NO_PARENT, Tree

NO_TOKEN = -1  # equals no token of the model: a node that holds it is never accepted


class Candidates(flax.struct.PyTreeNode, kw_only=True):
    """The best next tokens for each depth under the next root, best first.

    Attributes:
      id_BMC: int32 [B, M, C], `NO_TOKEN` before the first call.
      score_BMC: float32 [B, M, C], log-probabilities; read by dynamic trees alone.
    """

    id_BMC: jax.Array
    score_BMC: jax.Array


def no_candidates(batch_size: int, probe: ProbeConfig) -> Candidates:
    """Candidates before any mask has been read: their tree drafts nothing."""
    shape = (batch_size, probe.depth, probe.num_candidates)
    return Candidates(id_BMC=jnp.full(shape, NO_TOKEN, jnp.int32), score_BMC=jnp.zeros(shape, jnp.float32))


def top_candidates(score_BMV: jax.Array, probe: ProbeConfig) -> Candidates:
    """The C best tokens of each mask and, where the tree's shape depends on them, their log-probabilities.

    Args:
      score_BMV: float32 [B, M, V], the masks' logits over the temperature (plus noise where drafts are ranked with it).
      probe: the tree; static.
    """
    best_BMC, id_BMC = jax.lax.top_k(score_BMV, probe.num_candidates)
    if probe.is_dynamic:
        best_BMC -= jax.nn.logsumexp(score_BMV, axis=-1, keepdims=True)
    return Candidates(id_BMC=id_BMC.astype(jnp.int32), score_BMC=best_BMC)


def build_tree(root_B: jax.Array, candidates: Candidates, probe: ProbeConfig) -> Tree:
    """Hangs the candidates of each depth under the top-1 node of the depth above, and keeps N - 1 of them.

    A static tree keeps all of its pools, depth by depth. A dynamic one keeps the candidates with the best product of
    probabilities along their path, best first; among equals the smaller depth, then the better rank. A path is never
    better than a path it extends, so what is kept is closed under ancestors.

    Args:
      root_B: int32 [B], the newest committed token.
      candidates: for each depth at least as many as its pool, one more when pruning.
      probe: pools, pruning, static or dynamic; static.

    Returns:
      A tree of `probe.num_nodes` nodes, parents before their children.

    Source: ESP (arXiv:2603.17942), Sections 3.4 and 3.5, Algorithm 1, Appendix D.
    """
    B = root_B.shape[0]
    pool_sizes = probe.pool_sizes
    parent_token_B, path_score_B1 = root_B, jnp.zeros((B, 1), jnp.float32)
    token_pools, score_pools = [jnp.zeros((B, 0), jnp.int32)], [jnp.zeros((B, 0), jnp.float32)]
    for i, size in enumerate(pool_sizes):
        id_BC, score_BC = candidates.id_BMC[:, i], candidates.score_BMC[:, i]
        if probe.prune:
            id_BC, score_BC = _drop(parent_token_B, id_BC, score_BC)
        token_pools.append(id_BC[:, :size])
        score_pools.append(path_score_B1 + score_BC[:, :size])
        parent_token_B, path_score_B1 = id_BC[:, 0], score_pools[-1][:, :1]

    token_BP = jnp.concatenate(token_pools, axis=1)
    pool_start = np.concatenate([[0], np.cumsum(pool_sizes)]).astype(np.int32)  # the top-1 node of each depth
    depth_P = np.repeat(np.arange(1, len(pool_sizes) + 1, dtype=np.int32), pool_sizes)
    parent_P = np.concatenate([[NO_PARENT], pool_start])[depth_P - 1].astype(np.int32)  # a pool entry; the root: none
    if probe.is_dynamic:
        _, kept_BN = jax.lax.top_k(jnp.concatenate(score_pools, axis=1), probe.num_nodes - 1)
    else:
        kept_BN = jnp.broadcast_to(jnp.arange(probe.num_nodes - 1), (B, probe.num_nodes - 1))
    # Node n + 1 is pool entry kept_BN[n]; a parent's node is found by where its pool entry went.
    is_parent_BNN = kept_BN[:, None, :] == jnp.asarray(parent_P)[kept_BN][:, :, None]
    number_N = jnp.arange(1, probe.num_nodes, dtype=jnp.int32)
    parent_BN = jnp.sum(jnp.where(is_parent_BNN, number_N, 0), axis=-1, dtype=jnp.int32)  # none found: the root, 0
    return Tree(
        token_BN=jnp.concatenate([root_B[:, None], jnp.take_along_axis(token_BP, kept_BN, axis=1)], axis=1),
        parent_BN=jnp.pad(parent_BN, ((0, 0), (1, 0)), constant_values=NO_PARENT),
        depth_BN=jnp.pad(jnp.asarray(depth_P)[kept_BN], ((0, 0), (1, 0))),
    )


def _drop(token_B: jax.Array, id_BC: jax.Array, score_BC: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Takes `token_B` out of the candidates; those behind it move up. The last place then repeats and is not used."""
    is_behind_BC = jnp.cumsum(id_BC == token_B[:, None], axis=1) > 0
    source_BC = jnp.minimum(jnp.arange(id_BC.shape[1]) + is_behind_BC, id_BC.shape[1] - 1)
    return jnp.take_along_axis(id_BC, source_BC, axis=1), jnp.take_along_axis(score_BC, source_BC, axis=1)
