"""The tiles of attention: as many programs as the GPU has processors, and none without work."""

import jax.numpy as jnp
import pytest

from jax_probe_mtp.kernels.tiles import choose_tiles


@pytest.mark.parametrize("T", [1, 10, 30, 60, 256])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("B", [1, 3, 64])
def test_chosen_tiles_fill_the_gpu_and_not_more(T, dtype, B):
    tiles = choose_tiles((B, 8, 4, T, 128), 1024, dtype)
    num_programs = B * 8 * -(-4 * T // tiles.row)
    assert tiles.row >= 16
    assert tiles.row & (tiles.row - 1) == 0
    assert tiles.splits == 1 or num_programs * tiles.splits <= 132
    assert tiles.splits == 8 or num_programs * (tiles.splits + 1) > 132


def test_a_short_cache_is_not_split_beyond_its_tiles():
    assert choose_tiles((1, 8, 4, 1, 128), 200, jnp.bfloat16).splits == 2 + 1
