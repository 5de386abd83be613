"""The small GPU kernels, run as JAX operations on the CPU, against NumPy; and that they lower for a GPU."""

import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.kernels import lowered_for_cuda

from jax_probe_mtp.kernels import copy_rows, product
from jax_probe_mtp.kernels.add_norm import add_norm
from jax_probe_mtp.kernels.product import Tiles, choose_tiles, gated_product, product_parts
from jax_probe_mtp.kernels.split_qkv import split_qkv
from jax_probe_mtp.kernels.tiles import NUM_PROCESSORS
from jax_probe_mtp.model.cache import KVCache, keep_path


@pytest.mark.parametrize("arrays_a_kernel", [128, 2])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rows_are_copied_and_nothing_else_changes(monkeypatch, dtype, arrays_a_kernel):
    """The last batch row's target lies among the rows that are copied, as when a cache is full."""
    monkeypatch.setattr(copy_rows, "ARRAYS_A_KERNEL", arrays_a_kernel)
    rng = np.random.default_rng(0)
    slots = [jnp.asarray(rng.normal(size=(3, 2, 24, 16)), dtype) for _ in range(5)]
    row_BP = np.array([[16, 18, 18], [16, 23, 20], [16, 17, 19]])
    target_B = np.array([0, 7, 15])
    got = copy_rows.copy_rows(slots, jnp.asarray(row_BP), jnp.asarray(target_B), interpret=True)
    for before, after in zip(slots, got, strict=True):
        expected = np.array(before)
        for b, p in np.ndindex(3, 3):
            expected[b, :, target_B[b] + p] = np.asarray(before)[b, :, row_BP[b, p]]
        np.testing.assert_array_equal(after, expected)


def test_the_path_is_kept_by_one_kernel_on_a_gpu():
    arrays = tuple(jnp.zeros((1, 2, 40, 64), jnp.bfloat16) for _ in range(3))
    cache = KVCache(k=arrays, v=arrays, capacity=30)
    program = lowered_for_cuda(keep_path, cache, jnp.zeros((1, 2), jnp.int32), jnp.zeros(1, jnp.int32))
    assert program.count("__gpu$xla.gpu.triton") == 1
    assert "output_operand_aliases = [#" in program  # in place
    assert "dynamic_update_slice" not in program


def as64(x):
    return np.asarray(x, np.float64)


def relative_error(got, want):
    """Of all numbers together; bfloat16 rounds each by 2^-9 at most."""
    return np.linalg.norm(as64(got) - want) / np.linalg.norm(want)


@pytest.mark.parametrize("P", [1, 3])
@pytest.mark.parametrize("D", [64, 576])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_stream_and_its_norm(D, dtype, P):
    rng = np.random.default_rng(D + P)
    x_MD, weight_D = jnp.asarray(3 * rng.normal(size=(5, D)), dtype), jnp.asarray(3 * rng.normal(size=D), dtype)
    parts_PMD = jnp.asarray(rng.normal(size=(P, 5, D)), jnp.float32)
    added, got = add_norm(x_MD, parts_PMD, weight_D, eps=1e-2, interpret=True)
    want = as64(x_MD) + as64(parts_PMD).sum(0)
    assert added.dtype == got.dtype == dtype
    tolerance = 1e-6 if dtype == jnp.float32 else 2**-7
    np.testing.assert_allclose(as64(added), want, rtol=tolerance, atol=tolerance)
    x = as64(added)  # the norm is of what was rounded
    want = as64(weight_D) * x / np.sqrt(np.mean(x * x, axis=1, keepdims=True) + 1e-2)
    np.testing.assert_allclose(as64(got), want, rtol=tolerance)


QKV = {
    "one part, whole rows": {"P": 1, "T": 8},
    "three parts, a row over": {"P": 3, "T": 9},
    "a row of each text at its own slot": {"P": 2, "T": 1, "start": [3, 19]},
    "biases": {"P": 1, "T": 5, "has_bias": True},
    "norms": {"P": 2, "T": 5, "has_norm": True},
    "both, one query a key": {"P": 2, "T": 3, "G": 1, "has_bias": True, "has_norm": True},
}


@pytest.mark.parametrize("name", QKV)
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_queries_keys_and_values(name, dtype):
    """The block ends where the cache ends; every slot that is not its own keeps its bits."""
    case = {"G": 3, "start": None, "has_bias": False, "has_norm": False} | QKV[name]
    B, K, h, S, T, G = 2, 2, 16, 24, case["T"], case["G"]
    rng = np.random.default_rng(0)
    parts = rng.normal(size=(case["P"], B, T, K, G + 2, h)).astype(np.float32)
    bias = jnp.asarray(rng.normal(size=(K, G + 2, h)), dtype) if case["has_bias"] else None
    norms = tuple(jnp.asarray(1 + rng.normal(size=h), dtype) for _ in range(2)) if case["has_norm"] else None
    angle = rng.uniform(0, 7, size=(B, T, h // 2)).astype(np.float32)
    k, v = (jnp.asarray(rng.normal(size=(B, K, S, h)), dtype) for _ in range(2))
    start = case["start"] or [S - T] * B
    q_BKGTh, k_BKSh, v_BKSh = split_qkv(
        jnp.asarray(parts), bias, norms, (jnp.cos(angle), jnp.sin(angle)), k, v, jnp.asarray(start), eps=1e-3,
        interpret=True,
    )  # fmt: skip
    assert q_BKGTh.dtype == k_BKSh.dtype == v_BKSh.dtype == dtype
    want_q, want_k, want_v = np.zeros(q_BKGTh.shape), as64(k), as64(v)
    total = as64(parts).sum(0) + (0 if bias is None else as64(bias))
    for b, t, kv, i in np.ndindex(B, T, K, G + 2):
        x = total[b, t, kv, i]
        if norms is not None and i <= G:
            x = as64(norms[int(i == G)]) * x / np.sqrt(np.mean(x * x) + 1e-3)
        turned = (x[: h // 2] + 1j * x[h // 2 :]) * np.exp(1j * as64(angle[b, t]))  # a pair is a complex number
        y = x if i == G + 1 else np.concatenate([turned.real, turned.imag])
        if i < G:
            want_q[b, kv, i, t] = y
        else:
            (want_k if i == G else want_v)[b, kv, start[b] + t] = y
    tolerance = 2e-6 if dtype == jnp.float32 else 2**-8
    for got, want in ((q_BKGTh, want_q), (k_BKSh, want_k), (v_BKSh, want_v)):
        np.testing.assert_allclose(as64(got), want, rtol=tolerance, atol=3 * tolerance)
    for got, before in ((k_BKSh, k), (v_BKSh, v)):
        for b in range(B):
            others = np.delete(np.arange(S), np.arange(start[b], start[b] + T))
            np.testing.assert_array_equal(as64(got)[b][:, others], as64(before)[b][:, others])


def normal(seed, *shape, dtype=jnp.bfloat16):
    return jnp.asarray(np.random.default_rng(seed).normal(size=shape), dtype)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("M", [1, 16, 30, 64, 128])
@pytest.mark.parametrize("tiles", [None, Tiles(32, 4, 4, 4), Tiles(64, 1, 4, 2)], ids=["by choice", "parts", "whole"])
def test_the_parts_of_a_product(M, tiles, dtype):
    x_MD, weight_DI = normal(0, M, 256, dtype=dtype), normal(1, 256, 192, dtype=dtype)
    parts = product_parts(x_MD, weight_DI, tiles=tiles, interpret=True)
    assert parts.dtype == jnp.float32
    assert parts.shape == ((tiles or choose_tiles(256, 192, dtype=dtype)).parts, M, 192)
    step = 256 // parts.shape[0]
    for p, part in enumerate(parts):  # each is the sum over its own rows of the weight
        rows = slice(p * step, (p + 1) * step)
        assert relative_error(part, as64(x_MD)[:, rows] @ as64(weight_DI)[rows]) < 1e-6


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("M", [1, 30, 64, 100])
def test_the_gated_product(M, dtype):
    x_MD, gate_DF, up_DF = (normal(i, *shape, dtype=dtype) for i, shape in enumerate([(M, 128), (128, 96), (128, 96)]))
    got = gated_product(x_MD, gate_DF / 8, up_DF / 8, interpret=True)
    gate, up = as64(x_MD) @ as64(gate_DF / 8), as64(x_MD) @ as64(up_DF / 8)
    assert got.dtype == dtype
    assert relative_error(got, gate / (1 + np.exp(-gate)) * up) < (1e-6 if dtype == jnp.float32 else 2**-8)


@pytest.mark.parametrize("M", [1, 30, 70])
def test_the_head_in_float32(M):
    x_MD, head_VD = normal(5, M, 128, dtype=jnp.float32), normal(6, 96, 128, dtype=jnp.float32)
    assert relative_error(product.head_product(x_MD, head_VD, interpret=True), as64(x_MD) @ as64(head_VD).T) < 1e-6


def test_which_products_there_are_kernels_for():
    def takes(rows, *shape, dtype=jnp.bfloat16):
        return product.is_supported(rows, dtype, jax.ShapeDtypeStruct(shape, dtype))

    assert takes(1, 4096, 6144)
    assert takes(64, 4096, 14336)
    assert not takes(65, 4096, 6144)
    assert [takes(rows, 576, 1536) for rows in (1, 128, 129)] == [True, True, False]  # small ones take more rows
    assert not takes(65, 2048, 1024)
    assert not product.is_supported(
        65, jnp.bfloat16, *(jax.ShapeDtypeStruct((576, n), jnp.bfloat16) for n in (1536, 3072))
    )
    assert not takes(65, 576, 1536, dtype=jnp.float32)
    assert not takes(1, 4096 + 32, 6144)  # the summed axis is read 64 rows at a time
    assert not takes(1, 4096, 6144 + 16)
    assert takes(1, 512 + 32, 768 + 16, dtype=jnp.float32)  # half as many, and narrower tiles
    assert [takes(rows, 4864, 896, dtype=jnp.float32) for rows in (1, 32, 64, 65)] == [True, True, True, False]
    assert [takes(rows, 4096, 4096, dtype=jnp.float32) for rows in (1, 2, 32, 33)] == [False, True, True, False]
    assert not takes(1, 4096, 6144, dtype=jnp.float16)
    assert not product.is_supported(1, jnp.float32, jax.ShapeDtypeStruct((4096, 6144), jnp.bfloat16))


@pytest.mark.parametrize(
    ("shape", "num_weights", "programs"),
    [((4096, 6144), 1, 96), ((4096, 4096), 1, 128), ((14336, 4096), 1, 128), ((4096, 14336), 2, 112)],
    ids=["qkv", "out", "down", "gate and up"],
)
def test_the_tiles_of_an_8b_layer_fill_the_gpu_once(shape, num_weights, programs):
    tiles = choose_tiles(*shape, num_weights=num_weights)
    assert tiles.columns == 128
    assert shape[1] // tiles.columns * tiles.parts == programs <= NUM_PROCESSORS
    assert shape[0] % (tiles.parts * tiles.step) == 0
    assert num_weights == 1 or tiles.parts == 1


@pytest.mark.parametrize(
    ("shape", "parts"),
    [((4096, 5120), 2), ((12800, 5120), 2), ((8192, 5120), 2), ((8192, 2560), 4), ((8192, 1280), 8)],
    ids=["32B: out of two", "32B: down of two", "70B: qkv of two", "70B: qkv of four", "70B: qkv of eight"],
)
def test_80_programs_of_wide_tiles_are_faster_than_more_of_narrow_ones(shape, parts):
    tiles = choose_tiles(*shape)  # 120 or 160 programs would need parts that do not divide the sums, or narrow tiles
    assert tiles[:2] == (128, parts)
    assert shape[1] // tiles.columns * tiles.parts == 80
    assert tiles.num_stages == 6  # fewer programs load more ahead
    assert choose_tiles(2048, 11008, num_weights=2)[:2] == (64, 1)  # not 86 programs, which were not measured


def test_narrow_weights_get_narrow_tiles():
    assert choose_tiles(576, 960)[:2] == (32, 3)  # 9 steps: 3 divides them, and 30 tiles by 4 would be 120
    assert choose_tiles(1024, 3072, num_weights=2)[:2] == (32, 1)


@pytest.mark.parametrize(
    ("shape", "num_weights", "tiles"),
    [((896, 4864), 2, (64, 1)), ((896, 896), 1, (64, 7)), ((1536, 576), 1, (32, 6)), ((4096, 14336), 2, (128, 1))],
    ids=["0.5B: gate and up", "0.5B: out", "135M: down", "8B: gate and up"],
)
def test_float32_tiles_are_as_wide_as_leaves_a_program_for_every_second_processor(shape, num_weights, tiles):
    """The widths that were the fastest on one H200 (docs/results/performance/README.md)."""
    assert choose_tiles(*shape, num_weights=num_weights, dtype=jnp.float32)[:2] == tiles


def test_float32_is_multiplied_in_full():
    """Left to themselves, a GPU's matrix units keep 10 bits of 23."""
    x, weight = (jax.ShapeDtypeStruct(shape, jnp.float32) for shape in ((30, 4096), (4096, 6144)))
    precisions = re.findall(r"\bprecision=(.*)", str(jax.make_jaxpr(product_parts)(x, weight)))
    assert precisions == ["(Precision.HIGHEST, Precision.HIGHEST)"]


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_products_and_norms_lower_for_a_gpu(dtype):
    arrays = [jax.ShapeDtypeStruct(s, dtype) for s in ((30, 4096), (4096, 6144), (4096, 14336), (4096,))]
    x, weight, gate, norm = arrays
    parts = jax.ShapeDtypeStruct((4, 30, 4096), jnp.float32)
    for function, *args in (
        (product_parts, x, weight),
        (gated_product, x, gate, gate),
        (lambda x, parts, norm: add_norm(x, parts, norm, eps=1e-5), x, parts, norm),
    ):
        assert lowered_for_cuda(function, *args).count("__gpu$xla.gpu.triton") == 1


LOWER = """
import jax.numpy as jnp
from support.kernels import lowered_for_cuda
from jax_probe_mtp.kernels.add_norm import add_norm
args = jnp.ones((2, 128)), jnp.ones((1, 2, 128)), jnp.ones(128)
assert "triton" in lowered_for_cuda(lambda *args: add_norm(*args, eps=1e-5), *args)
"""


@pytest.mark.skipif(jax.__version_info__ < (0, 12), reason="JAX warns of its Triton backend from 0.12 on")
def test_that_the_backend_is_to_go_is_not_said_at_every_kernel():
    command = [sys.executable, "-W", "error:The Pallas Triton backend:DeprecationWarning", "-c", LOWER]
    env = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr
