"""Products with weights of eight bits: rounding by hand, the kernel as JAX operations against NumPy, and its lowering."""

import jax.numpy as jnp
import numpy as np
import pytest
from support.kernels import lowered_for_cuda

from jax_probe_mtp.kernels.int8_product import (
    MAX_ROWS,
    Tiles,
    choose_tiles,
    dequantize,
    gated_product,
    is_supported,
    product_parts,
    quantize,
)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_rounding_by_hand(dtype):
    """Columns: the largest is 127, so a step is 1; negative, so a step is 2; zeros."""
    weight_IO = jnp.asarray([[127, -254, 0], [0.5, 3, 0], [-1.5, 0.75, 0]], dtype)
    value_OI, scale_O = quantize(weight_IO)
    np.testing.assert_array_equal(value_OI, [[127, 0, -2], [-127, 2, 0], [0, 0, 0]])  # halves go to the even one
    np.testing.assert_array_equal(scale_O, [1, 2, 1])
    assert (value_OI.dtype, scale_O.dtype) == (jnp.int8, jnp.float32)
    np.testing.assert_array_equal(dequantize(value_OI, scale_O), [[127, -254, 0], [0, 4, 0], [-2, 0, 0]])


def test_every_weight_is_within_half_a_step():
    rng = np.random.default_rng(0)
    weight_IO = (rng.normal(size=(300, 40)) * 10.0 ** rng.integers(-20, 20, size=40)).astype(np.float32)
    value_OI, scale_O = quantize(jnp.asarray(weight_IO))
    step_O = np.abs(weight_IO).max(axis=0).astype(np.float64) / 127
    error_IO = np.abs(np.asarray(value_OI, np.float64).T * np.asarray(scale_O, np.float64) - weight_IO)
    assert (error_IO <= 0.50001 * step_O).all()
    assert (np.abs(np.asarray(value_OI, np.int32)).max(axis=1) == 127).all()


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
    up_MF = np.asarray(x_MD, np.float64) @ np.asarray(dequantize(*up), np.float64)
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
