"""scripts/bulk_product.py in JAX's own simulation of a GPU, against plain products.

The simulation makes each product at once and moves no number within a tile: what runs at the same time on a GPU, and how
tiles are laid out there, is not tested here.
"""

import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "scripts"))

import bulk_product
from bulk_product import Tiles, choose_tiles, gated_product, most_stages, product_parts

INTERPRET = bulk_product.simulator()


def draw(seed, *shape, scale=1.0):
    return jax.random.normal(jax.random.key(seed), shape, jnp.bfloat16) * jnp.bfloat16(scale)


def in_float64(*arrays):
    return [np.asarray(array.astype(jnp.float32), np.float64) for array in arrays]


@pytest.mark.parametrize(
    ("tiles", "summed", "columns"),
    [(Tiles(128, 2, 3), 384, 256), (Tiles(192, 1, 2), 192, 192), (Tiles(64, 2, 2, 0), 384, 128)],
)
def test_the_parts_add_up_to_the_product(tiles, summed, columns):
    x, weight = draw(1, 64, summed), draw(2, summed, columns, scale=0.1)
    parts = product_parts(x, weight, tiles=tiles, interpret=INTERPRET)
    assert parts.shape == (tiles.parts, 64, columns)
    size = summed // tiles.parts
    exact_x, exact_weight = in_float64(x, weight)
    for p in range(tiles.parts):
        mine = slice(p * size, (p + 1) * size)
        np.testing.assert_allclose(parts[p], exact_x[:, mine] @ exact_weight[mine], atol=2e-5)


def test_gate_and_up_are_multiplied_after_the_activation():
    x, weight = draw(3, 64, 192), draw(4, 192, 2, 256, scale=0.1)
    got = gated_product(x, weight, tiles=Tiles(128, 1, 2), interpret=INTERPRET)
    exact_x, exact_weight = in_float64(x, weight)
    gate, up = exact_x @ exact_weight[:, 0], exact_x @ exact_weight[:, 1]
    np.testing.assert_allclose(in_float64(got)[0], gate / (1 + np.exp(-gate)) * up, rtol=2**-8, atol=1e-6)


def test_tiles_of_an_8b_models_products():
    # By hand, of 132 processors: 6144 / 192 = 32 tiles and 4 parts are 128 programs; 48 tiles of 128 would be 96, in 2 parts.
    assert choose_tiles(4096, 6144)[:2] == (192, 4)
    assert choose_tiles(4096, 4096)[:2] == (128, 4)
    assert choose_tiles(14336, 4096)[:2] == (128, 4)
    assert choose_tiles(4096, 14336, num_weights=2)[:2] == (128, 1)
    assert choose_tiles(4096, 17408)[:2] == (256, 1)  # 136 tiles of 128 columns are more than run at once
    assert choose_tiles(100, 4096) is None
    assert choose_tiles(4096, 100) is None


@pytest.mark.parametrize(
    ("columns", "num_weights", "stages"), [(64, 1, 8), (128, 1, 8), (192, 1, 5), (256, 1, 4), (128, 2, 5)]
)
def test_stages_fit_the_shared_memory(columns, num_weights, stages):
    # 128 columns: a stage is (64 + 128) 64 2 = 24,576 bytes, the result 32,768: (231,424 - 32,768) / 24,576 = 8.08.
    # 64: 16,384 and 16,384, so 13 would fit, and 8 are the most. 192: 32,768 and 49,152: 5.6.
    # 256: 40,960 and 65,536: 4.05. Gate and up of 128: 40,960 and 16,384: 5.25.
    assert most_stages(columns, num_weights) == stages
