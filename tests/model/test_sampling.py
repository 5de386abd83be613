import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from jax_probe_mtp.model.sampling import Sampling, _keep_likely, gumbel_noise, keep_likely, next_token, scores

V = 37


def sampling(B, temperature=1.0, top_k=0, top_p=1.0, seed=0):
    full = lambda value, dtype: jnp.full(B, value, dtype)  # noqa: E731
    return Sampling(
        temperature_B=full(temperature, jnp.float32),
        top_k_B=full(top_k, jnp.int32),
        top_p_B=full(top_p, jnp.float32),
        seed_B=full(seed, jnp.uint32),
    )


def random_logits(B, seed=0):
    return np.asarray(jax.random.normal(jax.random.key(seed), (B, V)) * 3, np.float32)


@pytest.mark.parametrize("temperature", [0.0, 0.3, 1.0, 2.5])
@pytest.mark.parametrize(("top_k", "top_p"), [(0, 1.0), (5, 1.0), (0, 0.7), (9, 0.5), (1, 1.0), (0, 1e-6), (V, 0.999)])
def test_scores_are_those_of_a_full_sort(temperature, top_k, top_p):
    logits = random_logits(20)
    position = np.arange(20) + 100
    got = scores(jnp.asarray(logits), jnp.asarray(position), sampling(20, temperature, top_k, top_p, seed=9))
    for row in range(20):
        expected = reference.scores(
            np.float64(logits[row]), position[row], temperature=temperature, top_k=top_k, top_p=top_p, seed=9
        )
        np.testing.assert_array_equal(np.isfinite(got[row]), np.isfinite(expected))
        np.testing.assert_allclose(got[row], expected, rtol=1e-5, atol=1e-5)


def test_tokens_tied_at_a_cut_stay_together():
    logits = jnp.asarray([[2.0, 1.0, 1.0, 1.0, 0.0, -3.0]])
    kept = keep_likely(logits, jnp.asarray([2]), jnp.asarray([1.0]))
    assert kept.tolist() == [[True, True, True, True, False, False]]
    kept = keep_likely(logits, jnp.asarray([0]), jnp.asarray([0.5], jnp.float32))  # e^2 alone has a mass of 0.45
    assert kept.tolist() == [[True, True, True, True, False, False]]


def test_negative_and_positive_logits_are_ordered_across_zero():
    logits = jnp.asarray([[-1.0, -2.0, 0.0, 1.0, -0.5]])
    kept = keep_likely(logits, jnp.asarray([3]), jnp.asarray([1.0]))
    assert kept.tolist() == [[False, False, True, True, True]]


def test_greedy_rows_beside_sampled_ones_take_the_best():
    logits = jnp.asarray(random_logits(4))
    mixed = sampling(4).replace(temperature_B=jnp.asarray([0.0, 1.0, 0.0, 1.0]), top_p_B=jnp.asarray([0.1, 1, 0.1, 1]))
    token, best = np.asarray(next_token(logits, jnp.arange(4), mixed)), np.argmax(np.asarray(logits), axis=1)
    assert token[[0, 2]].tolist() == best[[0, 2]].tolist()
    assert token[[1, 3]].tolist() != best[[1, 3]].tolist()


def test_ties_go_to_the_lowest_id():
    assert next_token(jnp.asarray([[1.0, 5.0, 5.0]]), jnp.asarray([0]), None).tolist() == [1]


def test_noise_depends_on_seed_and_position_alone():
    one = gumbel_noise(jnp.asarray([4, 4, 5], jnp.uint32), jnp.asarray([10, 11, 10]), V)
    alone = gumbel_noise(jnp.asarray([4], jnp.uint32), jnp.asarray([10]), V)
    np.testing.assert_array_equal(one[0], alone[0])
    assert not np.array_equal(one[0], one[1])
    assert not np.array_equal(one[0], one[2])


def test_noise_does_not_move_with_global_flags():
    before = np.asarray(gumbel_noise(jnp.asarray([4], jnp.uint32), jnp.asarray([10]), V))
    with jax.threefry_partitionable(False), jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(gumbel_noise(jnp.asarray([4], jnp.uint32), jnp.asarray([10]), V), before)


def test_frequencies_are_the_distributions():
    """20,000 seeds; each token's count is binomial, and 5 deviations leave a chance of 37 * 6e-7 for a false alarm."""
    n = 20_000
    logits = jnp.asarray(random_logits(1))
    draws = next_token(
        jnp.tile(logits, (n, 1)),
        jnp.full(n, 12),
        sampling(n, temperature=1.3, top_p=0.9).replace(seed_B=jnp.arange(n, dtype=jnp.uint32)),
    )
    scaled = np.float64(logits[0]) / 1.3
    order = np.argsort(-scaled)
    mass = np.exp(scaled[order]) / np.exp(scaled).sum()
    kept = order[: np.searchsorted(np.cumsum(mass), 0.9) + 1]
    probability = np.zeros(V)
    probability[kept] = np.exp(scaled[kept]) / np.exp(scaled[kept]).sum()
    counts = np.bincount(draws, minlength=V)
    assert np.all(np.abs(counts - n * probability) <= 5 * np.sqrt(n * probability * (1 - probability)))
    assert counts[probability == 0].sum() == 0


def kept_by_sorting(scaled, top_k, top_p):
    """The cuts by their definition, in float64: level by level from the top."""
    scaled = np.float64(scaled)
    kept = scaled >= np.sort(scaled)[-top_k] if top_k else np.full(scaled.shape, True)
    if top_p < 1:
        mass = np.where(kept, np.exp(scaled - scaled.max()), 0)
        cut = next(level for level in np.unique(scaled)[::-1] if mass[scaled >= level].sum() >= top_p * mass.sum())
        kept &= scaled >= cut
    return kept


def cut_rows():
    """Rows of all kinds: none, one or both cuts, distinct values, many ties, all equal, -inf, both signs, huge, tiny."""
    rng = np.random.default_rng(3)
    scaled, top_k, top_p = [], [], []
    for values in (
        rng.normal(size=300) * 3,
        rng.integers(-4, 5, size=300) + 0.5,
        np.full(300, -1.25),
        np.where(rng.random(300) < 0.7, -np.inf, rng.normal(size=300)),
        rng.normal(size=300) * 1e4,
        1 + rng.integers(40, size=300) * 2.0**-23,
        -(10.0 ** rng.uniform(-44, 30, size=300)),
    ):
        for k in (0, 1, 7, 60, 300):
            for p in (1.0, 0.987, 0.683, 0.317, 1e-6):  # p * k is no integer: equal masses never end at the target
                scaled.append(values)
                top_k.append(k)
                top_p.append(p)
    return np.float32(scaled), np.int32(top_k), np.float32(top_p)


@pytest.mark.parametrize("few_kernels", [False, True])
def test_both_ways_to_cut_give_what_a_sort_gives(few_kernels):
    scaled, top_k, top_p = cut_rows()
    kept = jax.jit(functools.partial(_keep_likely, few_kernels=few_kernels))(scaled, top_k, top_p)
    for row in range(len(scaled)):
        expected = kept_by_sorting(scaled[row], top_k[row], top_p[row])
        np.testing.assert_array_equal(kept[row], expected, err_msg=f"row {row}: {top_k[row]}, {top_p[row]}")


@pytest.mark.parametrize("few_kernels", [False, True])
def test_a_rows_cuts_do_not_depend_on_its_neighbours(few_kernels):
    scaled, top_k, top_p = cut_rows()
    cut = jax.jit(functools.partial(_keep_likely, few_kernels=few_kernels))
    together = cut(scaled, top_k, top_p)
    for row in range(0, len(scaled), 3):
        alone = cut(scaled[row : row + 1], top_k[row : row + 1], top_p[row : row + 1])
        np.testing.assert_array_equal(alone[0], together[row])


def test_a_gpu_gets_no_loop_and_no_branch_and_a_cpu_skips_cuts_that_no_row_asks_for():
    """Each pass of a loop is kernels more, and a branch sends the host what it depends on."""
    arguments = jnp.zeros((2, V)), jnp.zeros(2, jnp.int32), jnp.ones(2)
    straight = jax.jit(functools.partial(_keep_likely, few_kernels=True)).lower(*arguments).as_text()
    assert [straight.count(f"stablehlo.{name}") for name in ("while", "case", "if")] == [0, 0, 0]
    for_gpu = jax.jit(keep_likely).trace(*arguments).lower(lowering_platforms=("cuda",)).as_text()
    for_cpu = jax.jit(keep_likely).trace(*arguments).lower(lowering_platforms=("cpu",)).as_text()
    assert (for_gpu.count("stablehlo.while"), for_cpu.count("stablehlo.while")) == (0, 2)
    compiled = jax.jit(keep_likely).lower(*arguments).compile().as_text()
    if jax.default_backend() == "cpu":
        assert compiled.count(" conditional(") == 2  # the cuts', none for the choice of the platform
