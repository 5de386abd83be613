import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from jax_probe_mtp.sampling import Sampling, gumbel_noise, keep_likely, next_token, scores

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
