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


def penalized(
    logits,
    text,
    *,
    num_prompt,
    ends=(),
    repetition_penalty=1.0,
    presence_penalty=0.0,
    frequency_penalty=0.0,
    min_tokens=0,
    logit_bias=None,
):
    """The logits after a text, changed token by token; `num_prompt` of the text's tokens are the prompt."""
    changed = list(map(float, logits))
    for token, bias in (logit_bias or {}).items():
        changed[token] += bias
    if len(text) - num_prompt < min_tokens:
        for token in ends:
            changed[token] = -np.inf
    for token in set(text):
        changed[token] *= repetition_penalty if changed[token] <= 0 else 1 / repetition_penalty
    for token in text[num_prompt:]:
        changed[token] -= frequency_penalty
    for token in set(text[num_prompt:]):
        changed[token] -= presence_penalty
    return np.array(changed)


def own_scores(model, text, *, penalties=None, **draw):
    """What the token after a text maximises; `penalties` are those of `penalized`."""
    logits = model.next_logits(text)
    return scores(logits if penalties is None else penalized(logits, text, **penalties), len(text), **draw)


def own_next(model, text, **how):
    """The token that plain decoding puts after a text."""
    return int(np.argmax(own_scores(model, text, **how)))
