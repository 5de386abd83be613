"""What the kernel asks of the tables: what they list for a node, and what they know of a candidate.

All arrays are [N, C], N nodes and C candidates of each, also where a value depends on the node alone: so no array has to be
laid out anew between two steps.
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton as plgpu

from jax_probe_mtp.drafting.candidates import NO_TOKEN
from jax_probe_mtp.drafting.merged.facts import (
    MASK_CANDIDATES,
    MASK_EDGES,
    NO_MASK,
    NOT_LISTED,
    NOT_OF_MASK,
    NOTHING_LISTED,
    Facts,
)
from jax_probe_mtp.drafting.merged.keys import LENGTHS, hashes
from jax_probe_mtp.drafting.merged.memory import ID_BITS, MAX_IDS, NUM_BUCKETS, NUM_FOLLOWERS, unpack
from jax_probe_mtp.drafting.successors import NUM_SUCCESSORS

# The columns of a node's candidates: its token's successors, those of the pair, n-grams, and what the mask guesses.
_PAIR, _NGRAM = NUM_SUCCESSORS, 2 * NUM_SUCCESSORS
MASK = _NGRAM + len(LENGTHS) * NUM_FOLLOWERS
COLUMNS = 64
_BUCKET_BITS, _AGE_BITS = 3, 2  # below a rank, and below a match
assert NUM_BUCKETS == 1 << _BUCKET_BITS
assert NUM_FOLLOWERS <= 1 << _AGE_BITS
assert MASK + MASK_CANDIDATES <= COLUMNS


class Listed(NamedTuple):
    """What one table lists for each of N nodes, in the columns from `first` on; [N, C] all."""

    ref: Any
    entry_NC: jax.Array  # where the entry's check stands
    is_own_NC: jax.Array  # whether the entry is there, and of this key
    first: int
    size: int

    def has(self, column_NC: jax.Array) -> jax.Array:
        return self.is_own_NC & (column_NC >= self.first) & (column_NC < self.first + self.size)

    def load_column(self, column_NC: jax.Array) -> jax.Array:
        """Loads the token that stands in each column; anything outside of the table's."""
        has_NC = self.has(column_NC)
        at_NC = self.entry_NC + jnp.where(has_NC, column_NC - self.first + 1, 0)
        return unpack(plgpu.load(self.ref.at[at_NC], mask=has_NC, other=NO_TOKEN))[0]

    def load(self, j: int) -> jax.Array:
        """Loads the j-th of what is listed, packed; anything where the entry is not there."""
        return plgpu.load(self.ref.at[self.entry_NC + (1 + j)])


def lists_of(
    tables: tuple[Any, Any, Any], sizes: Sequence[int], y: Any, tokens: list[jax.Array], sources: frozenset[str]
) -> list[Listed]:
    """Finds the entries of nodes: of the last token, of the last two, and of n-grams from the shortest to the longest."""
    token_ref, pair_ref, ngram_ref = tables

    def find(ref: Any, number: Any, S: int, key: tuple[Any, Any, Any], first: int, size: int) -> Listed:
        slot_NC, check_NC, is_whole_NC = key
        place_NC = number * S + (slot_NC & jnp.uint32(S - 1)).astype(jnp.int32)
        entry_NC = place_NC * (1 + size)
        return Listed(ref, entry_NC, is_whole_NC & (plgpu.load(ref.at[entry_NC]) == check_NC), first, size)

    found = []
    if "successors" in sources:
        newest_NC = tokens[-1]
        key = (newest_NC.astype(jnp.uint32), newest_NC, newest_NC != NO_TOKEN)
        found.append(find(token_ref, y, sizes[0], key, 0, NUM_SUCCESSORS))
    keys = hashes(tokens)
    if "pairs" in sources:
        found.append(find(pair_ref, y, sizes[1], keys[LENGTHS.index(2)], _PAIR, NUM_SUCCESSORS))
    if "ngrams" in sources:
        for i, key in enumerate(keys):
            first = _NGRAM + i * NUM_FOLLOWERS
            found.append(find(ngram_ref, y * len(LENGTHS) + i, sizes[2], key, first, NUM_FOLLOWERS))
    return found


def facts_of(
    lists: list[Listed], mask_ref: Any, token_NC: jax.Array, column_NC: jax.Array, depth: Any
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Finds out what all sources know of each candidate, by comparing it with all that are listed for its node.

    Returns:
      Packed facts; whether the candidate is there and not listed before; its token's place among those of its node.
    """
    shape = token_NC.shape
    nothing_NC = jnp.full(shape, NOTHING_LISTED << _BUCKET_BITS, jnp.int32)
    ranks = {0: nothing_NC, _PAIR: nothing_NC}  # above a bucket
    match_NC = best_NC = place_NC = jnp.zeros(shape, jnp.int32)  # a match above how new it is
    is_there_NC = token_NC != NO_TOKEN
    for listed in lists:
        is_again_NC = jnp.zeros(shape, jnp.bool_)
        is_ngram = listed.first >= _NGRAM
        length = 1 + (listed.first - _NGRAM) // NUM_FOLLOWERS
        if is_ngram:
            best_NC = jnp.where(listed.is_own_NC, length, best_NC)
        else:
            rank_NC = jnp.full(shape, NOT_LISTED << _BUCKET_BITS, jnp.int32)
        for j in range(listed.size):  # each token once, and the longest n-gram last
            packed_NC = listed.load(j)
            other_NC = packed_NC & (MAX_IDS - 1)
            is_same_NC = token_NC == other_NC
            is_again_NC |= is_same_NC & (column_NC > listed.first + j)
            place_NC += (other_NC < token_NC).astype(jnp.int32)
            if is_ngram:
                match = (length << _AGE_BITS) | (NUM_FOLLOWERS - 1 - j)
                match_NC = jnp.where(is_same_NC & listed.is_own_NC, match, match_NC)
            else:
                rank_NC = jnp.where(is_same_NC, (j << _BUCKET_BITS) | (packed_NC >> ID_BITS), rank_NC)
        if not is_ngram:
            ranks[listed.first] = jnp.where(listed.is_own_NC, rank_NC, ranks[listed.first])
        is_there_NC &= ~(is_again_NC & listed.is_own_NC)
    of_mask_NC = jnp.full(shape, NO_MASK << _BUCKET_BITS, jnp.int32)
    if mask_ref is not None:
        knows_NC = plgpu.load(mask_ref.at[jnp.zeros(shape, jnp.int32)]) != NO_TOKEN
        of_mask_NC = jnp.where(knows_NC & (depth == 0), NOT_OF_MASK << _BUCKET_BITS, of_mask_NC)

        def look(j: Any, carry: tuple[Any, Any]) -> tuple[Any, Any]:
            of_mask_NC, place_NC = carry
            other_NC, bucket_NC = unpack(plgpu.load(mask_ref.at[jnp.full(shape, j, jnp.int32)]))
            rank = sum((j >= edge).astype(jnp.int32) for edge in MASK_EDGES)
            of_mask_NC = jnp.where(token_NC == other_NC, (rank << _BUCKET_BITS) | bucket_NC, of_mask_NC)
            return of_mask_NC, place_NC + (other_NC < token_NC).astype(jnp.int32)

        num_guesses = (depth == 0).astype(jnp.int32) * MASK_CANDIDATES
        of_mask_NC, place_NC = jax.lax.fori_loop(0, num_guesses, look, (of_mask_NC, place_NC))
        # What the mask guesses is listed last, and each guess once: it is new where no table knows it.
        is_listed_NC = (ranks[0] >> _BUCKET_BITS < NOT_LISTED) | (ranks[_PAIR] >> _BUCKET_BITS < NOT_LISTED)
        is_there_NC &= (column_NC < MASK) | ~(is_listed_NC | (match_NC > 0))
    length_NC = match_NC >> _AGE_BITS
    facts = Facts(
        successor_rank=ranks[0] >> _BUCKET_BITS,
        successor_bucket=ranks[0] & (NUM_BUCKETS - 1),
        pair_rank=ranks[_PAIR] >> _BUCKET_BITS,
        pair_bucket=ranks[_PAIR] & (NUM_BUCKETS - 1),
        mask_rank=of_mask_NC >> _BUCKET_BITS,
        mask_bucket=of_mask_NC & (NUM_BUCKETS - 1),
        match=length_NC,
        match_age=jnp.where(length_NC > 0, NUM_FOLLOWERS - 1 - (match_NC & ((1 << _AGE_BITS) - 1)), 0),
        best_match=best_NC,
        depth=jnp.zeros(shape, jnp.int32) + depth,
    )
    return facts.pack(), is_there_NC, place_NC
