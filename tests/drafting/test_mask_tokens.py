import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from conftest import BASE, Tiny

from jax_probe_mtp.drafting.mask_tokens import FEWEST_PLACES, TRIED, choose_masks, init_masks, update_masks
from jax_probe_mtp.drafting.shown import Model, ReadPrompts
from jax_probe_mtp.model.params import random_params
from jax_probe_mtp.model.transformer import full_forward

D = 6
TABLE = np.random.default_rng(0).normal(1.0, 2.0, (50, D)).astype(np.float32)
PROMPT = [3, 4, 40, 9, 9, 22]


class TableOnly:
    """As much of the reference model as the first masks need."""

    def __init__(self):
        self.p = {"embed": np.float64(TABLE)}

    def embed(self, ids):
        return self.p["embed"][np.asarray(ids)]


@pytest.mark.parametrize("init", ["mean", "last_k", "sample", "offset", "vocabulary", "zero"])
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


def test_every_row_of_a_batch_moves_by_its_own_lambda():
    masks, committed = jnp.full((3, 1, 1), 8.0), jnp.zeros((3, 1, 1))
    got = update_masks(masks, committed, jnp.ones(3, jnp.int32), jnp.asarray([0.0, 0.25, 1.0]))
    assert got[:, 0, 0].tolist() == [8, 6, 0]


def prompts(num, length=40):
    """Texts of drawn tokens, always the same."""
    draw = np.random.default_rng(5)
    return [draw.integers(0, 61, length).tolist() for _ in range(num)]


def choose(tiny, token_ids, tried=TRIED, padding=0):
    """What the package chooses for prompts of one length, after a prefill of all tokens but the last."""
    token_BT = jnp.pad(jnp.asarray(token_ids, jnp.int32), ((0, 0), (0, padding)), constant_values=7)
    _, cache = full_forward(tiny.params, tiny.cfg, token_BT[:, :-1])
    length_B = jnp.full(len(token_ids), len(token_ids[0]), jnp.int32)
    read = ReadPrompts(model=Model(tiny.params, tiny.cfg), token_BT=token_BT, length_B=length_B, cache=cache)
    return jax.jit(lambda: choose_masks(read, tried))()


@pytest.fixture(scope="module")
def leaning():
    """A model for some of whose prompts each candidate is the best."""
    params = random_params(BASE, jax.random.key(3))
    params["embed"] = params["embed"] + 0.3 * jax.random.normal(
        jax.random.key(1), (24,)
    )  # a table whose mean is far from 0
    return Tiny(BASE, params, reference.Model(params, BASE))


def test_the_chosen_mask_and_lambda_are_the_references(leaning):
    drawn = prompts(45)
    token_ids, chosen = [drawn[number] for number in (0, 1, 13, 26, 27, 28, 32, 42, 44)], []  # of each choice some
    masks_BD, ema_B = choose(leaning, token_ids)
    for row, prompt in enumerate(token_ids):
        (init, ema), lead = reference.chosen_mask(leaning.reference, prompt, TRIED)
        first, second = np.sort(lead)[[-1, -2]]
        assert first - second > 1e-4, "choose another prompt: rounding could decide this one"
        expected = reference.first_masks(leaning.reference, prompt, init=init, num_masks=1, offset=0.0, seed=0)
        np.testing.assert_allclose(masks_BD[row], expected[0], rtol=1e-5, atol=1e-5)
        assert float(ema_B[row]) == np.float32(ema)
        chosen.append((init, ema))
    assert set(chosen) == set(TRIED), "these prompts prove nothing about choosing"


def test_a_prompt_that_is_too_short_takes_the_first_candidate(leaning):
    num_long = FEWEST_PLACES + 2
    by_length = {}
    for length in (3, num_long - 1, num_long):
        by_length[length] = [
            float(ema) for ema in choose(leaning, [prompt[:length] for prompt in prompts(24)], padding=20)[1]
        ]
    assert set(by_length[3]) | set(by_length[num_long - 1]) == {np.float32(0.1)}
    assert len(set(by_length[num_long])) > 1


def test_a_row_chooses_by_its_own_text_alone(leaning):
    """Beside longer and shorter ones, and however far it is padded."""
    token_ids = [prompt[:length] for prompt, length in zip(prompts(3), (40, 16, 33), strict=True)]
    token_BT = jnp.asarray([[*prompt, *[7] * (53 - len(prompt))] for prompt in token_ids])
    _, cache = full_forward(leaning.params, leaning.cfg, token_BT)
    length_B = jnp.asarray([len(prompt) for prompt in token_ids])
    read = ReadPrompts(model=Model(leaning.params, leaning.cfg), token_BT=token_BT, length_B=length_B, cache=cache)
    together = choose_masks(read, TRIED)
    for row, prompt in enumerate(token_ids):
        alone = choose(leaning, [prompt])
        np.testing.assert_allclose(together[0][row], alone[0][0], rtol=1e-6, atol=1e-6)
        assert together[1][row] == alone[1][0]
        assert float(alone[1][0]) == np.float32(reference.chosen_mask(leaning.reference, prompt, TRIED)[0][1])
