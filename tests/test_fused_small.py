"""The small GPU kernels, run as JAX operations on the CPU, against NumPy; and that they lower for a GPU."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_probe_mtp import fused_keep
from jax_probe_mtp.cache import KVCache, keep_path
from jax_probe_mtp.fused_norm import norm_row

H200 = jax.sharding.AbstractDevice(device_kind="NVIDIA H200", num_cores=132, platform="gpu")


def lowered_for_cuda(function, *args):
    with jax.sharding.use_abstract_mesh(jax.sharding.AbstractMesh((1,), ("x",), abstract_device=H200)):
        return jax.jit(function).trace(*args).lower(lowering_platforms=("cuda",)).as_text()


@pytest.mark.parametrize("arrays_a_kernel", [128, 2])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rows_are_copied_and_nothing_else_changes(monkeypatch, dtype, arrays_a_kernel):
    """The last batch row's target lies among the rows that are copied, as when a cache is full."""
    monkeypatch.setattr(fused_keep, "ARRAYS_A_KERNEL", arrays_a_kernel)
    rng = np.random.default_rng(0)
    slots = [jnp.asarray(rng.normal(size=(3, 2, 24, 16)), dtype) for _ in range(5)]
    row_BP = np.array([[16, 18, 18], [16, 23, 20], [16, 17, 19]])
    target_B = np.array([0, 7, 15])
    got = fused_keep.copy_rows(slots, jnp.asarray(row_BP), jnp.asarray(target_B), interpret=True)
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


@pytest.mark.parametrize("D", [64, 576])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_the_norm_of_a_row(D, dtype):
    rng = np.random.default_rng(D)
    x_D, weight_D = (jnp.asarray(3 * rng.normal(size=D), dtype) for _ in range(2))
    x = np.asarray(x_D, np.float64)
    expected = np.asarray(weight_D, np.float64) * x / np.sqrt(np.mean(x * x) + 1e-2)
    copy, got = norm_row(x_D, weight_D, eps=1e-2, interpret=True)
    np.testing.assert_array_equal(copy, x_D)
    assert got.dtype == dtype
    np.testing.assert_allclose(np.asarray(got, np.float64), expected, rtol=1e-6 if dtype == jnp.float32 else 2**-7)


def test_the_norm_lowers_for_a_gpu():
    args = jnp.zeros(4096, jnp.bfloat16), jnp.zeros(4096, jnp.bfloat16)
    assert "__gpu$xla.gpu.triton" in lowered_for_cuda(lambda x, weight: norm_row(x, weight, eps=1e-5), *args)
