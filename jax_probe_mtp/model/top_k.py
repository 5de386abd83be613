"""The best k of a vocabulary in exact stages: several times cheaper than one pass over all of it."""

import functools

import jax
import jax.numpy as jnp

BLOCK = 128  # consecutive ids that are represented by their maximum
COUNTED_BLOCK = 64  # the same where places are counted; a quarter of it in the stage that chooses among the maxima
FEW = 512  # of which each is compared with each


def top_k(values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Gives what `jax.lax.top_k` gives: the k largest along the last axis, best first, ties to the lower id.

    Args:
      values: [..., V], without NaN; -inf and ties are fine. With NaN the ids are in range, but which is left open.
        Subnormal numbers may count as 0, as they do in the arithmetic of some platforms (XLA's maximum on CPUs).
      k: static.

    Returns:
      Values [..., k] and ids int32 [..., k].
    """
    if values.shape[-1] < max(1 << 14, 4 * k * BLOCK):  # too few values for a first stage to pay
        return jax.lax.top_k(values, k)
    if values.dtype != jnp.float32:
        return _by_blocks(values, k)
    by_counting = functools.partial(_by_counting, k=k)
    by_blocks = functools.partial(_by_blocks, k=k)
    return jax.lax.platform_dependent(values, cuda=by_counting, rocm=by_counting, default=by_blocks)


def smallest(keys: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Gives the k smallest of some thousand whole numbers, in order, ties to the lower place.

    Args:
      keys: int32 [..., n], above the least int32.
      k: static.

    Returns:
      Keys int32 [..., k] and their places int32 [..., k].
    """
    by_counting = functools.partial(_smallest_by_counting, k=k)
    by_sorting = functools.partial(_smallest_by_sorting, k=k)
    return jax.lax.platform_dependent(keys, cuda=by_counting, rocm=by_counting, default=by_sorting)


def _smallest_by_sorting(keys: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    best, place = jax.lax.top_k(-keys, k)
    return -best, place


def _smallest_by_counting(keys: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    number = jnp.broadcast_to(jnp.arange(keys.shape[-1], dtype=jnp.int32), keys.shape)
    place = _take_first(_place(-keys, number), k, number)
    return jnp.take_along_axis(keys, place, axis=-1, mode="clip"), place


def _by_blocks(values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Takes the best k of the k blocks with the largest maxima, of equal ones the lower, and of the ids behind the blocks.

    Nothing else can be among the best k. Take a value x outside: k blocks come before its own. Each holds its maximum,
    which is larger than x, or equal and in a lower block, so at a lower id. That makes k values that go before x.

    The chosen blocks are put in order, so candidates stand by id, and the tie at a lower place is the one at a lower id.
    """
    lead, V = values.shape[:-1], values.shape[-1]
    num_blocks = V // BLOCK
    in_blocks = num_blocks * BLOCK
    best = jnp.max(values[..., :in_blocks].reshape(*lead, num_blocks, BLOCK), axis=-1)
    block = jnp.sort(jax.lax.top_k(best, k)[1], axis=-1)
    id_of = (block[..., None] * BLOCK + last_axis(BLOCK, block.ndim + 1)).reshape(*lead, k * BLOCK)
    if in_blocks < V:  # not padded: padding could stand for a real -inf, and copies all values
        rest = jnp.arange(in_blocks, V, dtype=jnp.int32)
        id_of = jnp.concatenate([id_of, jnp.broadcast_to(rest, (*lead, rest.size))], axis=-1)
    best, place = jax.lax.top_k(jnp.take_along_axis(values, id_of, axis=-1, mode="clip"), k)
    return best, jnp.take_along_axis(id_of, place, axis=-1, mode="clip")


def _by_counting(values: jax.Array, k: int) -> tuple[jax.Array, jax.Array]:
    """Goes the same way on a GPU: a value's place is the number of values before it, and no sort is its own kernel.

    n values take n^2 comparisons, which is nothing to a GPU for some hundred values; its sorts cost 15 to 280 microseconds.
    """
    ids = _first_by_counting(_ordered(values), k, COUNTED_BLOCK)
    return jnp.take_along_axis(values, ids, axis=-1, mode="clip"), ids


def _first_by_counting(key: jax.Array, k: int, block: int) -> jax.Array:
    """Finds the places of the k largest keys, in order, in stages until there are few enough to compare all of them."""
    lead, n = key.shape[:-1], key.shape[-1]
    number = jnp.broadcast_to(jnp.arange(n, dtype=jnp.int32), key.shape)
    if n <= FEW or k * block >= n:
        return _take_first(_place(key, number), k, number)
    num_blocks = n // block
    in_blocks = num_blocks * block
    best = jnp.max(key[..., :in_blocks].reshape(*lead, num_blocks, block), axis=-1)
    chosen = _first_by_counting(best, k, COUNTED_BLOCK // 4)
    place_of = chosen[..., None] * block + last_axis(block, chosen.ndim + 1)
    rest = jnp.broadcast_to(jnp.arange(in_blocks, n, dtype=jnp.int32), (*lead, n - in_blocks))
    place_of = jnp.concatenate([place_of.reshape(*lead, k * block), rest], axis=-1)
    place = _place(jnp.take_along_axis(key, place_of, axis=-1, mode="clip"), place_of)
    return _take_first(place, k, place_of)


def _ordered(values: jax.Array) -> jax.Array:
    """Gives int32 that order as float32 values do in `jax.lax.top_k`, 0 above -0."""
    bits = jax.lax.bitcast_convert_type(values, jnp.int32)
    return jnp.where(bits < 0, bits ^ jnp.int32(0x7FFFFFFF), bits)


def _place(key: jax.Array, number: jax.Array) -> jax.Array:
    """Counts how many come before each: those with a larger key, and of equal ones those with a lower number."""
    is_before = (key[..., None, :] > key[..., None]) | (
        (key[..., None, :] == key[..., None]) & (number[..., None, :] < number[..., None])
    )
    return jnp.sum(is_before, axis=-1, dtype=jnp.int32)


def _take_first(place: jax.Array, k: int, array: jax.Array) -> jax.Array:
    """Takes the entries at places 0 to k - 1, in order."""
    is_at = place[..., None, :] == last_axis(k, place.ndim)[..., None]
    return jnp.sum(jnp.where(is_at, array[..., None, :], 0), axis=-1, dtype=array.dtype)


def last_axis(size: int, ndim: int) -> jax.Array:
    """Counts along the last of `ndim` axes, int32 [1, ..., size]."""
    return jnp.arange(size, dtype=jnp.int32).reshape(*[1] * (ndim - 1), size)
