"""Which drafts are right: the walk from the root along the model's own next tokens."""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from jax_probe_mtp.drafting.tree import NO_PARENT, Tree

Walk = tuple[jax.Array, jax.Array, jax.Array]  # int32 [B]: node, its own next token, nodes taken


class Accepted(flax.struct.PyTreeNode, kw_only=True):
    """What one call gives, P = depth + 1 places a row.

    Attributes:
      node_BP: int32 [B, P], the root, then the accepted nodes; the last of them repeats to the end.
      token_BP: int32 [B, P], accepted drafts, then the bonus token; later places repeat it.
      num_accepted_B: int32 [B], drafts accepted, 0 to depth.
    """

    node_BP: jax.Array
    token_BP: jax.Array
    num_accepted_B: jax.Array


def walk(
    tree: Tree,
    next_token: Callable[[jax.Array, jax.Array | int, jax.Array], jax.Array],
    *,
    max_depth: int,
    max_accept: jax.Array | int | None = None,
    is_looped: bool = False,
) -> Accepted:
    """Walks from the root to the child that holds the model's own next token, as long as there is one.

    The own next token at the last node is the bonus: right by itself, whatever the drafts were. Since every token comes
    from `next_token`, the text is that of plain decoding for any tree.

    Args:
      tree: the drafts that were in the call.
      next_token: (int32 [B] node, its depth along the walk, int32 [B, D] tokens chosen before) -> int32 [B], the token that
        plain decoding puts after it. The depth is the same for all rows that are still walking, an int unless `is_looped`;
        so many of the tokens were chosen, the last one the node's own.
      max_depth: edges from the root to the deepest node; static.
      max_accept: int32 scalar, drafts accepted at most: with 0 the bonus alone is left. None is no limit.
      is_looped: True for one piece of code that asks for the tokens of all depths, a `lax.fori_loop`: a compiler may round
        two copies of the same arithmetic differently. Static.
    """

    def descend(depth: jax.Array | int, walked: Walk, chosen_BD: jax.Array) -> Walk:
        node_B, token_B, num_taken_B = walked
        is_match_BN = (tree.parent_BN == node_B[:, None]) & (tree.token_BN == token_B[:, None])
        # A row that stopped earlier cannot match again: its node has no child with its token, or it is at the limit.
        is_match_B = jnp.any(is_match_BN, axis=1)
        if max_accept is not None:
            is_match_B &= depth <= max_accept
        node_B = jnp.where(is_match_B, jnp.argmax(is_match_BN, axis=1).astype(jnp.int32), node_B)
        token_B = jnp.where(is_match_B, next_token(node_B, depth, chosen_BD), token_B)
        return node_B, token_B, num_taken_B + is_match_B.astype(jnp.int32)

    root_B = jnp.zeros(tree.token_BN.shape[0], jnp.int32)
    if is_looped:
        nothing_BP = jnp.zeros((root_B.size, max_depth + 1), jnp.int32)

        def go_on(depth: jax.Array, carry: tuple[Walk, jax.Array, jax.Array]) -> tuple[Walk, jax.Array, jax.Array]:
            walked, node_BP, token_BP = carry
            walked = descend(depth, walked, token_BP)
            return walked, node_BP.at[:, depth].set(walked[0]), token_BP.at[:, depth].set(walked[1])

        above = root_B + NO_PARENT, tree.token_BN[:, 0], root_B  # the root, too, is what its own token leads to
        walked, node_BP, token_BP = jax.lax.fori_loop(0, max_depth + 1, go_on, (above, nothing_BP, nothing_BP))
    else:
        nothing_B0 = jnp.zeros((root_B.size, 0), jnp.int32)
        steps = [(root_B, next_token(root_B, 0, nothing_B0), jnp.ones_like(root_B))]
        for depth in range(1, max_depth + 1):
            chosen_BD = jnp.stack([token_B for _, token_B, _ in steps], axis=1)
            steps.append(descend(depth, steps[-1], chosen_BD))
        walked = steps[-1]
        node_BP, token_BP = (jnp.stack(column, axis=1) for column in list(zip(*steps, strict=True))[:2])
    return Accepted(node_BP=node_BP, token_BP=token_BP, num_accepted_B=walked[2] - 1)


def follow(tree: Tree, own_BN: jax.Array, *, max_depth: int, max_accept: jax.Array | int | None = None) -> Accepted:
    """Does what `walk` does where every node's own next token is known: finds the right child of each node, then walks.

    So a GPU runs a few kernels in all, not some for each depth.

    Args:
      tree: the drafts that were in the call.
      own_BN: int32 [B, N], the token that plain decoding puts after each node.
      max_depth: edges from the root to the deepest node; static.
      max_accept: int32 scalar, drafts accepted at most. None is no limit.
    """
    if max_depth <= 1:  # looking at one depth takes fewer kernels still

        def own(node_B: jax.Array, depth: jax.Array | int, chosen_BD: jax.Array) -> jax.Array:
            return jnp.take_along_axis(own_BN, node_B[:, None], axis=1)[:, 0]

        return walk(tree, own, max_depth=max_depth, max_accept=max_accept)
    number_N = jnp.arange(tree.token_BN.shape[1], dtype=jnp.int32)
    is_next_BNN = tree.parent_BN[:, None] == number_N[None, :, None]  # [b, i, j]: j is i's child
    is_next_BNN &= tree.token_BN[:, None] == own_BN[..., None]
    next_BN = jnp.min(jnp.where(is_next_BNN, number_N[None, None], number_N.size), axis=2)  # of equal ones the first
    next_BN = jnp.where(next_BN < number_N.size, next_BN, number_N[None])  # a walk that has ended stays where it is
    nodes = [jnp.zeros(own_BN.shape[0], jnp.int32)]
    for depth in range(1, max_depth + 1):
        below_B = jnp.take_along_axis(next_BN, nodes[-1][:, None], axis=1)[:, 0]
        nodes.append(below_B if max_accept is None else jnp.where(depth <= max_accept, below_B, nodes[-1]))
    node_BP = jnp.stack(nodes, axis=1)
    return Accepted(
        node_BP=node_BP,
        token_BP=jnp.take_along_axis(own_BN, node_BP, axis=1),
        num_accepted_B=jnp.sum(node_BP[:, 1:] != node_BP[:, :-1], axis=1, dtype=jnp.int32),
    )
