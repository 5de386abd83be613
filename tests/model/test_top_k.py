import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_probe_mtp.model import top_k as topk
from jax_probe_mtp.model.top_k import BLOCK, top_k

WAYS = {"by blocks": topk._by_blocks, "by counting": topk._by_counting}


@pytest.fixture(params=WAYS)
def best(request):
    """The stages in either way, whichever this platform takes."""
    return jax.jit(WAYS[request.param], static_argnums=1)


def by_sorting(values, k):
    ids = np.argsort(-values, axis=-1, kind="stable")[..., :k]
    return np.take_along_axis(values, ids, axis=-1), ids


def assert_same(got, expected):
    for one, other in zip(got, expected, strict=True):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize("V", [40 * BLOCK, 40 * BLOCK + 1, 41 * BLOCK - 1])
@pytest.mark.parametrize("k", [1, 2, 15, 40])
@pytest.mark.parametrize("num_levels", [1, 2, 7, 1000])
def test_the_blocks_give_what_a_stable_sort_gives(best, V, k, num_levels):
    """Few levels make ties everywhere, the lowest is -inf; with one level all values are -inf."""
    levels = np.float32([-np.inf, *range(-5, num_levels - 6)])
    values = levels[np.random.default_rng(k).integers(num_levels, size=(6, V))]
    assert_same(best(values, k), by_sorting(values, k))


@pytest.mark.parametrize("seed", range(20))
def test_rare_large_values_in_a_plain_of_ties(best, seed):
    """The best k end inside the plain, or in the ids behind the last block."""
    rng = np.random.default_rng(seed)
    V, k = 30 * BLOCK + 5 * (seed % 3), int(rng.integers(1, 31))
    values = np.full((3, V), rng.choice([-np.inf, 0, 2]), np.float32)
    for row in values:
        chosen = rng.integers(V, size=rng.integers(k + 2))
        row[chosen] = rng.integers(-3, 4, size=chosen.size)
        row[V - 6 * (seed % 2) :] = 3
    assert_same(best(values, k), by_sorting(values, k))


@pytest.mark.parametrize("k", [8, 25])
@pytest.mark.parametrize("num_levels", [2, 30, 10**6])
def test_a_large_vocabulary_takes_a_stage_for_the_maxima_too(k, num_levels):
    V = 2 * topk.FEW * topk.COUNTED_BLOCK + 37
    values = np.random.default_rng(k).integers(num_levels, size=(3, V)).astype(np.float32)
    values[0, -5:] = num_levels
    assert_same(WAYS["by counting"](values, k), by_sorting(values, k))


def test_all_of_the_best_in_one_block_and_one_in_each(best):
    V, k = 32 * BLOCK, 32
    together, apart = np.zeros((2, V), np.float32)
    together[7 * BLOCK : 7 * BLOCK + k] = np.arange(k)[::-1] + 1
    apart[::BLOCK] = np.arange(k) + 1
    values, ids = best(np.stack([together, apart]), k)
    assert ids[0].tolist() == list(range(7 * BLOCK, 7 * BLOCK + k))
    assert ids[1].tolist() == list(range((k - 1) * BLOCK, -1, -BLOCK))
    assert values.tolist() == [list(range(k, 0, -1))] * 2


def test_zeros_of_either_sign_are_ordered_as_lax_orders_them(best):
    values = jnp.where(jax.random.bernoulli(jax.random.key(0), 0.001, (2, 30 * BLOCK)), 0.0, -0.0)
    got, expected = best(values, 20), jax.lax.top_k(values, 20)
    assert_same(got, expected)
    np.testing.assert_array_equal(np.signbit(got[0]), np.signbit(expected[0]))


@pytest.mark.parametrize(("V", "k"), [(1, 1), (61, 61), (61, 5), (1 << 14, 15), (1 << 14, 60), (50257, 30)])
@pytest.mark.parametrize("lead", [(), (2,), (2, 3)])
def test_any_size_and_any_leading_axes(V, k, lead):
    values = np.random.default_rng(V).integers(-300, 300, size=(*lead, V)).astype(np.float32)
    got = top_k(jnp.asarray(values), k)
    assert_same(got, by_sorting(values, k))
    assert (got[0].dtype, got[1].dtype) == (jnp.float32, jnp.int32)


def test_large_vocabularies_are_never_ranked_whole_and_small_ones_at_once():
    def ranked(V, k):
        program = jax.jit(lambda values: top_k(values, k)).lower(jnp.zeros(V)).as_text()
        return [int(size) for size in re.findall(r"chlo.top_k\(.*?: tensor<(\d+)xf32>", program)]

    assert ranked(128256, 15) == [1002, 15 * BLOCK]
    assert ranked(151936 + 3, 60) == [1187, 60 * BLOCK + 3]
    assert ranked(1 << 14, 32) == [128, 32 * BLOCK]
    assert ranked(1 << 14, 33) == [1 << 14]
    assert ranked(61, 5) == [61]


@pytest.mark.parametrize("smallest", [topk._smallest_by_sorting, topk._smallest_by_counting])
@pytest.mark.parametrize("num_levels", [1, 3, 5000])
def test_the_smallest_whole_numbers_are_those_of_a_stable_sort(smallest, num_levels):
    keys = np.random.default_rng(0).integers(num_levels, size=(3, 700)).astype(np.int32)
    keys[1, 5:] = np.iinfo(np.int32).max
    places = np.argsort(keys, axis=-1, kind="stable")[:, :60]
    assert_same(jax.jit(smallest, static_argnums=1)(keys, 60), (np.take_along_axis(keys, places, axis=-1), places))


def test_it_works_inside_vmap_and_a_loop():
    values = np.random.default_rng(0).integers(50, size=(3, 20_000)).astype(np.float32)

    @jax.jit
    def third_pass(values):
        def lower(state):
            i, values, _, _ = state
            return i + 1, values - 1, *jax.vmap(lambda row: top_k(row, 8))(values)

        start = 0, values, jnp.zeros((3, 8)), jnp.zeros((3, 8), jnp.int32)
        return jax.lax.while_loop(lambda state: state[0] < 3, lower, start)[2:]

    assert_same(third_pass(values), by_sorting(values - 2, 8))


def test_on_a_gpu_nothing_is_sorted():
    traced = jax.jit(lambda values: top_k(values, 15)).trace(jnp.zeros((2, 128256)))
    lowered = traced.lower(lowering_platforms=("cuda",)).as_text()
    assert "chlo.top_k" not in lowered
    assert "stablehlo.sort" not in lowered
    assert "stablehlo.gather" in lowered  # the counting is there
