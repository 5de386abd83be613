"""What draft sources propose: candidates for a whole tree, or answers to what may follow single nodes."""

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

NO_TOKEN = -1  # equals no token of the model: a node that holds it is never accepted
NO_PARENT = -1  # of a candidate that hangs under the root, and of the root itself


class Candidates(flax.struct.PyTreeNode, kw_only=True):
    """What a draft source proposes for the next tree, P candidates a row, parents before their children.

    Attributes:
      token_BP: int32 [B, P], `NO_TOKEN` where the source has nothing to propose.
      parent_BP: int32 [B, P], index of the candidate it hangs under, `NO_PARENT` for a child of the root.
      depth_BP: int32 [B, P], edges from the root, 1 for its children.
      score_BP: float32 [B, P], log-probability that the path from the root is accepted, as the source sees it; never
        above the parent's, -inf for `NO_TOKEN`.
      kind_BP: int32 [B, P], which of the source's `kinds` each is.
      note_BP: int32 [B, P], what the source wants to know again of a node in `learn`; None where it wants nothing.
    """

    token_BP: jax.Array
    parent_BP: jax.Array
    depth_BP: jax.Array
    score_BP: jax.Array
    kind_BP: jax.Array
    note_BP: jax.Array | None = None


class Paths(flax.struct.PyTreeNode, kw_only=True):
    """W nodes of one level of a tree, each with the path that leads to it.

    Attributes:
      token_BWL: int32 [B, W, L], the tokens from the root, which is the first, to the node; L - 1 is the level's depth.
    """

    token_BWL: jax.Array

    @property
    def depth(self) -> int:
        """Edges from the root to these nodes."""
        return self.token_BWL.shape[2] - 1

    @property
    def token_BW(self) -> jax.Array:
        """Gives the nodes' own tokens."""
        return self.token_BWL[:, :, -1]


class Children(flax.struct.PyTreeNode, kw_only=True):
    """What may follow each of W nodes, C tokens a node, best first.

    Attributes:
      token_BWC: int32 [B, W, C], `NO_TOKEN` where there is nothing.
      feature_BWCf: float32 [B, W, C, f], what the source knows of each; the first is its log-probability.
    """

    token_BWC: jax.Array
    feature_BWCf: jax.Array


def fixed_candidates(
    token_BP: jax.Array, parent_P: np.ndarray, depth_P: np.ndarray, score_BP: jax.Array | None = None
) -> Candidates:
    """Makes candidates of one shape for all rows and calls, all of one kind.

    Args:
      token_BP: int32 [B, P].
      parent_P: of each, the index of its parent or `NO_PARENT`; NumPy, static.
      depth_P: of each, edges from the root; NumPy, static.
      score_BP: float32 [B, P], as of `Candidates`; when left out every candidate is as likely as its parent.
    """
    shape = token_BP.shape
    score_BP = jnp.zeros(shape, jnp.float32) if score_BP is None else score_BP
    return Candidates(
        token_BP=token_BP,
        parent_BP=jnp.broadcast_to(jnp.asarray(parent_P, jnp.int32), shape),
        depth_BP=jnp.broadcast_to(jnp.asarray(depth_P, jnp.int32), shape),
        score_BP=jnp.where(token_BP == NO_TOKEN, -jnp.inf, score_BP),
        kind_BP=jnp.zeros(shape, jnp.int32),
    )


def chain(token_BP: jax.Array, score_BP: jax.Array | None = None) -> Candidates:
    """Makes candidates that follow one another: the first hangs under the root, each other one under the one before."""
    depth_P = np.arange(1, token_BP.shape[1] + 1)
    return fixed_candidates(token_BP, parent_P=depth_P - 2, depth_P=depth_P, score_BP=score_BP)
