"""The pass over given outputs, against a model that is asked token by token."""

import dataclasses
import functools

import jax.numpy as jnp
import numpy as np
import pytest
import reference
from checkpoints import make_checkpoint

from jax_probe_mtp.model.sampling import Sampling
from jax_probe_mtp.sameness import own_choices

# (prompt, output): unequal, one longer than a chunk, one whose output takes several turns of the head.
LENGTHS = [(3, 5), (130, 20), (1, 1), (17, 63), (40, 9)]
DRAWS = [(0.0, 0, 1.0), (0.7, 5, 0.9), (1.3, 0, 1.0), (1.0, 0, 0.8), (0.5, 40, 1.0)]  # temperature, top-k, top-p


@pytest.fixture(scope="module")
def texts():
    drawn = np.random.default_rng(0)
    return [tuple(drawn.integers(0, 61, n).tolist() for n in pair) for pair in LENGTHS]


@functools.cache
def _logits(model, text):
    return model.logits(model.embed(list(text)))


def assert_choices(model, text, got, **draw):
    prompt, output = text
    logits_TV = _logits(model, (*prompt, *output))
    for place, token in enumerate(output):
        position = len(prompt) + place
        score_V = reference.scores(logits_TV[position - 1], position, **draw)
        assert got.best_BA[place] == np.argmax(score_V)
        assert got.best_score_BA[place] == pytest.approx(score_V.max(), abs=2e-4)
        assert got.given_score_BA[place] == pytest.approx(score_V[token], abs=2e-4)
    assert len(got.best_BA) == len(got.best_score_BA) == len(got.given_score_BA) == len(output)


@pytest.mark.parametrize("batch_size", [1, 6])
def test_greedy_choices_are_the_models_at_every_place(tiny, texts, batch_size):
    assert max(own_choices.MIN_ROWS // 6, own_choices.MIN_CHUNK) < 150, (
        "the texts are too short for several chunks of a batch of 6"
    )
    assert own_choices.HEAD_ROWS // 6 < 63, "the outputs are too short for several turns of the head"
    found = dict(own_choices.choices_of(make_checkpoint(tiny), texts, None, batch_size))
    assert set(found) == set(range(len(texts)))
    for n, text in enumerate(texts):
        assert_choices(tiny.reference, text, found[n], temperature=0)


def test_sampled_choices_have_each_texts_own_cuts_and_noise(tiny, texts):
    draws = [
        Sampling(
            temperature_B=np.asarray([temperature], np.float32),
            top_k_B=np.asarray([top_k], np.int32),
            top_p_B=np.asarray([top_p], np.float32),
            seed_B=np.asarray([7 * n], np.uint32),
        )
        for n, (temperature, top_k, top_p) in enumerate(DRAWS)
    ]
    found = dict(own_choices.choices_of(make_checkpoint(tiny), texts, draws, 4))
    for n, (temperature, top_k, top_p) in enumerate(DRAWS):
        draw = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": 7 * n}
        assert_choices(tiny.reference, texts[n], found[n], **draw)
    assert np.isneginf(found[1].given_score_BA).any(), "the cuts left every random token in: choose others"


def test_the_head_is_read_at_output_positions_alone(tiny, texts, monkeypatch):
    honest, sizes = own_choices.transformer.logits, []
    monkeypatch.setattr(
        own_choices.transformer, "logits", lambda *args: sizes.append(args[2].shape[:2]) or honest(*args)
    )
    cfg = dataclasses.replace(tiny.cfg, context_length=511)  # another model: nothing is traced yet
    tokens = jnp.zeros((2, 256), jnp.int32)
    own_choices.choices(tiny.params, cfg, tokens, jnp.asarray([200, 250]), jnp.asarray([4, 5]), None, num_outputs=5)
    assert sizes == [(2, 5)]
