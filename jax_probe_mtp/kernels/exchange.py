"""Sums what devices hold, adds it to the residual stream and norms that, in one GPU kernel (Pallas, Mosaic GPU).

Each device writes its part into the mailboxes of the others, in their memory, and reads theirs from its own:

    device 0 | writes part 0 -> mail of 1 | waits for its mail | x + (part 0 + part 1), its norm
    device 1 | writes part 1 -> mail of 0 | waits for its mail | x + (part 0 + part 1), its norm

A word of mail is 32 bits, which arrive together: up to 24 of a number and, in the lowest eight, the turn. So whoever waits
reads the words until all show the turn that it waits for, and nothing else says that a part has come (the way of NCCL's
protocol LL). Turns use two slots, one after the other. A device writes into a slot again two turns later: then it has had
the others' parts of the turn between, which they sent after they had read those of the turn before.

The mailboxes must stay where they are, since others write there: a kernel takes them from the one before it and gives them
to the next, and nothing else may read them, or XLA makes a copy. One kernel before a loop finds where the others' are, and
those in the loop read that: XLA tells a kernel itself at each start of a program, which takes longer than a call's sums. They
end the program with an error where they find their own elsewhere. Before the first turn every device must know that those of
the others are there; the sum of the embeddings (`transformer.embed`), by which each call begins, sees to that.
"""

import dataclasses
import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jax_probe_mtp.kernels.tiles import WARP, WARPGROUP

MAX_ROWS, MAX_WIDTH = 512, 16384
# At a time, each on a processor of its own: one that waits must not keep the one that it waits for from running.
NUM_PROGRAMS = 128
MAX_WARPGROUPS = 4  # of a program


class Mail(NamedTuple):
    """A device's mailboxes.

    Attributes:
      words: int32 [R, 2, T, L, D], for each row two slots of what each of T devices sent: L words a number.
      turn_R: int32 [R], the row's turns so far, the same on all devices.
      place_T2: int32 [T + 1, 2], addresses of the words on each device, as two halves; then this device's number.
    """

    words: jax.Array
    turn_R: jax.Array
    place_T2: jax.Array


def allocate(num_rows: int, width: int, dtype: Any, axis: str) -> Mail:
    """Makes empty mailboxes for R rows of D numbers from the devices of an axis, in a model of this dtype.

    It runs under `jax.shard_map`, in the program whose loop uses them, and before that loop.
    """
    plgpu, program = _mosaic()
    num_devices, num_words = jax.lax.axis_size(axis), 1 if dtype == jnp.bfloat16 else 2
    words_ref = jax.new_ref(jnp.zeros((num_rows, 2, num_devices, num_words, width), jnp.int32))
    address_T2 = plgpu.kernel(
        functools.partial(program.find, axis=axis),
        out_type=jax.ShapeDtypeStruct((num_devices, 2), jnp.int32),
        kernel_name="find_mailboxes",
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane, unsafe_no_auto_barriers=True, skip_device_barrier=True
        ),
    )(words_ref)
    own_12 = jnp.stack([jax.lax.axis_index(axis), 0]).astype(jnp.int32)[None]
    return Mail(jax.freeze(words_ref), jnp.zeros(num_rows, jnp.int32), jnp.concatenate([address_T2, own_12]))


def can_lower() -> bool:
    """Says whether the JAX at hand makes such kernels.

    0.11.2 is the first whose programs run one without a barrier over the devices before it; 0.12 has not run it.
    """
    fields = {field.name for field in dataclasses.fields(_mosaic()[0].CompilerParams)}
    return "skip_device_barrier" in fields and jax.__version_info__ < (0, 12)


def _mosaic() -> tuple[Any, Any]:
    """Imports Pallas' Mosaic backend and the programs, only here: they take 0.2 s, which others need not wait for."""
    from jax.experimental.pallas import mosaic_gpu

    from jax_probe_mtp.kernels import exchange_program

    return mosaic_gpu, exchange_program


def is_supported(num_rows: int, width: int, dtype: Any) -> bool:
    """Says whether the kernel takes so many rows of so many numbers."""
    return (
        num_rows <= MAX_ROWS and width <= MAX_WIDTH and width % WARPGROUP == 0 and dtype in (jnp.bfloat16, jnp.float32)
    )


def runs_on(device: jax.Device) -> bool:
    """Says whether the kernel's programs fit a device at once: a Hopper GPU with as many processors."""
    is_hopper = getattr(device, "compute_capability", "").startswith("9.")
    return device.platform == "gpu" and is_hopper and getattr(device, "core_count", 0) >= NUM_PROGRAMS


def exchange_add_norm(
    x_MD: jax.Array, parts_PND: jax.Array, weight_D: jax.Array, mail: Mail, *, eps: float, num_out: int = 0
) -> tuple[jax.Array, jax.Array, Mail]:
    """Sums the parts of all devices, adds that to x, and norms it, under `jax.shard_map`.

    Args:
      x_MD: the residual stream of M rows, the same on all devices; bfloat16 or float32.
      parts_PND: P parts of what this device adds to it; bfloat16 or float32; the first M of N rows are.
      weight_D: the norm's weight, in x's dtype.
      mail: of at least M rows, `allocate`, whose axis they sum over; it is written to in place.
      eps: added to the mean square; static.
      num_out: rows of the norm's array, M when left out; those behind the first M hold anything; static.

    Returns:
      The sum [M, D] and its norm, in x's dtype, the same bits on all devices, and the mailboxes. Parts are summed in the
      order of the devices, in float32; where x is bfloat16, the lowest eight bits of a device's part are dropped before. The
      sum is rounded before it is normed.
    """
    plgpu, program = _mosaic()
    M, D = x_MD.shape
    vector_size = next(size for size in (4, 2, 1) if D % (WARPGROUP * size) == 0)
    vectors = D // (WARPGROUP * vector_size)
    warpgroups = next(count for count in range(MAX_WARPGROUPS, 0, -1) if vectors % count == 0)
    num_programs = min(M, NUM_PROGRAMS)
    words_ref, turn_ref = jax.new_ref(mail.words), jax.new_ref(mail.turn_R)
    sum_MD, out_ND = plgpu.kernel(
        functools.partial(program.exchange, eps=eps, vector_size=vector_size, num_programs=num_programs),
        out_type=tuple(jax.ShapeDtypeStruct((rows, D), x_MD.dtype) for rows in (M, num_out or M)),
        scratch_types={"squares_smem": plgpu.SMEM((2, warpgroups * WARPGROUP // WARP), jnp.float32)},
        grid=(num_programs,),
        grid_names=("program",),
        num_threads=warpgroups,
        thread_name="warpgroup",
        kernel_name="exchange_add_norm",
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane,
            unsafe_no_auto_barriers=True,  # the sum over a program's threads has the one that is needed
        ),
    )(x_MD, parts_PND, weight_D, mail.place_T2, words_ref, turn_ref)
    return sum_MD, out_ND, Mail(jax.freeze(words_ref), jax.freeze(turn_ref), mail.place_T2)
