"""Rows beside a text, against the NumPy model that runs each of them behind its own piece of the text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from conftest import FAMILIES

from jax_probe_mtp.model import stacked
from jax_probe_mtp.model.params import random_params
from jax_probe_mtp.model.side_rows import side_hidden
from jax_probe_mtp.model.transformer import full_forward, logits

TEXTS = [[5, 9, 2, 44, 17, 3, 3, 21, 8], [60, 1, 33, 8, 12, 12, 7, 0, 1]]
PLACES = [[0, 4, 8], [3, 3, 6]]


@pytest.fixture(params=FAMILIES, scope="module")
def model(request):
    cfg = FAMILIES[request.param]
    params = random_params(cfg, jax.random.key(0))
    return cfg, params, reference.Model(params, cfg)


def masks(num_masks, width):
    return np.random.default_rng(0).normal(size=(2, 3, num_masks, width)).astype(np.float32)


@pytest.mark.parametrize("num_masks", [1, 3])
def test_each_row_is_what_it_would_be_behind_its_piece_of_the_text(model, num_masks):
    cfg, params, slow = model
    x_BQMD = masks(num_masks, cfg.width)
    _, cache = full_forward(params, cfg, jnp.asarray(TEXTS))
    hidden_BQMD = side_hidden(params, cfg, cache, jnp.asarray(x_BQMD), jnp.asarray(PLACES))
    got = logits(params, cfg, hidden_BQMD.reshape(2, -1, cfg.width)).reshape(2, 3, num_masks, -1)
    for row, text in enumerate(TEXTS):
        for q, place in enumerate(PLACES[row]):
            expected = slow.logits(np.concatenate([slow.embed(text[: place + 1]), x_BQMD[row, q]]))[place + 1 :]
            np.testing.assert_allclose(got[row, q], expected, rtol=1e-4, atol=1e-4)


def test_a_scan_over_stacked_layers_is_the_same_model(model):
    cfg, params, _ = model
    x_BQMD, text_BT = jnp.asarray(masks(2, cfg.width)), jnp.asarray(TEXTS)
    _, cache = full_forward(params, cfg, text_BT)
    expected = side_hidden(params, cfg, cache, x_BQMD, jnp.asarray(PLACES))
    together = stacked.stack_layers(params)
    padded = jnp.pad(text_BT, ((0, 0), (0, 140)))  # two pieces, of which the second holds no text
    of_texts = stacked.read(together, cfg, padded, jnp.asarray([9, 9]))
    np.testing.assert_allclose(of_texts.k[:, :, :, :9], jnp.stack(cache.k), rtol=1e-5, atol=1e-5)
    assert not of_texts.k[:, :, :, 128:].any()
    for is_differentiated in (False, True):
        got = side_hidden(
            together,
            cfg,
            of_texts,
            x_BQMD,
            jnp.asarray(PLACES),
            forward=stacked.forward,
            is_differentiated=is_differentiated,
        )
        np.testing.assert_allclose(got, expected, rtol=1e-4, atol=1e-5)


def test_a_text_of_two_pieces_is_read_as_a_whole_one(model):
    cfg, params, _ = model
    text_BT = jnp.asarray(np.random.default_rng(1).integers(0, 61, (2, 150)))
    _, cache = full_forward(params, cfg, text_BT)
    got = stacked.read(stacked.stack_layers(params), cfg, text_BT, jnp.asarray([150, 100]))
    np.testing.assert_allclose(got.v, jnp.stack(cache.v), rtol=1e-4, atol=1e-5)
