"""Products with weights of eight bits: the kernel as JAX operations against NumPy, and its lowering."""

import functools

import jax.numpy as jnp
import numpy as np
import pytest
from support.kernels import int8_case, lowered_for_cuda

from jax_probe_mtp.kernels import int8_product, int8_triton
from jax_probe_mtp.kernels.int8_triton import MAX_ROWS, Tiles, choose_tiles
from jax_probe_mtp.model.params import Int8, dequantize

product_parts = functools.partial(int8_product.product_parts, kernels=int8_triton)
gated_product = functools.partial(int8_product.gated_product, kernels=int8_triton)


@pytest.mark.parametrize(
    ("D", "I", "tiles"), [(576, 192, None), (256, 64, Tiles(32, 4, 64, 4, 3)), (64, 96, Tiles(32, 1, 32, 4, 2))]
)
@pytest.mark.parametrize("M", [1, 16, 17, MAX_ROWS])
def test_the_product(M, D, I, tiles):
    x_MD, value_ID, scale_I, exact_MI = int8_case(M, D, I, 0)
    parts = product_parts(x_MD, (value_ID, scale_I), tiles=tiles, interpret=True)
    chosen = tiles or choose_tiles(D, I)
    assert parts.shape == (chosen.parts, M, I)
    assert parts.dtype == jnp.float32
    np.testing.assert_allclose(np.asarray(parts, np.float64).sum(axis=0), exact_MI, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("M", [1, 20])
def test_the_gated_product(M):
    x_MD, *gate, gate_MF = int8_case(M, 128, 96, 1)
    _, *up, _ = int8_case(M, 128, 96, 2)
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


def test_it_becomes_one_kernel_that_reads_eight_bits():
    x_MD, value, scale = jnp.zeros((30, 128), jnp.bfloat16), jnp.zeros((64, 128), jnp.int8), jnp.zeros(64, jnp.float32)
    for program, args in (
        (product_parts, (x_MD, (value, scale))),
        (gated_product, (x_MD, (value, scale), (value, scale))),
    ):
        text = lowered_for_cuda(program, *args)
        assert text.count("__gpu$xla.gpu.triton") == 1
        assert "stablehlo.convert" not in text  # no copy of the weight is made before it
