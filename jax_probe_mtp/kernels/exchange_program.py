"""The programs of `exchange.py`, on the GPU: each computes some rows, and each of its warpgroups some columns of them."""

import functools
import itertools
from collections.abc import Sequence
from typing import Any

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
from jaxlib.mlir.dialects import llvm as llvm_dialect

from jax_probe_mtp.kernels.tiles import WARP, WARPGROUP

# Their types are those of the JAX at hand, and the kernels are for a later one.
arith: Any = arith_dialect
llvm: Any = llvm_dialect
plgpu: Any = mosaic_gpu
utils: Any = gpu_utils

TURN = 0xFF  # the bits of a word that show the turn
SCALAR = plgpu.Layout.WG_SPLAT(())


def find(words_ref: Any, address_ref: Any, *, axis: str) -> None:
    """Writes down where the words are on each device of the axis, int32 [T, 2]."""

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), plgpu.RefType()))
    def note(_: Any, far: Any, address: Any) -> None:
        far_pointer = llvm.ptrtoint(ir.IntegerType.get_signless(64), utils.memref_ptr(far))
        llvm.store(far_pointer, utils.memref_ptr(address))

    for t in range(address_ref.shape[0]):
        note(plgpu.remote_ref(words_ref, {axis: jnp.int32(t)}), address_ref.at[t])


def exchange(
    x_ref: Any,
    parts_ref: Any,
    weight_ref: Any,
    place_ref: Any,
    words_ref: Any,
    turn_ref: Any,
    sum_ref: Any,
    out_ref: Any,
    *,
    squares_smem: Any,
    eps: float,
    vector_size: int,
    num_programs: int,
) -> None:
    """Computes the program's rows, one after the other; each of its warpgroups takes some columns."""
    (M, D), (_, _, num_devices, num_words, _) = x_ref.shape, words_ref.shape
    program, warpgroup = (jax.lax.axis_index(name) for name in ("program", "warpgroup"))
    me = place_ref[num_devices, 0]
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
        for t, (j, word) in itertools.product(range(num_devices), enumerate(words)):
            first = (((m * 2 + slot) * num_devices + me) * num_words + j) * D + warpgroup * size
            _store_far(place_ref.at[t], first, me != t, word | flag, layout)
        _stop_if_elsewhere(place_ref.at[me], words_ref)
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


def _store_far(place_ref: Any, first: jax.Array, is_wanted: jax.Array, words: jax.Array, layout: Any) -> None:
    """Writes words [C] to another device's memory, such that each of them arrives whole, or writes nothing.

    Args:
      place_ref: int32 [2], the address of what lies there.
      first: int32, how many words of that come before these.
      is_wanted: bool, False for nothing.
      words: int32 [C].
      layout: of them.
    """

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), SCALAR, SCALAR, layout))
    def store(_: Any, place: Any, first: Any, is_wanted: Any, words: Any) -> None:
        size, int32 = words.layout.vec_size, ir.IntegerType.get_signless(32)
        base = llvm.inttoptr(llvm.PointerType.get(), _address(place))
        base = utils.getelementptr(base, [first.registers.item()], int32)
        for pointer, register in zip(_pointers(base, words.layout), words.registers.flat, strict=True):
            values = [vector.extract(register, [], [j]) for j in range(size)]
            text = f"st.relaxed.sys.global{_suffix(size)} [$0], {_names(1, size)};"
            utils.inline_ptx(text, pointer, *values, predicate=is_wanted.registers.item())

    store(place_ref, first, is_wanted, words)


def _stop_if_elsewhere(place_ref: Any, words_ref: Any) -> None:
    """Ends the program with an error where the words are not at their place: that is where others write."""

    @plgpu.inline_mgpu(arg_types=(plgpu.RefType(), plgpu.RefType()))
    def stop(_: Any, place: Any, words: Any) -> None:
        here = llvm.ptrtoint(ir.IntegerType.get_signless(64), utils.memref_ptr(words))
        text = "{ .reg .pred moved; setp.ne.b64 moved, $0, $1; @moved trap; }"
        utils.inline_ptx(text, here, _address(place), has_side_effects=True)

    stop(place_ref, words_ref)


def _load_when_here(ref: Any, flag: jax.Array, mask: jax.Array, layout: Any) -> list[jax.Array]:
    """Reads words [L, C] until all of them, in the bits of the mask, are equal to the flag."""
    num_words, size = ref.shape

    @plgpu.inline_mgpu(
        arg_types=(plgpu.RefType(), SCALAR, SCALAR),
        return_type=[plgpu.ShapeDtypeStruct((size,), jnp.int32, layout=layout)] * num_words,
    )
    def load(_: Any, ref: Any, flag: Any, mask: Any) -> list[Any]:
        own = layout.to_mgpu()
        pointers = [p for j in range(num_words) for p in _pointers(utils.memref_ptr(utils.memref_slice(ref, j)), own)]
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


def _address(place: Any) -> Any:
    return llvm.load(ir.IntegerType.get_signless(64), utils.memref_ptr(place))


def _pointers(base: Any, layout: Any) -> list[Any]:
    """Says where each of this thread's registers lies."""
    int32 = ir.IntegerType.get_signless(32)
    return [utils.getelementptr(base, [arith.index_cast(int32, index)], int32) for index in layout.linear_thread_idxs()]


def _suffix(size: int) -> str:
    return {1: ".b32", 2: ".v2.b32", 4: ".v4.b32"}[size]


def _names(first: int, size: int) -> str:
    names = ", ".join(f"${first + j}" for j in range(size))
    return f"{{{names}}}" if size > 1 else names
