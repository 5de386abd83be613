"""The block, the rows of one call: their order, their positions, and what each may attend to.

N tree nodes, O of which own M masks each, make R = N + O M rows: first the nodes, then the masks owner by owner. For a root
with one child, both owning M = 2 masks, a row reads these rows of the block (all rows also read the committed prefix):

               root child | r.1  r.2  c.1  c.2
      root       x        |
      child      x    x   |
      r.1        x        |  x
      r.2        x        |  x    x
      c.1        x    x   |            x
      c.2        x    x   |            x    x

No node reads a mask: masks cannot change a verification logit.
"""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jax_probe_mtp.drafting.source import DraftSource
from jax_probe_mtp.drafting.tree import Tree, ancestors_or_self


class Block(flax.struct.PyTreeNode, kw_only=True):
    """Where the rows of a call sit, and which of them each may read.

    Attributes:
      position_BR: int32 [B, R], rotary positions: a node sits its depth after the root, mask i another i after its owner.
      is_visible_BRR: bool [B, R, R], True where row i reads row j of the block.
      length_B: int32 [B], committed slots of the cache, the root's position.
      start: slot of the block's first row: behind the capacity for all batch rows; or int32 [B], behind the prefix, of a
        block that is the root alone: it always stays, so it is written where it belongs.
      longest_path: positions from the root to the block's deepest row, masks counted; static.
    """

    position_BR: jax.Array
    is_visible_BRR: jax.Array
    length_B: jax.Array
    start: jax.Array | int
    longest_path: int = flax.struct.field(pytree_node=False)

    @property
    def start_B(self) -> jax.Array:
        """Gives the slot of each batch row's first row, int32 [B]."""
        return jnp.broadcast_to(jnp.asarray(self.start, jnp.int32), self.length_B.shape)


def make_block(
    tree: Tree, owner_BO: jax.Array | None, length_B: jax.Array, capacity: int, source: DraftSource
) -> Block:
    """Lays out the rows of a call.

    Args:
      tree: what is in the call.
      owner_BO: int32 [B, O], the nodes that own masks; None for all of them.
      length_B: int32 [B], committed slots.
      capacity: S, slots of the cache before its scratch; static.
      source: its `max_depth` and `num_masks`; static.
    """
    M = source.num_masks
    is_ancestor_BNN = ancestors_or_self(tree.parent_BN, max_depth=source.max_depth)
    return Block(
        position_BR=block_positions(tree.depth_BN, length_B, M, owner_BO),
        is_visible_BRR=block_visible(is_ancestor_BNN, M, owner_BO),
        length_B=length_B,
        start=length_B if source.num_rows == 1 else capacity,
        longest_path=source.max_depth + M,
    )


def block_positions(
    depth_BN: jax.Array, length_B: jax.Array, num_masks: int, owner_BO: jax.Array | None = None
) -> jax.Array:
    """Computes rotary positions, int32 [B, R]: a node sits its depth after the root, mask i another i after its owner.

    Args:
      depth_BN: int32 [B, N], edges from the root.
      length_B: int32 [B], committed tokens in the cache, the root's position.
      num_masks: M; static.
      owner_BO: int32 [B, O], the nodes that own masks; None for all of them.
    """
    if not num_masks:  # nor constants without elements: see `programs._on_mesh`
        return length_B[:, None] + depth_BN
    num_owners = depth_BN.shape[1] if owner_BO is None else owner_BO.shape[1]
    index_M = np.tile(np.arange(1, num_masks + 1, dtype=np.int32), num_owners)
    of_masks_BM = jnp.repeat(_of_owners(depth_BN, owner_BO), num_masks, axis=1) + index_M[None]
    return length_B[:, None] + jnp.concatenate([depth_BN, of_masks_BM], axis=1)


def block_visible(is_ancestor_BNN: jax.Array, num_masks: int, owner_BO: jax.Array | None = None) -> jax.Array:
    """Marks what each row of a block reads of the block: its owner's path, and its owner's masks up to itself.

    Args:
      is_ancestor_BNN: bool [B, N, N], `tree.ancestors_or_self`.
      num_masks: M; static.
      owner_BO: int32 [B, O], the nodes that own masks; None for all of them.

    Returns:
      bool [B, R, R].

    Source: ESP (arXiv:2603.17942), Section 3.3.
    """
    if not num_masks:
        return is_ancestor_BNN
    B, N, _ = is_ancestor_BNN.shape
    num_owners = N if owner_BO is None else owner_BO.shape[1]
    of_masks_BMN = jnp.repeat(_of_owners(is_ancestor_BNN, owner_BO), num_masks, axis=1)
    own_masks = np.kron(np.eye(num_owners), np.tril(np.ones((num_masks, num_masks)))) > 0  # [O M, O M]
    no_masks = np.zeros((N, num_owners * num_masks), np.bool_)
    reads_masks = np.broadcast_to(
        np.concatenate([no_masks, own_masks]), (B, N + own_masks.shape[0], own_masks.shape[1])
    )
    return jnp.concatenate([jnp.concatenate([is_ancestor_BNN, of_masks_BMN], axis=1), reads_masks], axis=2)


def _of_owners(values_BN: jax.Array, owner_BO: jax.Array | None) -> jax.Array:
    """Takes the entries of the nodes that own masks."""
    if owner_BO is None:
        return values_BN
    index = owner_BO.reshape(*owner_BO.shape, *[1] * (values_BN.ndim - 2))
    return jnp.take_along_axis(values_BN, index, axis=1)


def block_can_attend(
    is_visible_BRR: jax.Array, length_B: jax.Array, start: jax.Array | int, num_slots: int
) -> jax.Array:
    """Marks what each row of a block reads of the cache: the committed prefix, and of the block what is visible to it.

    Args:
      is_visible_BRR: bool [B, R, R], `block_visible`.
      length_B: int32 [B], committed slots of each row.
      start: slot of the block's first row, for all batch rows or int32 [B].
      num_slots: S; static.

    Returns:
      bool [B, R, S].
    """
    R = is_visible_BRR.shape[1]
    slot_1S = jnp.arange(num_slots)[None]
    is_prefix_B1S = (slot_1S < length_B[:, None])[:, None]
    if R == 1:
        return is_prefix_B1S | (slot_1S == jnp.reshape(start, (-1, 1)))[:, None]
    if jnp.ndim(start):
        raise ValueError(
            f"a block of {R} rows begins at the same slot in all batch rows, got an array of {jnp.shape(start)}."
        )
    behind = num_slots - start - R
    return is_prefix_B1S | jnp.pad(is_visible_BRR, ((0, 0), (0, 0), (start, behind)))


def absolute_tail(
    is_visible_BRR: jax.Array, position_BR: jax.Array, length_B: jax.Array, start: jax.Array | int, window: int
) -> dict[str, jax.Array]:
    """Cuts what a block's rows read where a row's own position says, for `layers.anchored_attention`.

    Of a row at position q the anchor is max(0, q - W), at most the committed length where no row is deeper than W below its
    root; the tail is the W + 1 positions from there. W = 4, a row at q = 13 two below its root at 11:

      position   0 .. 8 | 9   10 | 11    12    13
      read from  cache  | cache  | root child row

    With 12 committed tokens and the row's parent as the root, or 13 and the row itself, the same positions are read in the
    same order; that some come out of other slots changes nothing.

    Args:
      is_visible_BRR: bool [B, R, R], `block_visible`.
      position_BR: int32 [B, R], `block_positions`.
      length_B: int32 [B], committed slots.
      start: slot of the block's first row, for all batch rows or int32 [B].
      window: W, at least the longest path below a root; static.

    Returns:
      Its last three arguments: int32 [B, R] anchors, int32 [B, R, W + 1] slots of the positions from there
      on, bool [B, R, W + 1] True where one is read.
    """
    anchor_BR, place_BRJ = _tail_places(position_BR, window)
    is_on_path_BRJR = is_visible_BRR[:, :, None, :] & (position_BR[:, None, None, :] == place_BRJ[..., None])
    row_BRJ = jnp.argmax(is_on_path_BRJR, axis=-1).astype(jnp.int32)
    slot_BRJ = jnp.where(place_BRJ < length_B[:, None, None], place_BRJ, jnp.reshape(start, (-1, 1, 1)) + row_BRJ)
    return {"anchor_BT": anchor_BR, "tail_slot_BTJ": slot_BRJ, "is_tail_BTJ": place_BRJ <= position_BR[..., None]}


def prompt_tail(start_B: jax.Array, num_rows: int, window: int) -> dict[str, jax.Array]:
    """Gives `absolute_tail` of the U rows of a prompt's piece, each in the slot of its position."""
    position_BU = start_B[:, None] + jnp.arange(num_rows, dtype=jnp.int32)[None]
    anchor_BU, slot_BUJ = _tail_places(position_BU, window)
    return {"anchor_BT": anchor_BU, "tail_slot_BTJ": slot_BUJ, "is_tail_BTJ": slot_BUJ <= position_BU[..., None]}


def _tail_places(position_BR: jax.Array, window: int) -> tuple[jax.Array, jax.Array]:
    """Gives each row's anchor [B, R], and the W + 1 positions from there on [B, R, W + 1]."""
    anchor_BR = jnp.maximum(position_BR - window, 0)
    return anchor_BR, anchor_BR[..., None] + jnp.arange(window + 1, dtype=jnp.int32)[None, None]
