"""The token tree of one call: its arrays, how candidates of any source fill it, and who is an ancestor of whom."""

import flax.struct
import jax
import jax.numpy as jnp

from jax_probe_mtp.drafting.candidates import NO_PARENT, Candidates


class Tree(flax.struct.PyTreeNode, kw_only=True):
    """A tree of N nodes a row; node 0 is the root, parents come before their children.

    Attributes:
      token_BN: int32 [B, N], the root's token, then the drafts'; `NO_TOKEN` for a node that drafts nothing.
      parent_BN: int32 [B, N], index of each node's parent, `NO_PARENT` for the root.
      depth_BN: int32 [B, N], edges from the root.
      score_BN: float32 [B, N], log-probability of each node's path, as its source sees it; 0 for the root.
      kind_BN: int32 [B, N], which of its source's `kinds` each draft is; 0 for the root too.
      note_BN: int32 [B, N], what the source noted of each draft, 0 for the root; None where it noted nothing.
    """

    token_BN: jax.Array
    parent_BN: jax.Array
    depth_BN: jax.Array
    score_BN: jax.Array
    kind_BN: jax.Array
    note_BN: jax.Array | None = None


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
    before_root = ((0, 0), (1, 0))
    if num_nodes == 1:  # sums over nothing would bring constants without elements: see `programs._on_mesh`
        nothing_B1 = jnp.zeros((B, 1), jnp.int32)
        return Tree(
            token_BN=root_B[:, None],
            parent_BN=nothing_B1 + NO_PARENT,
            depth_BN=nothing_B1,
            score_BN=jnp.zeros((B, 1), candidates.score_BP.dtype),
            kind_BN=nothing_B1,
            note_BN=None if candidates.note_BP is None else jnp.zeros((B, 1), candidates.note_BP.dtype),
        )
    if num_nodes - 1 == P:
        kept_BN = jnp.broadcast_to(jnp.arange(P), (B, P))
    else:
        _, kept_BN = jax.lax.top_k(candidates.score_BP, num_nodes - 1)

    def keep(values_BP: jax.Array) -> jax.Array:
        return jnp.take_along_axis(values_BP, kept_BN, axis=1)

    # Node n + 1 is candidate kept_BN[n]; a parent's node is found by where its candidate went.
    is_parent_BNN = kept_BN[:, None, :] == keep(candidates.parent_BP)[:, :, None]
    number_N = jnp.arange(1, num_nodes, dtype=jnp.int32)
    parent_BN = jnp.sum(
        jnp.where(is_parent_BNN, number_N[None, None], 0), axis=-1, dtype=jnp.int32
    )  # none found: the root, 0
    return Tree(
        token_BN=jnp.concatenate([root_B[:, None], keep(candidates.token_BP)], axis=1),
        parent_BN=jnp.pad(parent_BN, before_root, constant_values=NO_PARENT),
        depth_BN=jnp.pad(keep(candidates.depth_BP), before_root),
        score_BN=jnp.pad(keep(candidates.score_BP), before_root),
        kind_BN=jnp.pad(keep(candidates.kind_BP), before_root),
        note_BN=None if candidates.note_BP is None else jnp.pad(keep(candidates.note_BP), before_root),
    )


def ancestors_or_self(parent_BN: jax.Array, *, max_depth: int) -> jax.Array:
    """Marks, for every tree node, the node itself and each node above it.

    Args:
      parent_BN: int32 [B, N], index of each node's parent; `NO_PARENT` for the root.
      max_depth: edges from the root to the deepest node; static.

    Returns:
      bool [B, N, N], True at [b, i, j] when j is i or on i's path to the root.

    Raises:
      ValueError: if `parent_BN` is not [B, N].

    Source: the topology-aware causal mask of SpecInfer (arXiv:2305.09781).
    """
    if parent_BN.ndim != 2:
        raise ValueError(f"parent_BN must be [B, N], got shape {parent_BN.shape}.")
    node_N = jnp.arange(parent_BN.shape[1])
    reach_BNN = jnp.broadcast_to(node_N[:, None] == node_N[None], (*parent_BN.shape, parent_BN.shape[1]))
    ancestor_BN = parent_BN
    for _ in range(max_depth):  # each pass marks the ancestor one edge further up
        reach_BNN |= ancestor_BN[:, :, None] == node_N[None, None]  # NO_PARENT equals no node
        above_BN = jnp.take_along_axis(parent_BN, jnp.maximum(ancestor_BN, 0), axis=1)
        ancestor_BN = jnp.where(ancestor_BN == NO_PARENT, NO_PARENT, above_BN)
    return reach_BNN
