"""What the model ranks best after each token of a prompt or a call: what Token Recycling and the merged draft keep."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp

from jax_probe_mtp.drafting.shown import PromptChunk
from jax_probe_mtp.model.logits import Logits
from jax_probe_mtp.model.sampling import Sampling

NUM_SUCCESSORS = 8
PIECE = 64  # prompt tokens of a row whose logits are in memory at a time, or more of few rows:
PIECE_ROWS = 256  # in all, for a GPU waits more for the kernels of a piece to start than for its products
Kept = TypeVar("Kept")
Keep = Callable[[Kept, jax.Array, jax.Array, jax.Array, Logits], Kept]


def best_successors(logits: Logits, sampling: Sampling | None) -> tuple[jax.Array, jax.Array]:
    """Takes the best 8 tokens after each of R, best first, int32 [B, R, 8], and their log-probabilities, float32.

    Args:
      logits: [B, R, V].
      sampling: how the rows draw: those that are sampled are taken over their temperature; None where all are greedy.
    """
    if sampling is not None:
        logits = logits.scale(sampling.temperature_B)
    best_BRC, id_BRC = logits.top_k(NUM_SUCCESSORS)
    # Rounding may leave the logarithm of a probability above 0.
    return id_BRC, jnp.minimum(best_BRC - logits.logsumexp(), 0)


def read_pieces(chunk: PromptChunk, keep: Keep[Kept], kept: Kept) -> Kept:
    """Goes through a chunk of the prompts 64 tokens at a time, or 256 of one row.

    Args:
      chunk: of the prompts.
      keep: (what is kept, int32 [B, R] tokens, int32 [B, R] the tokens before them, bool [B, R] those that are no padding,
        [B, R, V] logits after them) -> what is kept.
      kept: what the first piece is added to.
    """
    B, U = chunk.token_BU.shape
    size = min(U, max(PIECE, PIECE_ROWS // B))

    def read(i: jax.Array, kept: Kept) -> Kept:
        first = jnp.minimum(i * size, U - size)  # the last piece may overlap the one before and be read again
        token_BR, before_BR, is_used_BR = (
            jax.lax.dynamic_slice_in_dim(values_BU, first, size, axis=1)
            for values_BU in (chunk.token_BU, chunk.before_BU, chunk.is_used_BU)
        )
        return keep(kept, token_BR, before_BR, is_used_BR, chunk.logits(first, size))

    num_used = jnp.max(jnp.sum(chunk.is_used_BU, axis=1))  # the used ones come first
    return jax.lax.fori_loop(0, (num_used + size - 1) // size, read, kept)
