"""What the tables of a merged draft remember: successors of a token, of two tokens, and n-grams of the text.

All are arrays of entries that are found by a hash. An entry holds another hash of its key, which is compared: two keys may
share a place, which the newer one takes, but hardly ever an answer.
"""

import dataclasses

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jax_probe_mtp.drafting.candidates import NO_TOKEN
from jax_probe_mtp.drafting.merged.keys import LENGTHS, Keys
from jax_probe_mtp.drafting.successors import NUM_SUCCESSORS
from jax_probe_mtp.model.top_k import last_axis

NUM_FOLLOWERS = 3
NUM_BUCKETS = 8  # of a successor's log-probability
BUCKET_WIDTH = 0.3  # of the root of its size: bucket 0 is above -0.09, bucket 7 below -4.41
MASK_BUCKET_WIDTH = 0.4  # the same of what a mask guesses, which is less sure: bucket 7 is below -7.84
ID_BITS = 24  # the log-probability's bucket stands above an id
MAX_IDS = 1 << ID_BITS
LEAST_SLOTS = 1024  # below this a row's drafts do not depend on its capacity


@dataclasses.dataclass(frozen=True)
class Sizes:
    """Entries of each table, powers of two."""

    tokens: int
    pairs: int
    ngrams: int  # of each length

    @classmethod
    def of_row(cls, capacity: int, vocab_size: int) -> "Sizes":
        """Sizes the tables of one row by the slots of its text: 1.7 MB with 1,024 or fewer, in proportion above."""
        slots = power_of_two(max(capacity, LEAST_SLOTS))
        return cls(tokens=min(8 * slots, power_of_two(vocab_size)), pairs=32 * slots, ngrams=2 * slots)

    @classmethod
    def of_all(cls, vocab_size: int) -> "Sizes":
        """Sizes tables for all texts: 53 MB with 152,000 tokens; each token has an entry of its own."""
        slots = power_of_two(vocab_size)
        return cls(tokens=slots, pairs=min(16 * slots, 1 << 19), ngrams=min(4 * slots, 1 << 18))


def power_of_two(least: int) -> int:
    """Finds the smallest power of two that is not below `least`."""
    return 1 << (least - 1).bit_length()


class Memory(flax.struct.PyTreeNode, kw_only=True):
    """Y tables of each kind: one a row (cold), or one for all rows (warm). Each entry begins with its check.

    Attributes:
      token_YSE: int32 [Y, S, 1 + 8], packed successors of a token, best first.
      pair_YSE: int32 [Y, S, 1 + 8], of two tokens.
      ngram_YnSE: int32 [Y, 6, S, 1 + 3], the newest different tokens that followed an n-gram of each length, newest first.
    """

    token_YSE: jax.Array
    pair_YSE: jax.Array
    ngram_YnSE: jax.Array


def empty_memory(num_tables: int, sizes: Sizes) -> Memory:
    """Makes tables that know nothing."""

    def empty(*shape: int) -> jax.Array:
        return jnp.full((num_tables, *shape), NO_TOKEN, jnp.int32)

    return Memory(
        token_YSE=empty(sizes.tokens, 1 + NUM_SUCCESSORS),
        pair_YSE=empty(sizes.pairs, 1 + NUM_SUCCESSORS),
        ngram_YnSE=empty(len(LENGTHS), sizes.ngrams, 1 + NUM_FOLLOWERS),
    )


def pack(id_X: jax.Array, score_X: jax.Array, width: float = BUCKET_WIDTH) -> jax.Array:
    """Packs ids with the buckets of their log-probabilities, int32; `NO_TOKEN` stays what it is."""
    root_X = jnp.sqrt(jnp.maximum(-score_X, 0))
    bucket_X = jnp.minimum(jnp.floor(root_X / width), NUM_BUCKETS - 1).astype(jnp.int32)
    return id_X | (bucket_X << ID_BITS)


def unpack(packed_X: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Gives ids, `NO_TOKEN` of what is not there, and buckets."""
    return jnp.where(packed_X == NO_TOKEN, NO_TOKEN, packed_X & ((1 << ID_BITS) - 1)), packed_X >> ID_BITS


def successors_of_token(memory: Memory, token_BW: jax.Array) -> jax.Array:
    """Looks up the packed successors of tokens, int32 [B, W, 8]."""
    return _look_up(memory.token_YSE, token_BW.astype(jnp.uint32), token_BW, token_BW != NO_TOKEN)


def successors_of_pair(memory: Memory, keys_BWn: Keys) -> jax.Array:
    """Looks up the packed successors of two tokens, int32 [B, W, 8]."""
    keys = keys_BWn.of(2)
    return _look_up(memory.pair_YSE, keys.slot_Xn, keys.check_Xn, keys.is_whole_Xn)


def followers(memory: Memory, keys_BWn: Keys) -> jax.Array:
    """Looks up what followed n-grams, int32 [B, W, 6, 3]."""
    Y, _, S, _ = memory.ngram_YnSE.shape
    B = keys_BWn.slot_Xn.shape[0]
    table_B11 = (jnp.arange(B, dtype=jnp.int32) % Y)[:, None, None]
    slot_BWn = (keys_BWn.slot_Xn & jnp.uint32(S - 1)).astype(jnp.int32)
    entry_BWnE = memory.ngram_YnSE[table_B11, last_axis(len(LENGTHS), 3), slot_BWn]
    return _checked(entry_BWnE, keys_BWn.check_Xn, keys_BWn.is_whole_Xn)


def _look_up(table_YSE: jax.Array, slot_BW: jax.Array, check_BW: jax.Array, is_whole_BW: jax.Array) -> jax.Array:
    Y, S, _ = table_YSE.shape
    table_B1 = (jnp.arange(slot_BW.shape[0], dtype=jnp.int32) % Y)[:, None]
    entry_BWE = table_YSE[table_B1, (slot_BW & jnp.uint32(S - 1)).astype(jnp.int32)]
    return _checked(entry_BWE, check_BW, is_whole_BW)


def _checked(entry_XE: jax.Array, check_X: jax.Array, is_whole_X: jax.Array) -> jax.Array:
    is_own_X = (entry_XE[..., 0] == check_X) & is_whole_X
    return jnp.where(is_own_X[..., None], entry_XE[..., 1:], NO_TOKEN)


@jax.jit  # as `grow`
def keep_successors(
    memory: Memory, token_YR: jax.Array, keys_YRn: Keys, packed_YRC: jax.Array, order_YR: jax.Array
) -> Memory:
    """Writes what the model ranks best after R tokens, and after each with the one before it.

    Args:
      memory: Y tables.
      token_YR: int32 [Y, R].
      keys_YRn: of the texts that end with them.
      packed_YRC: int32 [Y, R, 8].
      order_YR: int32 [Y, R], all different: of two that share a place the larger one stays; below 0 leaves no trace.
    """
    pair = keys_YRn.of(2)
    pair_order_YR = jnp.where(pair.is_whole_Xn, order_YR, -1)
    return memory.replace(
        token_YSE=_write(memory.token_YSE, token_YR.astype(jnp.uint32), token_YR, packed_YRC, order_YR),
        pair_YSE=_write(memory.pair_YSE, pair.slot_Xn, pair.check_Xn, packed_YRC, pair_order_YR),
    )


def _write(
    table_YSE: jax.Array, slot_YR: jax.Array, check_YR: jax.Array, value_YRE: jax.Array, order_YR: jax.Array
) -> jax.Array:
    """Scatters entries; a scatter leaves open which of two writes to one place stays, so only one is made."""
    Y, S, _ = table_YSE.shape
    place_YR = (slot_YR & jnp.uint32(S - 1)).astype(jnp.int32)
    is_beaten_YRR = (place_YR[:, :, None] == place_YR[:, None, :]) & (order_YR[:, None, :] > order_YR[:, :, None])
    is_kept_YR = (order_YR >= 0) & ~jnp.any(is_beaten_YRR, axis=2)
    place_YR = jnp.where(is_kept_YR, place_YR, S)  # S is outside: dropped
    entry_YRE = jnp.concatenate([check_YR[..., None], value_YRE], axis=2)
    return table_YSE.at[jnp.arange(Y, dtype=jnp.int32)[:, None], place_YR].set(entry_YRE, mode="drop")


@jax.jit  # as `grow`
def keep_ngrams(memory: Memory, keys_YRn: Keys, next_YR: jax.Array, is_used_YR: jax.Array) -> Memory:
    """Writes which token followed R n-grams of each length, as if one after the other in the order given.

    Args:
      memory: Y tables.
      keys_YRn: of the texts in front of the tokens.
      next_YR: int32 [Y, R], the tokens.
      is_used_YR: bool [Y, R], False for those that must leave no trace.
    """
    table_YnSE = memory.ngram_YnSE
    Y, n, S, _ = table_YnSE.shape
    R = next_YR.shape[1]
    slot_YnR, check_YnR, is_whole_YnR = (
        jnp.moveaxis(x, 2, 1) for x in (keys_YRn.slot_Xn, keys_YRn.check_Xn, keys_YRn.is_whole_Xn)
    )
    place_YnR = (slot_YnR & jnp.uint32(S - 1)).astype(jnp.int32)
    is_used_YnR = is_used_YR[:, None] & is_whole_YnR
    index = (jnp.arange(Y, dtype=jnp.int32)[:, None, None], jnp.arange(n, dtype=jnp.int32)[None, :, None], place_YnR)
    old_YnRE = table_YnSE[index]

    # i is the last at its place; it takes the tokens after j <= i of the same key, back to where another key was there.
    number_111R = last_axis(R, 4)
    is_here_YnRR = (place_YnR[..., :, None] == place_YnR[..., None, :]) & is_used_YnR[..., None, :]
    is_same_YnRR = check_YnR[..., :, None] == check_YnR[..., None, :]
    is_before_11RR = number_111R <= jnp.arange(R, dtype=jnp.int32)[None, None, :, None]
    is_last_YnR = is_used_YnR & ~jnp.any(is_here_YnRR & ~is_before_11RR, axis=3)
    cut_YnR = jnp.max(jnp.where(is_here_YnRR & ~is_same_YnRR & is_before_11RR, number_111R, -1), axis=3)
    is_mine_YnRR = is_here_YnRR & is_same_YnRR & is_before_11RR & (number_111R > cut_YnR[..., None])
    is_old_own_YnR1 = ((cut_YnR < 0) & (old_YnRE[..., 0] == check_YnR))[..., None]

    # Newest first: the tokens of this piece in reverse, then the old entry's.
    new_YnR = jnp.broadcast_to(next_YR[:, None], place_YnR.shape)
    taken: list[jax.Array] = []
    for _ in range(NUM_FOLLOWERS):
        is_new_YnRR = is_mine_YnRR
        for token_YnR in taken:
            is_new_YnRR &= next_YR[:, None, None, :] != token_YnR[..., None]
        newest_YnR = jnp.max(jnp.where(is_new_YnRR, number_111R, -1), axis=3)
        token_YnR = jnp.take_along_axis(new_YnR, jnp.maximum(newest_YnR, 0), axis=2)
        taken.append(jnp.where(newest_YnR >= 0, token_YnR, NO_TOKEN))
    old_YnRF = jnp.where(is_old_own_YnR1, old_YnRE[..., 1:], NO_TOKEN)
    listed_YnRF = jnp.concatenate([jnp.stack(taken, axis=-1), old_YnRF], axis=-1)
    entry_YnRE = jnp.concatenate([check_YnR[..., None], _first_different(listed_YnRF)], axis=-1)
    place_YnR = jnp.where(is_last_YnR, place_YnR, S)  # outside: dropped
    return memory.replace(ngram_YnSE=table_YnSE.at[index[0], index[1], place_YnR].set(entry_YnRE, mode="drop"))


def _first_different(token_XF: jax.Array) -> jax.Array:
    """Takes the first three different tokens of six, int32 [..., 3]; `NO_TOKEN` where there are fewer."""
    F = token_XF.shape[-1]
    is_before_XFF = jnp.broadcast_to(np.tril(np.ones((F, F), np.bool_), k=-1), (*token_XF.shape, F))
    is_again_XF = jnp.any((token_XF[..., :, None] == token_XF[..., None, :]) & is_before_XFF, axis=-1)
    is_first_XF = (token_XF != NO_TOKEN) & ~is_again_XF
    place_XF = jnp.where(is_first_XF, jnp.cumsum(is_first_XF, axis=-1, dtype=jnp.int32) - 1, F)
    is_at_XkF = place_XF[..., None, :] == last_axis(NUM_FOLLOWERS, token_XF.ndim)[..., None]
    token_Xk = jnp.sum(jnp.where(is_at_XkF, token_XF[..., None, :], 0), axis=-1, dtype=jnp.int32)
    return jnp.where(jnp.any(is_at_XkF, axis=-1), token_Xk, NO_TOKEN)
