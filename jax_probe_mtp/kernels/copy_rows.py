"""Copies the accepted rows of all layers in one GPU kernel (Pallas, Triton), where XLA makes four kernels a layer."""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

ARRAYS_A_KERNEL = 128  # two pointers each, of the 4 KB of parameters that a kernel may have


def is_supported(head_dim: int) -> bool:
    """Says whether `copy_rows` takes heads of this size: Triton's tiles are powers of two."""
    return head_dim == pl.next_power_of_2(head_dim)


def copy_rows(
    slots: Sequence[jax.Array], row_BP: jax.Array, target_B: jax.Array, *, interpret: bool = False
) -> tuple[jax.Array, ...]:
    """Copies P rows of each array, one by one, to consecutive slots of the same array, in place where it is donated.

    Args:
      slots: arrays [B, K, S, h] of one shape and dtype: keys and values of all layers.
      row_BP: int32 [B, P], slots to copy, each within S.
      target_B: int32 [B], where the first one goes; `target + P` within S. May lie among the rows that are copied: all are
        read before one is written.
      interpret: runs the kernel as JAX operations on any device: slow, for tests.

    Returns:
      The arrays with slots [target, target + P) replaced.
    """
    parts = [slots[first : first + ARRAYS_A_KERNEL] for first in range(0, len(slots), ARRAYS_A_KERNEL)]
    return tuple(array for part in parts for array in _copy(part, row_BP, target_B, interpret))


def _copy(slots: Sequence[jax.Array], row_BP: jax.Array, target_B: jax.Array, interpret: bool) -> tuple[jax.Array, ...]:
    B, K, S, h = slots[0].shape
    P, num_arrays = row_BP.shape[1], len(slots)
    head = pl.BlockSpec((None, None, S, h), lambda i, b, k: (b, k, 0, 0))
    return pl.pallas_call(
        functools.partial(_copy_kernel, num_arrays=num_arrays, num_rows=P),
        grid=(num_arrays, B, K),
        in_specs=[
            pl.BlockSpec((None, P), lambda i, b, k: (b, 0)),
            pl.BlockSpec((None,), lambda i, b, k: (b,)),
            *[head] * num_arrays,
        ],
        out_specs=(head,) * num_arrays,
        out_shape=tuple(jax.ShapeDtypeStruct(array.shape, array.dtype) for array in slots),
        input_output_aliases={2 + i: i for i in range(num_arrays)},
        compiler_params=plgpu.CompilerParams(num_warps=1, num_stages=1),
        interpret=interpret,
    )(row_BP.astype(jnp.int32), target_B.astype(jnp.int32), *slots)


def _copy_kernel(row_ref: Any, target_ref: Any, *refs: Any, num_arrays: int, num_rows: int) -> None:
    """Copies one head of one array; which array it is becomes known as the kernel runs, so each has its branch."""
    for i in range(num_arrays):

        @pl.when(pl.program_id(0) == i)
        def copy(source_ref: Any = refs[i], out_ref: Any = refs[num_arrays + i]) -> None:
            rows = [plgpu.load(source_ref.at[row_ref[p], :]) for p in range(num_rows)]
            target = target_ref[...]
            for p, row_h in enumerate(rows):
                plgpu.store(out_ref.at[target + p, :], row_h)
