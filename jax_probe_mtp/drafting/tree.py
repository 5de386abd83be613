"""The token tree of one call: its arrays, and who is an ancestor of whom."""

import flax.struct
import jax
import jax.numpy as jnp

NO_PARENT = -1


class Tree(flax.struct.PyTreeNode, kw_only=True):
    """A tree of N nodes a row; node 0 is the root, parents come before their children.

    Attributes:
      token_BN: int32 [B, N], the root's token, then the drafts'; `NO_TOKEN` of draft.py for a node that drafts nothing.
      parent_BN: int32 [B, N], index of each node's parent, `NO_PARENT` for the root.
      depth_BN: int32 [B, N], edges from the root.
    """

    token_BN: jax.Array
    parent_BN: jax.Array
    depth_BN: jax.Array


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
    reach_BNN = jnp.broadcast_to(node_N[:, None] == node_N, (*parent_BN.shape, parent_BN.shape[1]))
    ancestor_BN = parent_BN
    for _ in range(max_depth):  # each pass marks the ancestor one edge further up
        reach_BNN |= ancestor_BN[:, :, None] == node_N  # NO_PARENT equals no node
        above_BN = jnp.take_along_axis(parent_BN, jnp.maximum(ancestor_BN, 0), axis=1)
        ancestor_BN = jnp.where(ancestor_BN == NO_PARENT, NO_PARENT, above_BN)
    return reach_BNN
