"""The tiles of attention: as many programs as the GPU has processors, and none without work."""

import jax.numpy as jnp
import pytest

from jax_probe_mtp.kernels.tiles import Tiles, choose_tiles, tiles_for_any_rows


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


@pytest.mark.parametrize("h", [64, 128, 256])
def test_tiles_for_any_rows_cut_the_slots_alike_for_all_shapes(h):
    shapes = [(B, K, G, T, h) for B in (1, 16) for K, G in ((8, 4), (3, 3)) for T in (1, 30, 64, 256)]
    chosen = [tiles_for_any_rows(shape, jnp.bfloat16) for shape in shapes]
    assert len({(tiles.slot, tiles.splits, tiles.has_one_order) for tiles in chosen}) == 1
    assert {tiles.row for tiles in chosen} == {16, 32, 64}
    assert {tiles_for_any_rows(shape, jnp.float32) for shape in shapes} == {
        Tiles(row=16, slot=32, splits=8, num_warps=4, num_stages=2, has_one_order=True)
    }


@pytest.mark.parametrize(("K", "G", "T", "row"), [(8, 4, 1, 16), (8, 4, 30, 32), (8, 4, 64, 64), (3, 3, 64, 32)])
def test_tiles_for_any_rows_are_as_long_as_leaves_a_program_for_each_processor(K, G, T, row):
    """Of Llama-3-8B and SmolLM2: 8 splits of 8 or 3 heads' blocks of rows."""
    assert tiles_for_any_rows((1, K, G, T, 64), jnp.bfloat16).row == row
