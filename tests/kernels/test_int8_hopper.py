"""Hopper's products with weights of eight bits: the kernel as JAX operations against NumPy, and its lowering."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental.pallas import mosaic_gpu as plgpu
from support.kernels import int8_case, lowered_for_cuda

from jax_probe_mtp.kernels import int8_hopper, int8_product, int8_triton
from jax_probe_mtp.kernels.int8_hopper import MAX_ROWS, Tiles, choose_tiles
from jax_probe_mtp.model.params import Int8, dequantize

pytestmark = pytest.mark.skipif(
    jax.__version_info__ >= (0, 12), reason="JAX 0.12 refuses its loads of scales, and Triton's kernels run instead"
)
product_parts = functools.partial(int8_product.product_parts, kernels=int8_hopper)
gated_product = functools.partial(int8_product.gated_product, kernels=int8_hopper)
CAN_INTERPRET = hasattr(plgpu, "InterpretGPUParams")
interpreted = pytest.mark.skipif(not CAN_INTERPRET, reason="JAX interprets such kernels from 0.11 on")


@pytest.fixture
def _few_processors(monkeypatch):
    """Has programs compute several units, which the tests' weights are too narrow for."""
    monkeypatch.setattr(int8_hopper, "NUM_PROCESSORS", 3)


@interpreted
@pytest.mark.usefixtures("_few_processors")
@pytest.mark.parametrize(
    ("D", "I", "tiles"),
    [
        (192, 128, Tiles(1, 1, 64, 3)),  # 6 units, 3 programs of 2
        (256, 256, Tiles(2, 1, 128, 2)),  # 4 units: one program has 2
        (384, 128, Tiles(1, 2, 64, 1)),  # as of the head: several blocks a warpgroup
    ],
)
@pytest.mark.parametrize("N", [8, 24])
def test_the_product(N, D, I, tiles):
    x_ND, value_ID, scale_I, exact_NI = int8_case(N, D, I, 0)
    parts = product_parts(x_ND, (value_ID, scale_I), tiles=tiles, interpret=plgpu.InterpretGPUParams())
    assert parts.shape == (tiles.parts, N, I)
    assert parts.dtype == jnp.float32
    step = D // tiles.parts
    for p, part in enumerate(parts):  # each is the sum over its own numbers
        summed = slice(p * step, (p + 1) * step)
        factor = np.asarray(value_ID, np.float64)[:, summed] * np.asarray(scale_I, np.float64)[:, None]
        exact_part = np.asarray(x_ND, np.float64)[:, summed] @ factor.T
        np.testing.assert_allclose(np.asarray(part, np.float64), exact_part, rtol=2e-5, atol=2e-5)
    np.testing.assert_allclose(np.asarray(parts, np.float64).sum(axis=0), exact_NI, rtol=2e-5, atol=4e-5)


@interpreted
@pytest.mark.usefixtures("_few_processors")
def test_the_gated_product():
    x_ND, *gate, gate_NF = int8_case(16, 128, 256, 1)
    _, *up, _ = int8_case(16, 128, 256, 2)
    up_NF = np.asarray(x_ND, np.float64) @ np.asarray(dequantize(Int8(*up)), np.float64).T
    got = gated_product(x_ND, tuple(gate), tuple(up), tiles=Tiles(1, 1, 64, 1), interpret=plgpu.InterpretGPUParams())
    assert (got.shape, got.dtype) == ((16, 256), jnp.bfloat16)
    expected = gate_NF / (1 + np.exp(-gate_NF)) * up_NF
    np.testing.assert_allclose(np.asarray(got, np.float64), expected, rtol=2**-8, atol=1e-4)  # rounded once


def test_tiles_fill_the_processors():
    """Of Llama-3-8B, its head among them, then of SmolLM2 and Qwen2.5-0.5B: programs beside the 132 processors."""
    assert choose_tiles(4096, 6144) == Tiles(3, 1, 128, 4)  # 32 * 4
    assert choose_tiles(4096, 4096) == Tiles(2, 1, 128, 4)  # 32 * 4
    assert choose_tiles(14336, 4096) == Tiles(2, 1, 128, 4)
    assert choose_tiles(4096, 14336, num_weights=2) == Tiles(2, 1, 128, 1)  # 112
    assert choose_tiles(4096, 128256) == Tiles(2, 2, 128, 1)  # 501 units, 4 for most
    assert choose_tiles(576, 960) == Tiles(1, 1, 64, 3)  # 15 * 3, of nine steps
    assert choose_tiles(896, 151936) == Tiles(1, 1, 128, 1)  # 2374 = 2 * 1187 blocks
    assert choose_tiles(4096, 24576, num_weights=2) == Tiles(2, 1, 128, 1)  # not three warpgroups in 128 programs
    assert choose_tiles(96, 64) is None
    assert choose_tiles(64, 96) is None


@pytest.mark.parametrize(("D", "I", "num_weights"), [(4096, 6144, 1), (4096, 14336, 2), (4096, 128256, 1)])
def test_tiles_fit_shared_memory(D, I, num_weights):
    tiles = choose_tiles(D, I, num_weights=num_weights)
    for rows, fewest in ((8, 6), (MAX_ROWS, 3)):
        num_slots = tiles.num_slots(rows, num_weights)
        assert num_slots >= fewest
        assert num_slots * tiles.step * (2 * rows + num_weights * tiles.columns) <= 227 * 1024


@pytest.mark.parametrize("rows", [1, 30, MAX_ROWS])
def test_they_lower_for_hopper_and_read_eight_bits(rows):
    """One kernel, and rows copied to a multiple of 8 where they are above 8 and none."""
    x_MD, value, scale = (
        jnp.zeros(shape, dtype)
        for shape, dtype in (((rows, 256), "bfloat16"), ((128, 256), "int8"), ((128,), "float32"))
    )
    for program, args in (
        (int8_product.product_parts, (x_MD, (value, scale))),
        (int8_product.gated_product, (x_MD, (value, scale), (value, scale))),
    ):
        text = lowered_for_cuda(program, *args)
        assert text.count("stablehlo.custom_call @mosaic_gpu") == 1
        assert text.count("stablehlo.pad") == (rows == 30)
        assert "tensor<128x256xi8>) -> tensor<128x256x" not in text  # no copy of the weight is made before it


def test_what_is_supported_where():
    """Hopper's kernels on Hopper, found by the mesh that a program is traced for or the device at hand; else Triton's."""
    value, odd = (jax.ShapeDtypeStruct(shape, jnp.int8) for shape in ((64, 128), (64, 100)))

    def supported(rows, *values, dtype=jnp.bfloat16):
        return int8_product.is_supported(rows, dtype, *values)

    assert supported(int8_triton.MAX_ROWS, value, value)
    assert not supported(int8_triton.MAX_ROWS + 1, value)
    assert int8_product.fitting_rows(13) == 13
    for name, most in (
        ("NVIDIA H200", MAX_ROWS),
        ("NVIDIA H100 80GB HBM3", MAX_ROWS),
        ("NVIDIA B200", int8_triton.MAX_ROWS),
    ):
        device = jax.sharding.AbstractDevice(device_kind=name, num_cores=132, platform="gpu")
        mesh = jax.sharding.AbstractMesh((1,), ("x",), abstract_device=device)
        with jax.sharding.use_abstract_mesh(mesh):
            assert supported(most, value)
            assert int8_product.fitting_rows(13) == (16 if most == MAX_ROWS else 13)
            assert not supported(most + 1, value)
            assert not supported(1, value, dtype=jnp.float32)
            assert not supported(1, value, odd)
