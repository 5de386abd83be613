"""Lists of paths in a kernel's memory: how they are written, numbered and put in order."""

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jax.experimental.pallas import triton as plgpu


class Paths(NamedTuple):
    """Memory for paths: of the arena, which holds all that were ever kept, W for each depth; and of the children of a depth.

    The last place of each array takes what is not to be kept.
    """

    key: Any
    token: Any
    parent: Any  # its place in the arena
    note: Any


def put(ref: Any, at_X: jax.Array, value_X: jax.Array, is_kept_X: jax.Array) -> None:
    """Stores values at different places; those that are not kept go where nothing is read."""
    plgpu.store(ref.at[jnp.where(is_kept_X, at_X, ref.shape[0] - 1)], value_X)


def places(is_kept_X: jax.Array, first: Any) -> tuple[jax.Array, Any]:
    """Numbers those that are kept from `first` on; gives the numbers, and the next one."""
    kept_X = is_kept_X.astype(jnp.int32)
    place_X = jnp.cumsum(kept_X, axis=-1)
    if kept_X.ndim == 2:
        total_N = jnp.sum(kept_X, axis=1)
        place_X += (jnp.cumsum(total_N, axis=0) - total_N)[:, None]
    return first + place_X - 1, first + jnp.sum(kept_X)


def in_order(
    key_ref: Any, from_ref: Any, number: Any, place_W: jax.Array, never: int
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Gives of up to W keys that were written in any order: the key, its place in order, and what was written beside it.

    Places behind the keys stay as they are.
    """
    is_there_W = place_W < number
    key_W = plgpu.load(key_ref.at[place_W], mask=is_there_W, other=never)
    from_W = plgpu.load(from_ref.at[place_W], mask=is_there_W, other=0)
    to_W = jnp.sum((key_W[None, :] < key_W[:, None]).astype(jnp.int32), axis=1)
    return key_W, jnp.where(is_there_W, to_W, place_W), from_W
