"""The layout of a block, the rows of one call: their order, their positions, and what each may attend to.

N tree nodes with M masks each make R = N (M + 1) rows: first the nodes, then the masks of node 0, of node 1, ... For a
root with one child and M = 2, what a row may read of the block (all rows also read the committed prefix):

               root child | r.1  r.2  c.1  c.2
      root       x        |
      child      x    x   |
      r.1        x        |  x
      r.2        x        |  x    x
      c.1        x    x   |            x
      c.2        x    x   |            x    x

No node reads a mask: masks cannot change a verification logit.
"""

import jax
import jax.numpy as jnp
import numpy as np


def block_layout(num_nodes: int, num_masks: int) -> tuple[np.ndarray, np.ndarray]:
    """Which node owns each row of a block, and which mask of it the row is.

    Returns:
      int32 [R] owner (a node owns itself) and int32 [R] index: 0 for a node, i for its mask i.
    """
    nodes = np.arange(num_nodes, dtype=np.int32)
    owner_R = np.concatenate([nodes, np.repeat(nodes, num_masks)])
    masks = np.tile(np.arange(1, num_masks + 1, dtype=np.int32), num_nodes)
    return owner_R, np.concatenate([np.zeros_like(nodes), masks])


def block_positions(depth_BN: jax.Array, length_B: jax.Array, num_masks: int) -> jax.Array:
    """Rotary positions, int32 [B, R]: a node sits its depth after the root, mask i another i after its owner.

    Args:
      depth_BN: int32 [B, N], edges from the root.
      length_B: int32 [B], committed tokens in the cache, the root's position.
      num_masks: M; static.
    """
    owner_R, index_R = block_layout(depth_BN.shape[1], num_masks)
    return length_B[:, None] + depth_BN[:, owner_R] + index_R


def block_visible(is_ancestor_BNN: jax.Array, num_masks: int) -> jax.Array:
    """What each row of a block may read of the block: its owner's path, and its owner's masks up to itself.

    Args:
      is_ancestor_BNN: bool [B, N, N], `tree.ancestors_or_self`.
      num_masks: M; static.

    Returns:
      bool [B, R, R].

    Source: ESP (arXiv:2603.17942), Section 3.3.
    """
    B, N, _ = is_ancestor_BNN.shape
    owner_R, index_R = block_layout(N, num_masks)
    is_own_mask_RR = (owner_R[:, None] == owner_R) & (index_R <= index_R[:, None])
    own_masks = np.broadcast_to(is_own_mask_RR[:, N:], (B, owner_R.size, N * num_masks))
    return jnp.concatenate([is_ancestor_BNN[:, owner_R], own_masks], axis=2)


def block_can_attend(
    is_visible_BRR: jax.Array, length_B: jax.Array, start: jax.Array | int, num_slots: int
) -> jax.Array:
    """What each row of a block may read of the cache: the committed prefix, and of the block what is visible to it.

    Args:
      is_visible_BRR: bool [B, R, R], `block_visible`.
      length_B: int32 [B], committed slots of each row.
      start: slot of the block's first row, for all batch rows or int32 [B].
      num_slots: S; static.

    Returns:
      bool [B, R, S].
    """
    R = is_visible_BRR.shape[1]
    slot_S = jnp.arange(num_slots)
    is_prefix_B1S = (slot_S < length_B[:, None])[:, None]
    if R == 1:
        return is_prefix_B1S | (slot_S == jnp.reshape(start, (-1, 1)))[:, None]
    if jnp.ndim(start):
        raise ValueError(
            f"a block of {R} rows begins at the same slot in all batch rows, got an array of {jnp.shape(start)}."
        )
    behind = num_slots - start - R
    return is_prefix_B1S | jnp.pad(is_visible_BRR, ((0, 0), (0, 0), (start, behind)))


def absolute_tail(
    is_visible_BRR: jax.Array, position_BR: jax.Array, length_B: jax.Array, start: jax.Array | int, window: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """What a block's rows read, cut where a row's own position says: `layers.anchored_attention`'s last three arguments.

    Of a row at position q the anchor is W max(0, q // W - 1), at most the committed length since a path has no more than
    W rows above q; the tail is the 2 W positions from there. W = 4, a row at q = 13 two below its root at 11:

      position   0 .. 7 | 8   9  10 | 11    12    13 | 14  15
      read from  cache  | cache     | root child row | nothing

    With 12 committed tokens and the row's parent as the root, or 13 and the row itself, the same positions are read in the
    same order; that some come out of other slots changes nothing.

    Args:
      is_visible_BRR: bool [B, R, R], `block_visible`.
      position_BR: int32 [B, R], `block_positions`.
      length_B: int32 [B], committed slots.
      start: slot of the block's first row, for all batch rows or int32 [B].
      window: W, at least the rows of the longest path less one; static.

    Returns:
      int32 [B, R] anchor, int32 [B, R, 2 W] slots of the positions from there on, bool [B, R, 2 W] True where one is read.
    """
    anchor_BR = window * jnp.maximum(position_BR // window - 1, 0)
    place_BRJ = anchor_BR[..., None] + jnp.arange(2 * window)
    is_on_path_BRJR = is_visible_BRR[:, :, None, :] & (position_BR[:, None, None, :] == place_BRJ[..., None])
    row_BRJ = jnp.argmax(is_on_path_BRJR, axis=-1).astype(jnp.int32)
    slot_BRJ = jnp.where(place_BRJ < length_B[:, None, None], place_BRJ, jnp.reshape(start, (-1, 1, 1)) + row_BRJ)
    return anchor_BR, slot_BRJ, place_BRJ <= position_BR[..., None]
