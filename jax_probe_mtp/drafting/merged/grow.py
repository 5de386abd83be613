"""Grows the tree of a merged draft, level by level: asks every source what may follow each node, and keeps the best paths.

Equal tokens under one parent are one candidate, which has what all sources know of it. From each depth as many paths are
followed as a tree of N nodes can have there, so the best N - 1 paths are among them, and no search gives better ones. A GPU
runs all of it as one kernel (`grow_kernel.py`).
"""

import functools
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jax_probe_mtp.drafting.candidates import NO_PARENT, NO_TOKEN, Candidates
from jax_probe_mtp.drafting.merged import acceptance
from jax_probe_mtp.drafting.merged.facts import (
    MASK_CANDIDATES,
    MASK_RANKS,
    NO_MASK,
    NOT_LISTED,
    NOT_OF_MASK,
    NOTHING_LISTED,
    Facts,
)
from jax_probe_mtp.drafting.merged.grow_kernel import Drafts, grow_in_kernel, is_supported
from jax_probe_mtp.drafting.merged.keys import LENGTHS, keys_of
from jax_probe_mtp.drafting.merged.memory import (
    NUM_BUCKETS,
    NUM_FOLLOWERS,
    Memory,
    followers,
    successors_of_pair,
    successors_of_token,
    unpack,
)
from jax_probe_mtp.drafting.successors import NUM_SUCCESSORS
from jax_probe_mtp.model.top_k import last_axis, smallest

_NODE_BITS, _TOKEN_BITS = 8, 6  # of a node's place in its level, and of a token's among its parent's candidates
_NUMBER_BITS = 11  # of a path's place among those of all depths
_NEVER = np.int32(np.iinfo(np.int32).max)


class Level(flax.struct.PyTreeNode, kw_only=True):
    """W nodes of one depth, the cheapest first.

    Attributes:
      context_BWL: int32 [B, W, 9], the newest tokens of the text that ends with each.
      parent_BW: int32 [B, W], place of its parent in the level above.
      cost_BW: int32 [B, W], of the path, in 64ths of a nat; 0 of a `NO_TOKEN`.
      note_BW: int32 [B, W], `Facts.pack`.
    """

    context_BWL: jax.Array
    parent_BW: jax.Array
    cost_BW: jax.Array
    note_BW: jax.Array

    @property
    def token_BW(self) -> jax.Array:
        """Gives the nodes' own tokens."""
        return self.context_BWL[..., -1]


# Compiled by itself, so that outside of a loop, too, it is compiled once.
@functools.partial(jax.jit, static_argnames=("sources", "num_drafts", "max_depth"))
def grow(
    memory: Memory,
    whole_YF: jax.Array,
    recent_BL: jax.Array,
    mask_BC: jax.Array | None,
    sources: frozenset[str],
    num_drafts: int,
    max_depth: int,
) -> Candidates:
    """Finds the best N - 1 paths, best first; of equal ones the shorter, then the better parent's, then the lower token's.

    Args:
      memory: Y tables.
      whole_YF: int32 [Y, F], weights in 64ths.
      recent_BL: int32 [B, 9], the newest tokens, the root last.
      mask_BC: int32 [B, 24], what the mask proposes under the root, packed, best first; `NO_TOKEN` where it knows nothing.
        None without masks.
      sources: which of the tables are asked.
      num_drafts: N - 1; static.
      max_depth: of the tree; static.
    """
    sizes: dict[str, Any] = {"sources": sources, "num_drafts": num_drafts, "max_depth": max_depth}
    by_depth = functools.partial(grow_by_depth, **sizes)
    in_kernel = functools.partial(grow_in_kernel, **sizes) if is_supported(memory) else by_depth
    drafts = jax.lax.platform_dependent(memory, whole_YF, recent_BL, mask_BC, cuda=in_kernel, default=by_depth)
    return Candidates(
        token_BP=drafts.token_BP,
        parent_BP=drafts.parent_BP,
        depth_BP=drafts.depth_BP,
        score_BP=jnp.where(
            drafts.token_BP == NO_TOKEN, -jnp.inf, -drafts.cost_BP.astype(jnp.float32) / acceptance.STEP
        ),
        kind_BP=kind_of(drafts.note_BP),
        note_BP=drafts.note_BP,
    )


def grow_by_depth(
    memory: Memory,
    whole_YF: jax.Array,
    recent_BL: jax.Array,
    mask_BC: jax.Array | None,
    *,
    sources: frozenset[str],
    num_drafts: int,
    max_depth: int,
) -> Drafts:
    """Grows the tree as JAX operations: `grow` says what it takes."""
    B = recent_BL.shape[0]
    zero_B1 = jnp.zeros((B, 1), jnp.int32)
    root = Level(context_BWL=recent_BL[:, None], parent_BW=zero_B1, cost_BW=zero_B1, note_BW=zero_B1)
    descend = functools.partial(_descend, memory, whole_YF, sources=sources, width=num_drafts)
    first = descend(root, jnp.int32(0), mask_BC)

    def go_on(above: Level, depth: jax.Array) -> tuple[Level, Level]:
        below = descend(above, depth, None)
        return below, below

    levels = jax.tree.map(lambda x: x[None], first)
    if max_depth > 1:
        _, deeper = jax.lax.scan(go_on, first, jnp.arange(1, max_depth, dtype=jnp.int32))
        levels = jax.tree.map(lambda *x: jnp.concatenate(x), levels, deeper)

    def in_a_row(value_DBW: jax.Array) -> jax.Array:
        return jnp.moveaxis(value_DBW, 0, 1).reshape(B, -1)

    token_BA, cost_BA = in_a_row(levels.token_BW), in_a_row(levels.cost_BW)
    number_1A = last_axis(token_BA.shape[1], 2)
    key_BP, kept_BP = smallest(
        jnp.where(token_BA == NO_TOKEN, _NEVER, (cost_BA << _NUMBER_BITS) | number_1A), num_drafts
    )
    is_there_BP = key_BP < _NEVER

    def keep(value_BA: jax.Array, otherwise: int) -> jax.Array:
        return jnp.where(is_there_BP, jnp.take_along_axis(value_BA, kept_BP, axis=1), otherwise)

    depth_BP = keep(jnp.broadcast_to(1 + number_1A // num_drafts, token_BA.shape), 1)
    above_BP = (depth_BP - 2) * num_drafts + keep(in_a_row(levels.parent_BW), 0)  # below 0 of a child of the root
    is_parent_BPP = kept_BP[:, None, :] == above_BP[:, :, None]
    parent_BP = jnp.max(jnp.where(is_parent_BPP, last_axis(num_drafts, 3), NO_PARENT), axis=2)
    return Drafts(
        token_BP=keep(token_BA, NO_TOKEN),
        parent_BP=jnp.where(depth_BP > 1, parent_BP, NO_PARENT),
        depth_BP=depth_BP,
        cost_BP=keep(cost_BA, 0),
        note_BP=keep(in_a_row(levels.note_BW), 0),
    )


def kind_of(note_BP: jax.Array) -> jax.Array:
    """Says which source alone knew a candidate, 0 to 3, or 4 that several did."""
    facts = Facts.unpack(note_BP)
    knew = [
        facts.successor_rank < NUM_SUCCESSORS,
        facts.pair_rank < NUM_SUCCESSORS,
        facts.match > 0,
        facts.mask_rank < NOT_OF_MASK,
    ]
    count_BP = sum(x.astype(jnp.int32) for x in knew)
    which_BP = sum(i * x.astype(jnp.int32) for i, x in enumerate(knew))
    return jnp.where(count_BP > 1, len(knew), which_BP)


def _descend(
    memory: Memory,
    whole_YF: jax.Array,
    above: Level,
    depth: jax.Array,
    mask_BC: jax.Array | None,
    *,
    sources: frozenset[str],
    width: int,
) -> Level:
    """Finds the W cheapest paths that are one token longer; of equal cost the better parent's, then the lower token's."""
    B = above.token_BW.shape[0]
    token_BWC, note_BWC, is_first_BWC = _ask(memory, above, depth, mask_BC, sources)
    C = token_BWC.shape[2]
    step_BWC = acceptance.cost(acceptance.sum_of_weights(whole_YF, note_BWC.reshape(B, -1))).reshape(token_BWC.shape)
    cost_BWC = above.cost_BW[..., None] + step_BWC
    place_BWC = jnp.sum(token_BWC[..., None, :] < token_BWC[..., :, None], axis=-1, dtype=jnp.int32)
    node_1W1 = last_axis(above.token_BW.shape[1], 2)[..., None]
    key_BWC = (((cost_BWC << _NODE_BITS) | node_1W1) << _TOKEN_BITS) | place_BWC
    key_BK = jnp.where(is_first_BWC, key_BWC, _NEVER).reshape(B, -1)
    missing = width - key_BK.shape[1]
    if missing > 0:
        key_BK = jnp.pad(key_BK, ((0, 0), (0, missing)), constant_values=_NEVER)
    key_BI, index_BI = smallest(key_BK, width)
    is_there_BI = key_BI < _NEVER
    index_BI = jnp.minimum(index_BI, token_BWC.shape[1] * C - 1)
    parent_BI = index_BI // C

    def take(value_BWC: jax.Array) -> jax.Array:
        return jnp.take_along_axis(value_BWC.reshape(B, -1), index_BI, axis=1)

    token_BI = jnp.where(is_there_BI, take(token_BWC), NO_TOKEN)
    path_BIL = jnp.take_along_axis(above.context_BWL, parent_BI[..., None], axis=1)
    return Level(
        context_BWL=jnp.concatenate([path_BIL[..., 1:], token_BI[..., None]], axis=2),
        parent_BW=parent_BI,
        cost_BW=jnp.where(is_there_BI, take(cost_BWC), 0),
        note_BW=take(note_BWC),
    )


def _ask(
    memory: Memory, above: Level, depth: jax.Array, mask_BC: jax.Array | None, sources: frozenset[str]
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Asks the sources what may follow W nodes.

    Returns:
      Tokens int32 [B, W, C], what is known of each, and bool [B, W, C], False for `NO_TOKEN` and for one that
      was listed before.
    """
    B, W = above.token_BW.shape
    keys = keys_of(above.context_BWL)
    nothing_BW8 = jnp.full((B, W, NUM_SUCCESSORS), NO_TOKEN, jnp.int32)
    of_token, bucket_of_token = unpack(
        successors_of_token(memory, above.token_BW) if "successors" in sources else nothing_BW8
    )
    of_pair, bucket_of_pair = unpack(successors_of_pair(memory, keys) if "pairs" in sources else nothing_BW8)
    lists = [of_token, of_pair]
    if "ngrams" in sources:
        lists.append(followers(memory, keys).reshape(B, W, -1))
    if mask_BC is not None:
        of_mask, bucket_of_mask = unpack(mask_BC[:, None])
        lists.append(of_mask)
    token_BWC = jnp.concatenate(lists, axis=2)
    is_same_BWCC = token_BWC[..., :, None] == token_BWC[..., None, :]
    zero_BWC = jnp.zeros(token_BWC.shape, jnp.int32)

    def least(first: int, value_J: jax.Array | np.ndarray, otherwise: jax.Array | int) -> jax.Array:
        """The least value of those places from `first` on that hold the same token."""
        is_same_BWCJ = is_same_BWCC[..., first : first + value_J.shape[-1]]
        value_BWCJ = jnp.broadcast_to(value_J, is_same_BWCJ.shape)
        return jnp.min(jnp.where(is_same_BWCJ, value_BWCJ, otherwise), axis=-1)

    def rank_and_bucket(
        first: int,
        listed_BWJ: jax.Array,
        bucket_BWJ: jax.Array,
        rank_J: np.ndarray,
        not_listed: int,
        nothing_listed: int,
    ) -> tuple[jax.Array, jax.Array]:
        absent_BW11 = jnp.where(listed_BWJ[..., :1] == NO_TOKEN, nothing_listed, not_listed)[..., None] * NUM_BUCKETS
        both_BWJ = jnp.asarray(rank_J * NUM_BUCKETS)[None, None] + bucket_BWJ
        both_BWC = least(first, both_BWJ[..., None, :], absent_BW11)
        return both_BWC // NUM_BUCKETS, both_BWC % NUM_BUCKETS

    match_BWC = age_BWC = best_BWC = zero_BWC
    if "ngrams" in sources:  # the longest match, and of that the newest
        first = 2 * NUM_SUCCESSORS
        length_J, age_J = np.divmod(np.arange(len(LENGTHS) * NUM_FOLLOWERS, dtype=np.int32), NUM_FOLLOWERS)
        both_BWC = -least(first, -((length_J + 1) * NUM_FOLLOWERS + NUM_FOLLOWERS - 1 - age_J), 0)
        match_BWC = both_BWC // NUM_FOLLOWERS
        age_BWC = jnp.where(match_BWC > 0, NUM_FOLLOWERS - 1 - both_BWC % NUM_FOLLOWERS, 0)
        is_there_BWJ = token_BWC[..., first : first + length_J.size] != NO_TOKEN
        length_BWJ = jnp.broadcast_to(length_J + 1, is_there_BWJ.shape)
        best_BWC += jnp.max(jnp.where(is_there_BWJ, length_BWJ, 0), axis=-1, keepdims=True)
    mask_rank_BWC, mask_bucket_BWC = zero_BWC + NO_MASK, zero_BWC
    if mask_BC is not None:
        first = token_BWC.shape[2] - MASK_CANDIDATES
        mask_rank_BWC, mask_bucket_BWC = rank_and_bucket(
            first, of_mask, bucket_of_mask, MASK_RANKS, NOT_OF_MASK, NO_MASK
        )
    ranks = np.arange(NUM_SUCCESSORS, dtype=np.int32), NOT_LISTED, NOTHING_LISTED
    rank_BWC, bucket_BWC = rank_and_bucket(0, of_token, bucket_of_token, *ranks)
    pair_rank_BWC, pair_bucket_BWC = rank_and_bucket(NUM_SUCCESSORS, of_pair, bucket_of_pair, *ranks)
    facts = Facts(
        successor_rank=rank_BWC,
        successor_bucket=bucket_BWC,
        pair_rank=pair_rank_BWC,
        pair_bucket=pair_bucket_BWC,
        mask_rank=mask_rank_BWC,
        mask_bucket=mask_bucket_BWC,
        match=match_BWC,
        match_age=age_BWC,
        best_match=best_BWC,
        depth=zero_BWC + depth,
    )
    C = token_BWC.shape[2]
    is_earlier_BWCC = jnp.broadcast_to(np.tril(np.ones((C, C), np.bool_), k=-1), is_same_BWCC.shape)
    is_first_BWC = (token_BWC != NO_TOKEN) & ~jnp.any(is_same_BWCC & is_earlier_BWCC, axis=-1)
    return token_BWC, facts.pack(), is_first_BWC
