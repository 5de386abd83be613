"""Which drafts are right: the walk from the root along the model's own next tokens."""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from jax_probe_mtp.tree import Tree


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


def walk(tree: Tree, next_token: Callable[[jax.Array, int], jax.Array], *, max_depth: int) -> Accepted:
    """Walks from the root to the child that holds the model's own next token, as long as there is one.

    The own next token at the last node is the bonus: right by itself, whatever the drafts were. Since every token comes
    from `next_token`, the text is that of plain decoding for any tree.

    Args:
      tree: the drafts that were in the call.
      next_token: (int32 [B] node, its depth along the walk) -> int32 [B], the token that plain decoding puts after it.
        The depth is an int, the same for all rows that are still walking.
      max_depth: edges from the root to the deepest node; static.
    """
    node_B = jnp.zeros(tree.token_BN.shape[0], jnp.int32)
    token_B = next_token(node_B, 0)
    num_accepted_B = jnp.zeros_like(node_B)
    nodes, tokens = [node_B], [token_B]
    for depth in range(1, max_depth + 1):
        is_match_BN = (tree.parent_BN == node_B[:, None]) & (tree.token_BN == token_B[:, None])
        # A row that stopped earlier is at a node whose children do not hold its token: it cannot match again.
        is_match_B = jnp.any(is_match_BN, axis=1)
        node_B = jnp.where(is_match_B, jnp.argmax(is_match_BN, axis=1).astype(jnp.int32), node_B)
        token_B = jnp.where(is_match_B, next_token(node_B, depth), token_B)
        num_accepted_B += is_match_B
        nodes.append(node_B)
        tokens.append(token_B)
    return Accepted(node_BP=jnp.stack(nodes, axis=1), token_BP=jnp.stack(tokens, axis=1), num_accepted_B=num_accepted_B)
