"""What is known of a candidate: small numbers, packed into one int32, and the weights that they choose."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np

from jax_probe_mtp.drafting.merged.keys import LENGTHS
from jax_probe_mtp.drafting.merged.memory import NUM_BUCKETS
from jax_probe_mtp.drafting.successors import NUM_SUCCESSORS

FORMAT = 2  # raised with every change of what keys, entries, facts or groups of weights mean
NOT_LISTED = NUM_SUCCESSORS  # the rank of a token that is none of the successors
NOTHING_LISTED = NUM_SUCCESSORS + 1  # the rank where the table has no entry
MASK_CANDIDATES = 24  # looked at of a mask
MASK_EDGES = (1, 2, 4, 8, 16)  # of them, ranks 0, 1, 2-3, 4-7, 8-15 and later count alike
MASK_RANKS = np.searchsorted(MASK_EDGES, np.arange(MASK_CANDIDATES), side="right").astype(np.int32)
NOT_OF_MASK = len(MASK_EDGES) + 1
NO_MASK = NOT_OF_MASK + 1
_BITS = {
    "successor_rank": 4,
    "successor_bucket": 3,
    "pair_rank": 4,
    "pair_bucket": 3,
    "mask_rank": 3,
    "mask_bucket": 3,
    "match": 3,
    "match_age": 2,
    "best_match": 3,
    "depth": 3,
}


@dataclasses.dataclass(frozen=True)
class Facts:
    """What all sources know of candidates; every field is an int32 array of one shape.

    Attributes:
      successor_rank: 0 to 7 among what follows the parent's token, 8 where it is not listed, 9 where nothing is.
      successor_bucket: of its log-probability there; 0 where it is not listed.
      pair_rank, pair_bucket: the same of what follows the parent's and the token before.
      mask_rank: 0 to 5 among what the mask guesses (`MASK_RANKS`), 6 where it is not, 7 where no mask was asked.
      mask_bucket: of its log-probability there; 0 where it is not.
      match: number of the longest n-gram that it followed, 1 to 6 as in `LENGTHS`; 0 for none.
      match_age: how many other tokens have followed that n-gram since, 0 to 2.
      best_match: the longest match of any candidate of the same parent.
      depth: edges from the root to the parent.
    """

    successor_rank: jax.Array
    successor_bucket: jax.Array
    pair_rank: jax.Array
    pair_bucket: jax.Array
    mask_rank: jax.Array
    mask_bucket: jax.Array
    match: jax.Array
    match_age: jax.Array
    best_match: jax.Array
    depth: jax.Array

    def pack(self) -> jax.Array:
        """Gives them as one int32 each."""
        note, shift = jnp.int32(0), 0
        for name, bits in _BITS.items():
            note, shift = note | (getattr(self, name) << shift), shift + bits
        return note

    @classmethod
    def unpack(cls, note: jax.Array) -> "Facts":
        """Reads what `pack` gave."""
        values, shift = {}, 0
        for name, bits in _BITS.items():
            values[name], shift = (note >> shift) & ((1 << bits) - 1), shift + bits
        return cls(**values)


# Groups of weights, and how many each has: a candidate has one of each group.
GROUPS = {
    "successor rank, pair unknown": NOTHING_LISTED + 2,
    "successor rank, pair known": NOTHING_LISTED + 2,
    "successor bucket": NUM_BUCKETS + 1,
    "pair rank": NOTHING_LISTED + 1,
    "pair bucket": NUM_BUCKETS + 1,
    "mask rank": NO_MASK + 1,
    "mask bucket": NUM_BUCKETS + 1,
    "match, newest": len(LENGTHS) + 1,
    "match, older": len(LENGTHS) + 1,
    "longer match of another": len(LENGTHS) + 1,
    "depth": 8,
    "successor bucket, mask rank": (NUM_BUCKETS + 1) * (NO_MASK + 1),
    "pair bucket, match": (NUM_BUCKETS + 1) * (len(LENGTHS) + 1),
}
NUM_WEIGHTS = sum(GROUPS.values())
FIRST_WEIGHT = dict(zip(GROUPS, np.cumsum([0, *GROUPS.values()])[:-1].tolist(), strict=True))


def chosen(facts: Facts) -> dict[str, jax.Array]:
    """Says which weight of each group candidates have; the last one of a group where it says nothing of them."""
    has_pair = facts.pair_rank < NOTHING_LISTED
    nothing = NOTHING_LISTED + 1
    is_listed = facts.successor_rank < NUM_SUCCESSORS
    match = jnp.where(facts.match_age == 0, facts.match, 0)
    successor_bucket = jnp.where(is_listed, facts.successor_bucket, NUM_BUCKETS)
    pair_bucket = jnp.where(facts.pair_rank < NUM_SUCCESSORS, facts.pair_bucket, NUM_BUCKETS)
    return {
        "successor rank, pair unknown": jnp.where(has_pair, nothing, facts.successor_rank),
        "successor rank, pair known": jnp.where(has_pair, facts.successor_rank, nothing),
        "successor bucket": successor_bucket,
        "pair rank": facts.pair_rank,
        "pair bucket": pair_bucket,
        "mask rank": facts.mask_rank,
        "mask bucket": jnp.where(facts.mask_rank < NOT_OF_MASK, facts.mask_bucket, NUM_BUCKETS),
        "match, newest": match,
        "match, older": facts.match - match,
        "longer match of another": jnp.where(facts.best_match > facts.match, facts.best_match, 0),
        "depth": facts.depth,
        "successor bucket, mask rank": successor_bucket * (NO_MASK + 1) + facts.mask_rank,
        "pair bucket, match": pair_bucket * (len(LENGTHS) + 1) + match,
    }
