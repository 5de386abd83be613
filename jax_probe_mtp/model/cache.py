"""The key/value cache: fixed capacity, written in place.

Slots of one row, S of capacity and R of scratch:

    [ committed 0 .. length | free .. S | scratch S .. S + R ]

A prefill chunk is written where its tokens stay, and so is the only row of a call of plain decoding. A decode call's
block goes to the scratch, at the same place for every row of the batch (no scatter), and the accepted path is copied from
there to the end of the committed part. So a full cache needs no spare slots inside its capacity.
"""

import functools
from typing import NamedTuple

import flax.struct
import jax
import jax.numpy as jnp

from jax_probe_mtp.kernels import copy_rows
from jax_probe_mtp.kernels.exchange import Mail
from jax_probe_mtp.model.config import ModelConfig


class KVCache(flax.struct.PyTreeNode, kw_only=True):
    """Keys (after rope) and values of every layer.

    Attributes:
      k: L arrays [B, K, S + R, h] in the model's dtype; kv heads before slots, as the attention products read them. In
        `stacked.py` they are one array, L in front; in a loop they may lack a B of 1 (`as_carried`).
      v: the same for values.
      capacity: S; static.
      mail: what the devices that share weights exchange sums through; None where they do otherwise, and outside of loops.
    """

    k: tuple[jax.Array, ...]
    v: tuple[jax.Array, ...]
    capacity: int = flax.struct.field(pytree_node=False)
    mail: Mail | None = None


class Stream(NamedTuple):
    """What a layer takes and gives.

    Attributes:
      x_BTD: the residual stream.
      normed_BTD: its norm.
      k_BKSh, v_BKSh: the layer's keys and values.
      mail: as in `KVCache`.
    """

    x_BTD: jax.Array
    normed_BTD: jax.Array
    k_BKSh: jax.Array
    v_BKSh: jax.Array
    mail: Mail | None = None


def allocate(cfg: ModelConfig, *, batch_size: int, capacity: int, scratch: int, dtype: jnp.dtype) -> KVCache:
    """Makes an empty cache of `capacity` slots a row and `scratch` more for the block of a call."""
    shape = (batch_size, cfg.num_kv_heads, capacity + scratch, cfg.head_dim)
    zeros = tuple(jnp.zeros(shape, dtype) for _ in range(2 * cfg.num_layers))
    return KVCache(k=zeros[: cfg.num_layers], v=zeros[cfg.num_layers :], capacity=capacity)


def as_carried(cache: KVCache) -> KVCache:
    """Gives the cache as a loop carries it: [K, S + R, h] where there is one batch row.

    XLA drops axes of 1 from its products. Where the carried array had one, XLA:CPU wrote each row twice, once into an array
    without the axis for the product and once into the carried one, and copied the cache for it.
    """
    if isinstance(cache.k, tuple) and len(cache.k[0]) == 1:
        return cache.replace(k=tuple(k[0] for k in cache.k), v=tuple(v[0] for v in cache.v))
    return cache


def whole(cache: KVCache) -> KVCache:
    """Gives the cache that `as_carried` was given."""
    if isinstance(cache.k, tuple) and cache.k[0].ndim == 3:
        return cache.replace(k=tuple(k[None] for k in cache.k), v=tuple(v[None] for v in cache.v))
    return cache


def write_rows(slots_BKSh: jax.Array, rows_BTKh: jax.Array, start: jax.Array | int) -> jax.Array:
    """Puts T consecutive rows at slot `start`, one for all batch rows or int32 [B]; `start + T` must be within the slots."""
    rows_BKTh = rows_BTKh.swapaxes(1, 2)
    if jnp.ndim(start) and rows_BKTh.shape[0] > 1:
        return _put_rows((slots_BKSh,), (rows_BKTh,), jnp.asarray(start))[0]
    # One batch row is no special case but in speed: a slice is written by one kernel, a scatter is not.
    first = jnp.reshape(start, -1)[0] if jnp.ndim(start) else start
    if rows_BKTh.shape[0] > 1:
        return jax.lax.dynamic_update_slice_in_dim(slots_BKSh, rows_BKTh, first, axis=2)
    return jax.lax.dynamic_update_slice_in_dim(slots_BKSh[0], rows_BKTh[0], first, axis=1)[None]


def _put_rows(slots: tuple[jax.Array, ...], rows: tuple[jax.Array, ...], start_B: jax.Array) -> tuple[jax.Array, ...]:
    """Writes each batch row's rows [B, K, P, h] into arrays [B, K, S, h] at a slot of its own.

    On CPUs one batch row after the other: all at once are a scatter, for which their compiler makes a bfloat16 array float32
    and back, in every call. TPUs keep the scatter: their compiler fails on the loop where a device has one kv head.
    """

    def in_turn(slots: tuple[jax.Array, ...], rows: tuple[jax.Array, ...], start_B: jax.Array) -> tuple[jax.Array, ...]:
        def put(b: jax.Array, slots: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
            zero = jnp.zeros_like(start_B[0])
            place = (b.astype(start_B.dtype), zero, start_B[b], zero)
            return tuple(
                jax.lax.dynamic_update_slice(array, jax.lax.dynamic_slice_in_dim(new, b, 1), place)
                for array, new in zip(slots, rows, strict=True)
            )

        return jax.lax.fori_loop(0, len(start_B), put, slots)

    def at_once(slots: tuple[jax.Array, ...], rows: tuple[jax.Array, ...], start_B: jax.Array) -> tuple[jax.Array, ...]:
        write = jax.vmap(functools.partial(jax.lax.dynamic_update_slice_in_dim, axis=1))
        return tuple(write(array, new, start_B) for array, new in zip(slots, rows, strict=True))

    return jax.lax.platform_dependent(slots, rows, start_B, cpu=in_turn, default=at_once)


def keep_path(cache: KVCache, path_BP: jax.Array, length_B: jax.Array) -> KVCache:
    """Copies the rows of the accepted path from the scratch to the end of the committed slots.

    All P rows are copied; those past the accepted ones land in free slots, which nobody reads before they are written
    again. `length + P` never leaves the array, since the scratch has at least P slots.

    Args:
      cache: holds the call's block in its scratch.
      path_BP: int32 [B, P], block rows of the path: the root, then the accepted nodes, then anything.
      length_B: int32 [B], committed slots.

    Returns:
      The cache with slots [length, length + P) replaced.
    """

    def keep(slots_KSh: jax.Array, path_P: jax.Array, length: jax.Array) -> jax.Array:
        rows_KPh = jnp.take(slots_KSh, cache.capacity + path_P, axis=1, mode="clip")
        return jax.lax.dynamic_update_slice_in_dim(slots_KSh, rows_KPh, length, axis=1)

    def keep_all(path_BP: jax.Array, length_B: jax.Array, *slots: jax.Array) -> tuple[jax.Array, ...]:
        if len(path_BP) == 1:  # as in `write_rows`
            return tuple(keep(array[0], path_BP[0], length_B[0])[None] for array in slots)
        take = jax.vmap(lambda scratch_KRh, path_P: jnp.take(scratch_KRh, path_P, axis=1, mode="clip"))
        rows = tuple(take(array[:, :, cache.capacity :], path_BP) for array in slots)
        return _put_rows(slots, rows, length_B)

    def by_kernel(path_BP: jax.Array, length_B: jax.Array, *slots: jax.Array) -> tuple[jax.Array, ...]:
        return copy_rows.copy_rows(slots, cache.capacity + path_BP, length_B)

    on_cuda = by_kernel if copy_rows.is_supported(cache.k[0].shape[-1]) else keep_all
    slots = jax.lax.platform_dependent(path_BP, length_B, *cache.k, *cache.v, cuda=on_cuda, default=keep_all)
    return cache.replace(k=slots[: len(cache.k)], v=slots[len(cache.k) :])
