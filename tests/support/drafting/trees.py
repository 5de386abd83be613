"""Trees for tests: made of lists, and as lists again."""

import jax.numpy as jnp
import numpy as np

from jax_probe_mtp.drafting.tree import Tree


def make_tree(token_BN, parent_BN, depth_BN):
    """Makes a tree whose paths are all equally likely and whose drafts are of one kind."""
    token_BN = jnp.asarray(token_BN, jnp.int32)
    return Tree(
        token_BN=token_BN,
        parent_BN=jnp.asarray(parent_BN, jnp.int32),
        depth_BN=jnp.asarray(depth_BN, jnp.int32),
        score_BN=jnp.zeros(token_BN.shape, jnp.float32),
        kind_BN=jnp.zeros(token_BN.shape, jnp.int32),
    )


def nodes_of(tree):
    """Lists the (token, parent, depth) of each node, for each row."""
    columns = (np.asarray(values).tolist() for values in (tree.token_BN, tree.parent_BN, tree.depth_BN))
    return [list(zip(*row, strict=True)) for row in zip(*columns, strict=True)]
