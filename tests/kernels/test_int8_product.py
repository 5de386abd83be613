"""Products with weights of eight bits: the kernel as JAX operations against NumPy, and its lowering."""

import jax.numpy as jnp
import numpy as np
import pytest
from support.kernels import lowered_for_cuda

from jax_probe_mtp.kernels.int8_product import (
    MAX_ROWS,
    Tiles,
    choose_tiles,
    gated_product,
    is_supported,
    product_parts,
)
from jax_probe_mtp.model.params import Int8, dequantize


def made(M, D, I, seed):
    rng = np.random.default_rng(seed)
    x_MD = jnp.asarray(rng.normal(size=(M, D)), jnp.bfloat16)
    value_ID = jnp.asarray(rng.integers(-127, 128, size=(I, D)), jnp.int8)
    scale_I = jnp.asarray(rng.uniform(0.5, 2, size=I) / 500, jnp.float32)
    exact_MI = np.asarray(x_MD, np.float64) @ (np.asarray(value_ID, np.float64) * np.asarray(scale_I)[:, None]).T
    return x_MD, value_ID, scale_I, exact_MI


@pytest.mark.parametrize(
    ("D", "I", "tiles"), [(576, 192, None), (256, 64, Tiles(32, 4, 64, 4, 3)), (64, 96, Tiles(32, 1, 32, 4, 2))]
)
@pytest.mark.parametrize("M", [1, 16, 17, MAX_ROWS])
def test_the_product(M, D, I, tiles):
    x_MD, value_ID, scale_I, exact_MI = made(M, D, I, 0)
    parts = product_parts(x_MD, value_ID, scale_I, tiles=tiles, interpret=True)
    chosen = tiles or choose_tiles(D, I)
    assert parts.shape == (chosen.parts, M, I)
    assert parts.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(parts, np.float64).sum(axis=0), exact_MI, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("M", [1, 20])
def test_the_gated_product(M):
    x_MD, *gate, gate_MF = made(M, 128, 96, 1)
    _, *up, _ = made(M, 128, 96, 2)
    up_MF = np.asarray(x_MD, np.float64) @ np.asarray(dequantize(Int8(*up)), np.float64).T
    got = gated_product(x_MD, tuple(gate), tuple(up), interpret=True)
    assert (got.shape, got.dtype) == ((M, 96), jnp.bfloat16)
    expected = gate_MF / (1 + np.exp(-gate_MF)) * up_MF
    np.testing.assert_allclose(np.asarray(got, np.float64), expected, rtol=2**-8, atol=1e-4)  # rounded once


def test_tiles_are_those_that_were_measured():
    """Of Llama-3-8B, found on one H100; and the order of sums knows nothing of the number of rows."""
    assert choose_tiles(4096, 6144) == Tiles(64, 8, 128, 4, 3)
    assert choose_tiles(4096, 4096) == Tiles(64, 8, 128, 4, 3)
    assert choose_tiles(14336, 4096) == Tiles(64, 8, 128, 4, 3)
    assert choose_tiles(4096, 14336, num_weights=2) == Tiles(64, 1, 256, 4, 3)
    assert choose_tiles(576, 960) == Tiles(64, 3, 64, 4, 3)
    assert choose_tiles(100, 64) is None
    assert choose_tiles(64, 100) is None


def test_what_is_supported():
    value = jnp.zeros((64, 128), jnp.int8)
    assert is_supported(MAX_ROWS, jnp.bfloat16, value, value)
    assert not is_supported(MAX_ROWS + 1, jnp.bfloat16, value)
    assert not is_supported(1, jnp.float32, value)
    assert not is_supported(1, jnp.bfloat16, value, jnp.zeros((64, 100), jnp.int8))


def test_it_becomes_one_kernel_that_reads_eight_bits():
    x_MD, value, scale = jnp.zeros((30, 128), jnp.bfloat16), jnp.zeros((64, 128), jnp.int8), jnp.zeros(64, jnp.float32)
    for program, args in (
        (product_parts, (x_MD, value, scale)),
        (gated_product, (x_MD, (value, scale), (value, scale))),
    ):
        text = lowered_for_cuda(program, *args)
        assert text.count("__gpu$xla.gpu.triton") == 1
        assert "stablehlo.convert" not in text  # no copy of the weight is made before it
