"""Logits of which each device of a mesh keeps its part of the vocabulary: what is asked of them travels, they do not.

A best token is a number and an id from every device; the logits of 30 rows over 128,000 tokens are 15 MB.
"""

import functools
from typing import Self

import flax.struct
import jax
import jax.numpy as jnp

from jax_probe_mtp.model import sampling, top_k
from jax_probe_mtp.model.config import TENSOR


class Logits(flax.struct.PyTreeNode, kw_only=True):
    """Next-token logits of some rows, as each device has them. v is V on one device.

    Attributes:
      part_Xv: float32 [..., v], of this device's tokens; -inf behind the vocabulary, which a mesh pads to equal parts.
      vocab_size: V; static.
      is_sharded: whether the vocabulary is split, inside `jax.shard_map` over the axis `TENSOR`; static.
    """

    part_Xv: jax.Array
    vocab_size: int = flax.struct.field(pytree_node=False)
    is_sharded: bool = flax.struct.field(pytree_node=False, default=False)

    @classmethod
    def of(cls, logits_XV: jax.Array) -> "Logits":
        """Takes logits [..., V] that are whole on every device."""
        return cls(part_Xv=logits_XV, vocab_size=logits_XV.shape[-1])

    @classmethod
    def of_part(cls, part_Xv: jax.Array, vocab_size: int) -> "Logits":
        """Takes this device's part of logits, padding included."""
        size = part_Xv.shape[-1]
        if size * jax.lax.axis_size(TENSOR) > vocab_size:
            id_v = _first_id(size) + jnp.arange(size, dtype=jnp.int32)
            part_Xv = jnp.where((id_v < vocab_size)[(None,) * (part_Xv.ndim - 1)], part_Xv, -jnp.inf)
        return cls(part_Xv=part_Xv, vocab_size=vocab_size, is_sharded=True)

    def whole(self) -> jax.Array:
        """Gives all logits, float32 [..., V], on every device of a mesh: many bytes have to travel."""
        if not self.is_sharded:
            return self.part_Xv
        logits_XV = jax.lax.all_gather(self.part_Xv, TENSOR, axis=self.part_Xv.ndim - 1, tiled=True)
        return logits_XV[..., : self.vocab_size]

    def first(self, num_rows: int) -> Self:
        """Takes the first rows of [B, R, V]."""
        return self.replace(part_Xv=self.part_Xv[:, :num_rows])

    def rows(self, row_BQ: jax.Array) -> Self:
        """Takes rows of [B, R, V] by their numbers, int32 [B, Q]."""
        return self.replace(part_Xv=jnp.take_along_axis(self.part_Xv, row_BQ[..., None], axis=1))

    def scale(self, temperature_B: jax.Array | None) -> Self:
        """Divides by each batch row's temperature, as `sampling.scale` does."""
        return self.replace(part_Xv=sampling.scale(self.part_Xv, temperature_B))

    def argmax(self) -> jax.Array:
        """Finds the best token of each row, int32 [...]; of equal ones the lowest id."""
        id_X = jnp.argmax(self.part_Xv, axis=-1).astype(jnp.int32)
        if not self.is_sharded:
            return id_X
        best_tX, id_tX = _gather(jnp.max(self.part_Xv, axis=-1), id_X + _first_id(self.part_Xv.shape[-1]))
        return jnp.take_along_axis(id_tX, jnp.argmax(best_tX, axis=0)[None], axis=0)[0]

    def top_k(self, k: int) -> tuple[jax.Array, jax.Array]:
        """Finds the k best tokens, best first, of equal ones the lower id first: values float32 and ids int32 [..., k]."""
        if not self.is_sharded:
            best_Xk, id_Xk = top_k.top_k(self.part_Xv, k)
            return best_Xk, id_Xk.astype(jnp.int32)
        size = self.part_Xv.shape[-1]
        best_Xk, id_Xk = top_k.top_k(self.part_Xv, min(k, size))
        gathered = _gather(best_Xk, id_Xk.astype(jnp.int32) + _first_id(size))
        best_Xj, id_Xj = (jnp.moveaxis(array_tXk, 0, -2).reshape(*best_Xk.shape[:-1], -1) for array_tXk in gathered)
        best_Xk, place_Xk = jax.lax.top_k(best_Xj, k)  # device after device, so a tie at a lower place has the lower id
        return best_Xk, jnp.take_along_axis(id_Xj, place_Xk, axis=-1)

    def logsumexp(self) -> jax.Array:
        """Computes the logarithm of the sum of exponentials of each row, float32 [..., 1]."""
        if not self.is_sharded:
            return jax.nn.logsumexp(self.part_Xv, axis=-1, keepdims=True)
        most_X1 = jnp.max(self.part_Xv, axis=-1, keepdims=True)
        most_X1 = jnp.maximum(most_X1, jnp.finfo(most_X1.dtype).min)  # of a part that is all padding
        total_X1 = jnp.sum(jnp.exp(self.part_Xv - most_X1), axis=-1, keepdims=True)
        most_tX1, total_tX1 = _gather(most_X1, total_X1)
        most_X1 = jnp.max(most_tX1, axis=0)
        scaled = total_tX1 * jnp.exp(most_tX1 - most_X1)
        # One after the other, in the order of the devices: the sum's bits are the same for any number of rows.
        return jnp.log(functools.reduce(jnp.add, scaled)) + most_X1

    def at(self, id_XC: jax.Array) -> jax.Array:
        """Looks up the logits of some tokens of each row, float32 [..., C]."""
        if not self.is_sharded:
            return jnp.take_along_axis(self.part_Xv, id_XC, axis=-1)
        size = self.part_Xv.shape[-1]
        place_XC = id_XC - _first_id(size)
        is_here_XC = (place_XC >= 0) & (place_XC < size)
        found_XC = jnp.take_along_axis(self.part_Xv, jnp.where(is_here_XC, place_XC, 0), axis=-1)
        return jax.lax.psum(jnp.where(is_here_XC, found_XC, 0), TENSOR)

    def num_above(self, value_X1: jax.Array) -> jax.Array:
        """Counts the tokens of each row that are above a value, int32 [...]; all that cannot be compared with it are."""
        count_X = jnp.sum(~(self.part_Xv <= value_X1), axis=-1, dtype=jnp.int32)
        return jax.lax.psum(count_X, TENSOR) if self.is_sharded else count_X


def _gather(*parts: jax.Array) -> list[jax.Array]:
    """Gathers arrays of one shape, float32 or int32, from T devices: [T, ...] of each.

    They travel as one: what a collective of so few numbers takes is its start.
    """
    bits_nX = jnp.stack([jax.lax.bitcast_convert_type(part, jnp.int32) for part in parts])
    bits_tnX = jax.lax.all_gather(bits_nX, TENSOR)
    return [jax.lax.bitcast_convert_type(bits_tnX[:, i], part.dtype) for i, part in enumerate(parts)]


def _first_id(size: int) -> jax.Array:
    return jax.lax.axis_index(TENSOR).astype(jnp.int32) * size
