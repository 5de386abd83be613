"""Keys of the newest tokens of a text, by which tables are asked: of the last token, the last two, up to the last nine."""

from collections.abc import Sequence

import flax.struct
import jax
import jax.numpy as jnp

from jax_probe_mtp.drafting.candidates import NO_TOKEN
from jax_probe_mtp.model.top_k import last_axis

LENGTHS = (1, 2, 3, 4, 6, 9)  # of the n-grams that have a key
CONTEXT = max(LENGTHS)  # L, tokens that the keys are made of
# Odd 32-bit numbers with mixed bits: 2^32 over the golden ratio, and one of MurmurHash3's.
_SLOT, _CHECK = 0x9E3779B1, 0x85EBCA6B


class Keys(flax.struct.PyTreeNode, kw_only=True):
    """Two hashes for each of `LENGTHS`: where an n-gram's entry is, and how to know that it is its own.

    Attributes:
      slot_Xn: uint32 [..., n], taken modulo a table's size.
      check_Xn: int32 [..., n].
      is_whole_Xn: bool [..., n], False where the text is shorter than the n-gram.
    """

    slot_Xn: jax.Array
    check_Xn: jax.Array
    is_whole_Xn: jax.Array

    def of(self, length: int) -> "Keys":
        """Gives the keys of one length, without the last axis."""
        i = LENGTHS.index(length)
        return Keys(slot_Xn=self.slot_Xn[..., i], check_Xn=self.check_Xn[..., i], is_whole_Xn=self.is_whole_Xn[..., i])


def keys_of(context_XL: jax.Array) -> Keys:
    """Hashes the newest tokens.

    Args:
      context_XL: int32 [..., 9], the newest token last, `NO_TOKEN` where there is none.
    """
    slot, check, is_whole = zip(*hashes([context_XL[..., i] for i in range(CONTEXT)]), strict=True)

    def stack(arrays: Sequence[jax.Array]) -> jax.Array:
        # Chosen, not stacked: so a GPU's program goes through the hashes once, not for each length anew.
        number_Xn = last_axis(len(LENGTHS), arrays[0].ndim + 1)
        stacked = jnp.broadcast_to(arrays[0][..., None], (*arrays[0].shape, len(LENGTHS)))
        for i, array in enumerate(arrays[1:], start=1):
            stacked = jnp.where(number_Xn == i, array[..., None], stacked)
        return stacked

    return Keys(slot_Xn=stack(slot), check_Xn=stack(check), is_whole_Xn=stack(is_whole))


def hashes(tokens: Sequence[jax.Array]) -> list[tuple[jax.Array, jax.Array, jax.Array]]:
    """Hashes one token after the other, the newest first; gives `Keys` of each of `LENGTHS`.

    Args:
      tokens: nine int32 arrays, the newest tokens last.
    """
    slot = check = jnp.zeros(tokens[0].shape, jnp.uint32)
    is_whole = jnp.ones(slot.shape, jnp.bool_)
    found = []
    for length, token in enumerate(reversed(tokens), start=1):
        is_whole &= token != NO_TOKEN
        slot, check = _mix(slot, token, _SLOT, 16), _mix(check, token, _CHECK, 13)
        if length in LENGTHS:
            found.append((slot, jax.lax.bitcast_convert_type(check, jnp.int32), is_whole))
    return found


def _mix(hashed: jax.Array, token: jax.Array, factor: int, shift: int) -> jax.Array:
    hashed = (hashed ^ token.astype(jnp.uint32)) * jnp.uint32(factor)
    return hashed ^ (hashed >> jnp.uint32(shift))
