"""The masks' cross-entropy and hits, against the NumPy model that runs each mask behind its own piece of the text."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from conftest import BASE

from jax_probe_mtp.model import stacked
from jax_probe_mtp.tuning import loss
from jax_probe_mtp.tuning.texts import Text, as_arrays

TEXTS = [
    Text(token_ids=(5, 9, 2, 44, 17, 3, 3, 21, 8), places=(2, 3, 4, 5, 6)),
    Text(token_ids=(60, 1, 33, 8, 12), places=(1, 2)),
]


def arrays():
    return as_arrays(TEXTS, 3, 32, 8)  # a row without a text, and places that are none


def masks(num_masks):
    return np.random.default_rng(1).normal(size=(num_masks, BASE.width)).astype(np.float32)


def by_place(tiny, masks_MD):
    """(mask, logits [V] of the NumPy model, true token) of every place that has one."""
    for text in TEXTS:
        for place in text.places:
            seen = tiny.reference.embed(text.token_ids[: place + 1])
            logits_MV = tiny.reference.logits(np.concatenate([seen, masks_MD]))[place + 1 :]
            for i, logits_V in enumerate(logits_MV):
                if place + 2 + i < len(text.token_ids):
                    yield i, logits_V, text.token_ids[place + 2 + i]


def run(tiny, function, masks_MD, **more):
    together, texts = stacked.stack_layers(tiny.params), arrays()
    cache = stacked.read(together, tiny.cfg, texts.token_BT, texts.length_B)
    return function(together, tiny.cfg, jnp.asarray(masks_MD), texts, cache)


@pytest.mark.parametrize("num_masks", [1, 3])
def test_cross_entropy_is_the_slow_models(tiny, num_masks):
    masks_MD, expected_M = masks(num_masks), np.zeros(num_masks)
    for i, logits_V, token in by_place(tiny, masks_MD):
        expected_M[i] += np.log(np.exp(logits_V - logits_V[token]).sum())
    np.testing.assert_allclose(run(tiny, loss.cross_entropy, masks_MD), expected_M, rtol=1e-4)


def test_the_gradient_is_the_slow_models_slope(tiny):
    masks_MD = masks(2)
    direction_MD = np.random.default_rng(2).normal(size=masks_MD.shape)

    def slow(size):
        moved_MD = masks_MD + size * direction_MD
        return sum(np.log(np.exp(logits - logits[token]).sum()) for _, logits, token in by_place(tiny, moved_MD))

    slope = (slow(1e-4) - slow(-1e-4)) / 2e-4
    gradient_MD = jax.grad(lambda masks_MD: run(tiny, loss.cross_entropy, masks_MD).sum())(jnp.asarray(masks_MD))
    assert abs(slope) > 0.1
    np.testing.assert_allclose(np.sum(np.asarray(gradient_MD) * direction_MD), slope, rtol=1e-3)


@pytest.mark.parametrize("num_masks", [1, 3])
def test_hits_are_counted_as_by_hand(tiny, num_masks):
    masks_MD, expected = masks(num_masks), np.zeros((num_masks, 1 + len(loss.HIT_SIZES)), int)
    for i, logits_V, token in by_place(tiny, masks_MD):
        rank = np.sum(logits_V > logits_V[token])
        expected[i] += [1, *(rank < size for size in loss.HIT_SIZES)]
    got = run(tiny, loss.count_hits, masks_MD)
    np.testing.assert_array_equal(got, expected)
    assert expected[0, 1:].min() > 0 or expected[0, -1] < expected[0, 0], "all hit or none: this proves nothing"


def test_masks_that_have_diverged_hit_nothing(tiny):
    got = run(tiny, loss.count_hits, np.full((1, BASE.width), np.nan, np.float32))
    assert got[0, 1:].tolist() == [0] * len(loss.HIT_SIZES)


def test_logits_come_in_blocks(tiny, monkeypatch):
    """More rows than a block, and no multiple of it."""
    whole = run(tiny, loss.cross_entropy, masks(3))
    monkeypatch.setattr(loss, "BLOCK", 7)
    np.testing.assert_allclose(run(tiny, loss.cross_entropy, masks(3)), whole, rtol=1e-6)
