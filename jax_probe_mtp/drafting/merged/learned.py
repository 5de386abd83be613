"""What a merged draft learns of texts and calls, of one row or of all rows: tables and weights."""

from collections.abc import Callable

import flax.struct
import jax
import jax.numpy as jnp

from jax_probe_mtp.drafting.candidates import NO_PARENT, NO_TOKEN
from jax_probe_mtp.drafting.merged.acceptance import Weights, begin_weights, learn_weights
from jax_probe_mtp.drafting.merged.keys import CONTEXT, keys_of
from jax_probe_mtp.drafting.merged.memory import (
    Memory,
    Sizes,
    empty_memory,
    keep_ngrams,
    keep_successors,
    pack,
)
from jax_probe_mtp.drafting.shown import FinishedCall, PromptChunk, Prompts
from jax_probe_mtp.drafting.successors import best_successors, read_pieces
from jax_probe_mtp.model.logits import Logits
from jax_probe_mtp.model.sampling import Sampling
from jax_probe_mtp.model.top_k import last_axis

NGRAM_TOKENS = 256  # prompt tokens whose n-grams are compared with each other at a time


class Learned(flax.struct.PyTreeNode, kw_only=True):
    """What is learned, of one row (cold) or of all rows (warm).

    Attributes:
      memory: the tables.
      weights: of candidates.
    """

    memory: Memory
    weights: Weights


def begin(num_sets: int, sizes: Sizes, tables: frozenset[str]) -> Learned:
    """Begins with empty tables, of one entry where nobody asks them, and the weights that come with the package."""
    sizes = Sizes(
        tokens=sizes.tokens if "successors" in tables else 1,
        pairs=sizes.pairs if "pairs" in tables else 1,
        ngrams=sizes.ngrams if "ngrams" in tables else 1,
    )
    return Learned(memory=empty_memory(num_sets, sizes), weights=begin_weights(num_sets))


def newest(token_BT: jax.Array, length_B: jax.Array) -> jax.Array:
    """Takes the last nine of the first `length_B` tokens, int32 [B, 9]; `NO_TOKEN` where there are fewer."""
    place_BL = length_B[:, None] - CONTEXT + last_axis(CONTEXT, 2)
    token_BL = jnp.take_along_axis(token_BT, jnp.maximum(place_BL, 0), axis=1)
    return jnp.where(place_BL < 0, NO_TOKEN, token_BL)


def read_prompts(learned: Learned, prompts: Prompts) -> Learned:
    """Keeps the n-grams of whole prompts; where all rows share the tables, one row after the other."""
    B, T = prompts.token_BT.shape
    Y = learned.memory.token_YSE.shape[0]
    before_BT = jnp.pad(prompts.token_BT, ((0, 0), (CONTEXT, 0)), constant_values=NO_TOKEN)
    is_used_BT = last_axis(T, 2) < prompts.length_B[:, None]
    num_places = B // Y * T
    size = min(num_places, NGRAM_TOKENS)
    num_pieces = -(-num_places // size)

    def in_pieces(x_BT: jax.Array) -> jax.Array:
        """Gives [pieces, Y, size, ...]: a piece may hold the end of a row and the next one's start."""
        x_YR = x_BT.reshape(Y, num_places, *x_BT.shape[2:])
        x_YR = jnp.pad(x_YR, ((0, 0), (0, num_pieces * size - num_places), *[(0, 0)] * (x_YR.ndim - 2)))
        return jnp.moveaxis(x_YR.reshape(Y, num_pieces, size, *x_YR.shape[2:]), 1, 0)

    def read_piece(memory: Memory, piece: tuple[jax.Array, ...]) -> tuple[Memory, None]:
        context_YRL, token_YR, is_used_YR = piece
        return keep_ngrams(memory, keys_of(context_YRL), token_YR, is_used_YR), None

    pieces = tuple(map(in_pieces, (_contexts(before_BT), prompts.token_BT, is_used_BT)))
    memory, _ = jax.lax.scan(read_piece, learned.memory, pieces)
    return learned.replace(memory=memory)


def read_chunk(learned: Learned, chunk: PromptChunk) -> Learned:
    """Keeps what the model ranks best after each token of a piece of the prompts."""

    def keep(
        memory: Memory, token_BR: jax.Array, before_BR: jax.Array, is_used_BR: jax.Array, logits: Logits
    ) -> Memory:
        order_BR = jnp.where(is_used_BR, last_axis(token_BR.shape[1], 2), -1)
        return _keep(memory, token_BR, before_BR, order_BR, logits, chunk.sampling)

    return learned.replace(memory=read_pieces(chunk, keep, learned.memory))


def learn(
    learned: Learned, recent_BL: jax.Array, call: FinishedCall, *, tables: frozenset[str], is_learning: bool
) -> Learned:
    """Learns of a call: the weights from the children of accepted nodes, the tables from all nodes and the new tokens.

    Args:
      learned: of Y sets.
      recent_BL: int32 [B, 9], the newest tokens before the call, its root last.
      call: what it gave.
      tables: those that are asked; static.
      is_learning: whether the weights change; static.
    """
    tree, memory, weights = call.tree, learned.memory, learned.weights
    N = tree.token_BN.shape[1]
    is_root_BN = tree.parent_BN == NO_PARENT
    above_BN = jnp.maximum(tree.parent_BN, 0)
    is_node_BN = (tree.token_BN != NO_TOKEN) & (call.num_new_B > 0)[:, None]
    is_accepted_BN = jnp.any(call.node_BP[..., None] == last_axis(N, 3), axis=1)  # the root among them
    if is_learning:
        assert tree.note_BN is not None
        is_asked_BN = jnp.take_along_axis(is_accepted_BN, above_BN, axis=1) & is_node_BN & ~is_root_BN
        weights = learn_weights(weights, tree.note_BN, is_asked_BN, is_accepted_BN)
    if {"successors", "pairs"} & tables:
        before_BN = jnp.where(is_root_BN, recent_BL[:, -2:-1], jnp.take_along_axis(tree.token_BN, above_BN, axis=1))
        # What the text itself said stays, not what a rejected draft with the same token would have.
        order_BN = jnp.where(is_node_BN, last_axis(N, 2) + N * is_accepted_BN.astype(jnp.int32), -1)
        memory = _keep(memory, tree.token_BN, before_BN, order_BN, call.node_logits, call.sampling)
    if "ngrams" in tables:
        new_BP = call.new_token_BP
        is_new_BP = last_axis(new_BP.shape[1], 2) < call.num_new_B[:, None]
        keys = keys_of(_contexts(jnp.concatenate([recent_BL, new_BP], axis=1)))
        memory = _of_all(keep_ngrams, memory, keys, new_BP, is_new_BP)
    return Learned(memory=memory, weights=weights)


def _contexts(token_BT: jax.Array) -> jax.Array:
    """Gives the nine tokens before each place from the tenth on, int32 [B, T - 9, 9]."""
    num_places = token_BT.shape[1] - CONTEXT
    return jnp.stack([token_BT[:, i : i + num_places] for i in range(CONTEXT)], axis=-1)


def _keep(
    memory: Memory,
    token_BR: jax.Array,
    before_BR: jax.Array,
    order_BR: jax.Array,
    logits: Logits,
    sampling: Sampling | None,
) -> Memory:
    """Keeps the best successors of R tokens a row; where rows share the tables, a later row's go before an earlier one's."""
    packed_BRC = pack(*best_successors(logits, sampling))
    context_BRL = jnp.stack([before_BR, token_BR], axis=-1)
    context_BRL = jnp.pad(context_BRL, ((0, 0), (0, 0), (CONTEXT - 2, 0)), constant_values=NO_TOKEN)
    B, R = token_BR.shape
    row_B1 = jnp.arange(B, dtype=jnp.int32)[:, None]
    order_BR = jnp.where(order_BR < 0, -1, order_BR + 2 * R * row_B1)
    return _of_all(keep_successors, memory, token_BR, keys_of(context_BRL), packed_BRC, order_BR)


def _of_all(function: Callable[..., Memory], memory: Memory, *arrays: jax.Array | object) -> Memory:
    """Calls a function of arrays that have Y in front, row after row where all rows share one table."""
    Y = memory.token_YSE.shape[0]
    return function(memory, *jax.tree.map(lambda x: x.reshape(Y, -1, *x.shape[2:]), arrays))
