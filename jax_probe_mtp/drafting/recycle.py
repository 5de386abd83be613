"""The draft source Token Recycling: a table of the successors that the model itself last ranked best after each token.

Every row of every call gives the best next tokens after its own token, those of rejected drafts and of the prompt too.
Following the table from the root makes the next tree.

Source: Token Recycling (arXiv:2408.08696).
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jax_probe_mtp.drafting.candidates import NO_TOKEN, Candidates, fixed_candidates
from jax_probe_mtp.drafting.draft_config import STATIC80_CHILDREN, RecycleConfig
from jax_probe_mtp.drafting.top_k import top_k
from jax_probe_mtp.drafting.tree import NO_PARENT

NUM_SUCCESSORS = 8


class Table(flax.struct.PyTreeNode, kw_only=True):
    """Each token's latest best successors, best first; E tables: one a row (cold), or one for all rows (warm).

    Attributes:
      id_EVC: int32 [E, V, 8], `NO_TOKEN` until the token has been in a call.
      score_EVC: float32 [E, V, 8], their log-probabilities.
    """

    id_EVC: jax.Array
    score_EVC: jax.Array


def empty_table(batch_size: int, vocab_size: int, cfg: RecycleConfig) -> Table:
    """A table that knows nothing."""
    shape = (1 if cfg.is_warm else batch_size, vocab_size, NUM_SUCCESSORS)
    return Table(id_EVC=jnp.full(shape, NO_TOKEN, jnp.int32), score_EVC=jnp.full(shape, -jnp.inf, jnp.float32))


def harvest(table: Table, token_BR: jax.Array, is_used_BR: jax.Array, logits_BRV: jax.Array) -> Table:
    """Writes the best successors of each row's token. Where a token is there twice the last one wins.

    In a shared table the rows come in the order of the batch, and a scatter leaves open which of two writes to one place
    stays: so all but the last are taken out first.

    Args:
      table: E is B or 1.
      token_BR: int32 [B, R], the tokens that were in the call.
      is_used_BR: bool [B, R], False for rows that must leave no trace.
      logits_BRV: float32 [B, R, V], after those tokens, over the temperature of rows that are sampled.
    """
    E, V, C = table.id_EVC.shape
    best_BRC, id_BRC = top_k(logits_BRV, C)
    score_BRC = jnp.minimum(best_BRC - jax.nn.logsumexp(logits_BRV, axis=-1, keepdims=True), 0)
    token_EG = jnp.where(is_used_BR, token_BR, V).reshape(E, -1)
    is_same_EGG = token_EG[:, :, None] == token_EG[:, None, :]
    is_later_GG = jnp.triu(jnp.ones(is_same_EGG.shape[1:], jnp.bool_), k=1)
    target_EG = jnp.where(jnp.any(is_same_EGG & is_later_GG, axis=2), V, token_EG)  # V is outside: dropped
    at = table.id_EVC.at[jnp.arange(E)[:, None], target_EG]
    score_at = table.score_EVC.at[jnp.arange(E)[:, None], target_EG]
    return table.replace(
        id_EVC=at.set(id_BRC.astype(jnp.int32).reshape(E, -1, C), mode="drop"),
        score_EVC=score_at.set(score_BRC.reshape(E, -1, C), mode="drop"),
    )


def propose(table: Table, root_B: jax.Array, cfg: RecycleConfig) -> Candidates:
    """Follows the table from the root: the paper's fixed tree, or enough paths to find the best N - 1 of them.

    A best-first tree of N nodes has at most N - d nodes at depth d, so that many paths are followed from each depth: the
    candidates hold the best N - 1 paths of `cfg.max_depth` edges at most, no search gives better ones.
    """
    if cfg.is_static:
        return _static_tree(table, root_B)
    B, N = root_B.shape[0], cfg.num_nodes
    token_BW, score_BW = root_B[:, None], jnp.zeros((B, 1), jnp.float32)
    parent_B1 = jnp.full((B, 1), NO_PARENT, jnp.int32)
    tokens, parents, scores, depths, listed = [], [], [], [], 0
    index_BW = parent_B1
    for depth in range(1, cfg.max_depth + 1):
        id_BWC, step_BWC = _successors(table, token_BW)
        path_BF = (score_BW[..., None] + step_BWC).reshape(B, -1)
        id_BF = id_BWC.reshape(B, -1)
        parent_BF = jnp.repeat(index_BW, NUM_SUCCESSORS, axis=1)
        score_BW, best_BW = jax.lax.top_k(path_BF, min(path_BF.shape[1], N - depth))
        token_BW = jnp.take_along_axis(id_BF, best_BW, axis=1)
        width = token_BW.shape[1]
        tokens.append(token_BW)
        parents.append(jnp.take_along_axis(parent_BF, best_BW, axis=1))
        scores.append(score_BW)
        depths.append(np.full(width, depth))
        index_BW = jnp.broadcast_to(listed + jnp.arange(width, dtype=jnp.int32), (B, width))
        listed += width
    depth_P = np.concatenate(depths)
    return Candidates(
        token_BP=jnp.concatenate(tokens, axis=1),
        parent_BP=jnp.concatenate(parents, axis=1),
        depth_BP=jnp.broadcast_to(jnp.asarray(depth_P, jnp.int32), (B, depth_P.size)),
        score_BP=jnp.concatenate(scores, axis=1),
    )


def _static_tree(table: Table, root_B: jax.Array) -> Candidates:
    level_BW, tokens, parents, depths = root_B[:, None], [], [], []
    first_of_level, listed = NO_PARENT, 0
    for depth, num_children in enumerate(STATIC80_CHILDREN, start=1):
        above_W = np.repeat(np.arange(len(num_children)), num_children)
        rank_W = np.concatenate([np.arange(count) for count in num_children])
        id_BWC, _ = _successors(table, level_BW)
        level_BW = id_BWC[:, above_W, rank_W]
        tokens.append(level_BW)
        parents.append(first_of_level + above_W)
        depths.append(np.full(above_W.size, depth))
        first_of_level, listed = listed, listed + above_W.size
    return fixed_candidates(jnp.concatenate(tokens, axis=1), np.concatenate(parents), np.concatenate(depths))


def _successors(table: Table, token_BW: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Ids and log-probabilities [B, W, 8] of what may follow; the ids are `NO_TOKEN` after `NO_TOKEN`."""
    E = table.id_EVC.shape[0]
    table_B1 = (jnp.arange(token_BW.shape[0]) % E)[:, None]
    index = (table_B1, jnp.maximum(token_BW, 0))
    id_BWC = jnp.where((token_BW == NO_TOKEN)[..., None], NO_TOKEN, table.id_EVC[index])
    return id_BWC, table.score_EVC[index]  # a path that NO_TOKEN is on has -inf already
