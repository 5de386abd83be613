import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference

from jax_probe_mtp.drafting.mask_tokens import init_masks, update_masks

D = 6
TABLE = np.random.default_rng(0).normal(1.0, 2.0, (50, D)).astype(np.float32)
PROMPT = [3, 4, 40, 9, 9, 22]


class TableOnly:
    """As much of the reference model as the first masks need."""

    def __init__(self):
        self.p = {"embed": np.float64(TABLE)}

    def embed(self, ids):
        return self.p["embed"][np.asarray(ids)]


@pytest.mark.parametrize("init", ["mean", "last_k", "sample", "offset"])
def test_first_masks_are_the_references_and_padding_never_enters(init):
    how = {"num_masks": 2, "init": init, "offset": 5.0}
    padded = jnp.asarray(TABLE)[jnp.asarray([[*PROMPT, 1, 2], [*PROMPT[:3], 1, 2, 7, 8, 9]])]
    got = init_masks(jnp.asarray(TABLE), padded, jnp.asarray([6, 3]), jnp.asarray([17, 18], jnp.uint32), **how)
    for row, (prompt, seed) in enumerate([(PROMPT, 17), (PROMPT[:3], 18)]):
        expected = reference.first_masks(TableOnly(), prompt, init=init, num_masks=2, offset=5.0, seed=seed)
        np.testing.assert_allclose(got[row], expected, rtol=1e-5, atol=1e-5)
    assert got.dtype == jnp.float32


def test_sampled_masks_do_not_move_with_global_flags():
    how = {"num_masks": 2, "init": "sample", "offset": 5.0}
    args = (jnp.asarray(TABLE), jnp.asarray(TABLE)[None, :3], jnp.asarray([3]), jnp.asarray([17], jnp.uint32))
    before = np.asarray(init_masks(*args, **how))
    with jax.threefry_partitionable(False), jax.default_prng_impl("rbg"):
        np.testing.assert_array_equal(init_masks(*args, **how), before)


def test_update_moves_once_for_each_committed_token():
    masks = jnp.asarray([[[0.0, 8.0]], [[0.0, 8.0]], [[0.0, 8.0]]])
    committed = jnp.asarray([[[4.0, 0.0], [8.0, 0.0]]] * 3)
    got = update_masks(masks, committed, jnp.asarray([0, 1, 2]), 0.5)
    # by hand: (0, 8) -> toward (4, 0): (2, 4) -> toward (8, 0): (5, 2)
    np.testing.assert_array_equal(got, [[[0, 8]], [[2, 4]], [[5, 2]]])


def test_frozen_masks_stay():
    masks = jnp.ones((1, 2, 3))
    np.testing.assert_array_equal(update_masks(masks, jnp.zeros((1, 2, 3)), jnp.asarray([2]), 0.0), masks)


def test_masks_stay_in_float32_for_a_bfloat16_model():
    how = {"num_masks": 1, "init": "mean", "offset": 5.0}
    embed = jnp.asarray(TABLE, jnp.bfloat16)
    masks = init_masks(embed, embed[jnp.asarray([PROMPT])], jnp.asarray([6]), jnp.asarray([0], jnp.uint32), **how)
    assert masks.dtype == jnp.float32
    assert update_masks(masks, embed[jnp.asarray([[1]])], jnp.asarray([1]), 0.1).dtype == jnp.float32
