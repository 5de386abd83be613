"""The next token: its noise and its cuts by their definitions, by sorting."""

import functools

import jax
import numpy as np


@functools.cache
def noise(seed, position, size):
    """The noise of one position, by its definition."""
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), position)
    return np.asarray(jax.random.gumbel(key, (size,), np.float32), np.float64)


def scores(logits, position, *, temperature=0.0, top_k=0, top_p=1.0, seed=0):
    """What the next token maximises, by sorting."""
    if temperature == 0:
        return logits
    scaled = logits / temperature
    order = np.argsort(-scaled, kind="stable")
    if top_k:
        order = order[:top_k]
    mass = np.exp(scaled[order] - scaled.max())
    mass /= mass.sum()
    if top_p < 1:
        order = order[: np.searchsorted(np.cumsum(mass), top_p) + 1]
    kept = np.full(len(logits), -np.inf)
    kept[order] = (scaled + noise(seed, position, len(logits)))[order]
    return kept


def own_next(model, text, **draw):
    """The token that plain decoding puts after a text."""
    return int(np.argmax(scores(model.next_logits(text), len(text), **draw)))
