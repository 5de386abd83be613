"""Sums what devices hold, adds it to the residual stream and norms that, in one GPU kernel (Pallas, Mosaic GPU).

Each device writes its part into the mailboxes of the others, in their memory, and reads theirs from its own:

    device 0 | writes part 0 -> mail of 1 | waits for its mail | x + (part 0 + part 1), its norm
    device 1 | writes part 1 -> mail of 0 | waits for its mail | x + (part 0 + part 1), its norm

A word of mail is 32 bits, which arrive together: up to 24 of a number and, in the lowest eight, the turn. So whoever waits
reads the words until all show the turn that it waits for, and nothing else says that a part has come (the way of NCCL's
protocol LL). Turns use two slots, one after the other. A device writes into a slot again two turns later: then it has had
the others' parts of the turn between, which they sent after they had read those of the turn before.

The mailboxes must stay where they are, since others write there: a kernel takes them from the one before it and gives them
to the next, and nothing else may read them, or XLA makes a copy. Before the first turn every device must know that those
of the others are there; the sum of the embeddings (`transformer.embed`), by which each call begins, sees to that.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import pallas as pl
from jax.experimental.mosaic import gpu as mgpu
from jax.experimental.mosaic.gpu import utils as gpu_utils
from jax.experimental.pallas import mosaic_gpu
from jaxlib.mlir import ir
from jaxlib.mlir.dialects import arith as arith_dialect
from jaxlib.mlir.dialects import gpu, memref, vector

# Their types are those of the JAX at hand, and the kernel is for a later one.
arith: Any = arith_dialect
plgpu: Any = mosaic_gpu
utils: Any = gpu_utils

MAX_ROWS, MAX_WIDTH = 512, 16384
# At a time, each on a processor of its own: one that waits must not keep the one that it waits for from running.
NUM_PROGRAMS = 128
MAX_WARPGROUPS = 4  # of a program
TURN = 0xFF  # the bits of a word that show the turn
WARP, WARPGROUP = 32, 128  # threads
SCALAR = plgpu.Layout.WG_SPLAT(())
# JAX 0.11.2 is the first whose programs run such a kernel without a barrier over the devices before it; 0.12 has not run it.
CAN_LOWER = "skip_device_barrier" in {
    field.name for field in dataclasses.fields(plgpu.CompilerParams)
} and jax.__version_info__ < (0, 12)


class Mail(NamedTuple):
    """A device's mailboxes.

    Attributes:
      words: int32 [R, 2, T, L, D], for each row two slots of what each of T devices sent: L words a number.
      turn_R: int32 [R], the row's turns so far, the same on all devices.
    """

    words: jax.Array
    turn_R: jax.Array


def allocate(num_rows: int, width: int, num_devices: int, dtype: Any) -> Mail:
    """Makes empty mailboxes for R rows of D numbers from T devices, in a model of this dtype."""
    num_words = 1 if dtype == jnp.bfloat16 else 2
    words = jnp.zeros((num_rows, 2, num_devices, num_words, width), jnp.int32)
    return Mail(words, jnp.zeros(num_rows, jnp.int32))


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
    x_MD: jax.Array, parts_PND: jax.Array, weight_D: jax.Array, mail: Mail, *, axis: str, eps: float, num_out: int = 0
) -> tuple[jax.Array, jax.Array, Mail]:
    """Sums the parts of all devices, adds that to x, and norms it, under `jax.shard_map`.

    Args:
      x_MD: the residual stream of M rows, the same on all devices; bfloat16 or float32.
      parts_PND: P parts of what this device adds to it; bfloat16 or float32; the first M of N rows are.
      weight_D: the norm's weight, in x's dtype.
      mail: of at least M rows, `allocate`; it is written to in place.
      axis: of the mesh, whose devices take part; static.
      eps: added to the mean square; static.
      num_out: rows of the norm's array, M when left out; those behind the first M hold anything; static.

    Returns:
      The sum [M, D] and its norm, in x's dtype, the same bits on all devices, and the mailboxes. Parts are summed in the
      order of the devices, in float32; where x is bfloat16, the lowest eight bits of a device's part are dropped before. The
      sum is rounded before it is normed.
    """
    M, D = x_MD.shape
    vector_size = next(size for size in (4, 2, 1) if D % (WARPGROUP * size) == 0)
    vectors = D // (WARPGROUP * vector_size)
    warpgroups = next(count for count in range(MAX_WARPGROUPS, 0, -1) if vectors % count == 0)
    num_programs = min(M, NUM_PROGRAMS)
    words_ref, turn_ref = jax.new_ref(mail.words), jax.new_ref(mail.turn_R)
    sum_MD, out_ND = plgpu.kernel(
        functools.partial(_kernel, axis=axis, eps=eps, vector_size=vector_size, num_programs=num_programs),
        out_type=tuple(jax.ShapeDtypeStruct((rows, D), x_MD.dtype) for rows in (M, num_out or M)),
        scratch_types={"squares_smem": plgpu.SMEM((2, warpgroups * WARPGROUP // WARP), jnp.float32)},
        grid=(num_programs,),
        grid_names=("program",),
        num_threads=warpgroups,
        thread_name="warpgroup",
        kernel_name="exchange_add_norm",
        compiler_params=plgpu.CompilerParams(
            lowering_semantics=plgpu.LoweringSemantics.Lane,
            unsafe_no_auto_barriers=True,  # `_sum_all` has the one that is needed
            skip_device_barrier=True,
        ),
    )(x_MD, parts_PND, weight_D, words_ref, turn_ref)
    return sum_MD, out_ND, Mail(jax.freeze(words_ref), jax.freeze(turn_ref))


def _kernel(
    x_ref: Any,
    parts_ref: Any,
    weight_ref: Any,
    words_ref: Any,
    turn_ref: Any,
    sum_ref: Any,
    out_ref: Any,
    *,
    squares_smem: Any,
    axis: str,
    eps: float,
    vector_size: int,
    num_programs: int,
) -> None:
    """Computes the program's rows, one after the other; each of its warpgroups takes some columns."""
    (M, D), (_, _, num_devices, num_words, _) = x_ref.shape, words_ref.shape
    program, warpgroup, me = (jax.lax.axis_index(name) for name in ("program", "warpgroup", axis))
    size = D // (squares_smem.shape[1] * WARP // WARPGROUP)
    columns = pl.ds(warpgroup * size, size)
    layout = plgpu.Layout.WG_STRIDED((size,), vector_size)

    def load(ref: Any) -> jax.Array:
        loaded: jax.Array = plgpu.load(ref, layout=layout, optimized=False)
        return loaded

    def run(m: jax.Array, i: jax.Array) -> None:
        turn = turn_ref[m] + 1
        flag, slot = turn & TURN, turn & 1
        parts = [load(parts_ref.at[p, m, columns]).astype(jnp.float32) for p in range(len(parts_ref))]
        x, weight = load(x_ref.at[m, columns]), load(weight_ref.at[columns])  # before it waits
        words = _as_words(functools.reduce(jnp.add, parts), num_words)
        for t in range(num_devices):

            @pl.when(me != t)
            def _send(t: int = t) -> None:
                for j, word in enumerate(words):
                    box = words_ref.at[m, slot, me, j, columns]
                    _store(plgpu.remote_ref(box, {axis: jnp.int32(t)}), word | flag, layout)

        received = []
        for t in range(num_devices):
            is_mine = me == t  # which no one sends: its words hold anything
            arrived = _load_when_here(words_ref.at[m, slot, t, :, columns], flag, jnp.where(is_mine, 0, TURN), layout)
            arrived = [jnp.where(is_mine, own, other) for own, other in zip(words, arrived, strict=True)]
            received.append(_as_numbers(arrived))
        x = (x.astype(jnp.float32) + functools.reduce(jnp.add, received)).astype(x.dtype)
        sum_ref[m, columns] = x
        x32 = x.astype(jnp.float32)
        square = _sum_all(x32 * x32, squares_smem.at[i & 1], layout)
        turn_ref[m] = turn  # all threads have read it: they met in the sum
        out_ref[m, columns] = weight * (x32 * jax.lax.rsqrt(square / D + eps)).astype(x.dtype)

    def run_next(i: jax.Array, _: tuple[()]) -> tuple[()]:
        run(program + i * num_programs, i)
        return ()

    if num_programs == M:
        run(program, jnp.int32(0))
    else:
        jax.lax.fori_loop(0, (M - program + num_programs - 1) // num_programs, run_next, ())


def _as_words(numbers: jax.Array, num_words: int) -> list[jax.Array]:
    """Cuts float32 numbers into words whose lowest bits are free: one, of the upper 24 bits, or two of 16 bits each."""
    bits = jax.lax.bitcast_convert_type(numbers, jnp.int32)
    return [bits & ~TURN] if num_words == 1 else [bits & ~0xFFFF, bits << 16]


def _as_numbers(words: Sequence[jax.Array]) -> jax.Array:
    """Makes the numbers of `_as_words` again, whatever the lowest bits hold."""
    if len(words) == 1:
        bits = words[0] & ~TURN
    else:
        bits = (words[0] & ~0xFFFF) | jax.lax.shift_right_logical(words[1], jnp.full_like(words[1], 16))
    return jax.lax.bitcast_convert_type(bits, jnp.float32)


# What follows is written for each thread: JAX has neither loads and stores of memory that others write meanwhile, nor sums
# over several warpgroups.


def _store(ref: Any, words: jax.Array, layout: Any) -> None:
    """Writes words [C] to another device's memory, such that each of them arrives whole."""

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), layout))
    def store(_: Any, ref: Any, words: Any) -> None:
        size = words.layout.vec_size
        for pointer, register in zip(_pointers(ref, words.layout), words.registers.flat, strict=True):
            values = [vector.extract(register, [], [j]) for j in range(size)]
            text = f"st.relaxed.sys.global{_suffix(size)} [$0], {_names(1, size)};"
            utils.inline_ptx(text, pointer, *values, has_side_effects=True)

    store(ref, words)


def _load_when_here(ref: Any, flag: jax.Array, mask: jax.Array, layout: Any) -> list[jax.Array]:
    """Reads words [L, C] until all of them, in the bits of the mask, are equal to the flag."""
    num_words, size = ref.shape

    @plgpu.inline_mgpu(
        arg_types=(plgpu.RefType(), SCALAR, SCALAR),
        return_type=[plgpu.ShapeDtypeStruct((size,), jnp.int32, layout=layout)] * num_words,
    )
    def load(_: Any, ref: Any, flag: Any, mask: Any) -> list[Any]:
        own = layout.to_mgpu()
        pointers = [p for j in range(num_words) for p in _pointers(utils.memref_slice(ref, j), own)]
        width, count = own.vec_size, len(pointers)
        num_values = width * count
        lines = ["{", ".reg .pred again;", ".reg .b32 one, all;", "WAIT:", "mov.b32 all, 0;"]
        for k in range(count):
            lines.append(f"ld.relaxed.sys.global{_suffix(width)} {_names(k * width, width)}, [${num_values + k}];")
        for k in range(num_values):
            lines += [f"xor.b32 one, ${k}, ${num_values + count};", "or.b32 all, all, one;"]
        lines += [
            f"and.b32 all, all, ${num_values + count + 1};",
            "setp.ne.b32 again, all, 0;",
            "@again bra WAIT;",
            "}",
        ]
        int32 = ir.IntegerType.get_signless(32)
        values = utils.inline_ptx(
            "\n".join(lines),
            *pointers,
            flag.registers.item(),
            mask.registers.item(),
            result_types=[int32] * num_values,
            has_side_effects=True,
        )
        kind = ir.VectorType.get((width,), int32)
        registers = [vector.from_elements(kind, values[k * width : (k + 1) * width]) for k in range(count)]
        rows = np.array(registers, dtype=object).reshape(num_words, -1)
        return [mgpu.FragmentedArray(_registers=row, _layout=own, _is_signed=True) for row in rows]

    words: list[jax.Array] = load(ref, flag, mask)
    return words


def _sum_all(x_C: jax.Array, sums_smem: Any, layout: Any) -> jax.Array:
    """Sums what all threads of the program hold, by way of float32 [W], a number for each warp; all threads meet here."""

    @plgpu.inline_mgpu(
        arg_types=(layout, plgpu.RefType()), return_type=plgpu.ShapeDtypeStruct((), jnp.float32, layout=SCALAR)
    )
    def add(_: Any, x: Any, ref: Any) -> Any:
        float32, index = ir.F32Type.get(), ir.IndexType.get()
        own = [vector.reduction(float32, vector.CombiningKind.ADD, register) for register in x.registers.flat]
        total = functools.reduce(arith.addf, own)
        for distance in (16, 8, 4, 2, 1):
            total = arith.addf(total, utils.shfl_bfly(total, distance))
        warp = arith.divui(gpu.thread_id(gpu.Dimension.x), arith.constant(index, WARP))
        memref.store(total, ref, [warp])
        gpu.barrier()
        of_warps = [memref.load(ref, [arith.constant(index, w)]) for w in range(ref.type.shape[0])]
        return mgpu.FragmentedArray.splat(functools.reduce(arith.addf, of_warps), shape=())

    total: jax.Array = add(x_C, sums_smem)
    return total


def _pointers(ref: Any, layout: Any) -> list[Any]:
    """Says where each of this thread's registers lies."""
    int32 = ir.IntegerType.get_signless(32)
    base = utils.memref_ptr(ref)
    return [utils.getelementptr(base, [arith.index_cast(int32, index)], int32) for index in layout.linear_thread_idxs()]


def _suffix(size: int) -> str:
    return {1: ".b32", 2: ".v2.b32", 4: ".v4.b32"}[size]


def _names(first: int, size: int) -> str:
    names = ", ".join(f"${first + j}" for j in range(size))
    return f"{{{names}}}" if size > 1 else names
