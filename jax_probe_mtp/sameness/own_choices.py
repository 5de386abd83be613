"""Finds what the model would have said at every place of a given output: one pass over each text, not token by token."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from jax_probe_mtp.decoding.batch import bucket
from jax_probe_mtp.decoding.penalties import Penalties, penalize, used
from jax_probe_mtp.model import sampling, transformer
from jax_probe_mtp.model.cache import allocate
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.params import Params
from jax_probe_mtp.model.sampling import Sampling
from jax_probe_mtp.sameness.token_scores import TokenScores, nothing_scored, token_scores

MIN_CHUNK = 128  # tokens of each text that enter the model at a time
MIN_ROWS = 512  # of all texts together: a GPU takes as long for fewer
HEAD_ROWS = 256  # rows of logits, [rows, V], that are in memory at a time


class Choices(flax.struct.PyTreeNode, kw_only=True):
    """The model's own choice at each of A answer positions, and how the given token compares.

    Attributes:
      best_BA: int32 [B, A], the token that plain decoding puts there.
      best_score_BA: float32 [B, A], its score (`sampling.scores`: the logit of a greedy row).
      given_score_BA: float32 [B, A], the score of the token that is there; -inf where the cuts leave it out.
      given: [B, A], how the token that is there fits the model's distributions; None where nobody asked.
    """

    best_BA: jax.Array
    best_score_BA: jax.Array
    given_score_BA: jax.Array
    given: TokenScores | None = None


@functools.partial(jax.jit, static_argnames=("cfg", "num_outputs", "is_scored", "is_noisy", "temperatures"))
def choices(
    params: Params,
    cfg: ModelConfig,
    token_BT: jax.Array,
    prompt_length_B: jax.Array,
    output_length_B: jax.Array,
    draw: Sampling | None,
    penalties: Penalties | None = None,
    *,
    num_outputs: int,
    is_scored: bool = False,
    is_noisy: bool = True,
    temperatures: tuple[float, ...] = (),
) -> Choices:
    """Passes over given texts once, and reads the head at output positions alone.

    Args:
      params: the tree of `abstract_params(cfg)`.
      cfg: the model; static.
      token_BT: int32 [B, T], prompt and output, padded on the right.
      prompt_length_B: int32 [B], at least 1.
      output_length_B: int32 [B]; what is behind it in the result means nothing.
      draw: how the rows were sampled; None for greedy.
      penalties: of the rows; None where none has any.
      num_outputs: A, at least the longest output; static.
      is_scored: whether the given tokens are scored as well; static.
      is_noisy: False where nobody knows the seeds of draws: the model's own choice is then its best token; static.
      temperatures: others at which they are scored; static.
    """
    B, T = token_BT.shape
    dtype = params["embed"].dtype
    cache = allocate(cfg, batch_size=B, capacity=0, scratch=T, dtype=dtype)
    num_tokens = jnp.max(prompt_length_B + output_length_B) - 1
    nothing_BTD = jnp.zeros((B, T, cfg.width), dtype)
    chunk = min(max(MIN_ROWS // B, MIN_CHUNK), T)
    _, hidden_BTD = transformer.read_text(
        params, cfg, token_BT, cache, num_tokens, chunk, transformer.keep_hidden, nothing_BTD
    )

    place_1A = jnp.arange(num_outputs)[None]
    place_BA = prompt_length_B[:, None] + place_1A  # of the given tokens; each is chosen one place before
    given_BA = jnp.take_along_axis(token_BT, place_BA, axis=1, mode="clip")
    hidden_BAD = jnp.take_along_axis(hidden_BTD, place_BA[..., None] - 1, axis=1, mode="clip")
    rows = min(max(HEAD_ROWS // B, 1), num_outputs)
    score = functools.partial(token_scores, temperatures=temperatures)

    def judge(i: jax.Array, found: Choices) -> Choices:
        first = jnp.minimum(i * rows, num_outputs - rows)  # the last rows may overlap the ones before

        def cut(values: jax.Array) -> jax.Array:
            return jax.lax.dynamic_slice_in_dim(values, first, rows, axis=1)

        logits_BRV = transformer.logits(params, cfg, cut(hidden_BAD))
        if penalties is not None:

            def penalized(logits_BV: jax.Array, place_B: jax.Array) -> jax.Array:
                return penalize(logits_BV, penalties, used(token_BT, prompt_length_B, place_B, cfg.vocab_size))

            logits_BRV = jax.vmap(penalized, in_axes=(1, 1), out_axes=1)(logits_BRV, cut(place_BA))
        score_BRV = jax.vmap(sampling.scores, in_axes=(1, 1, None), out_axes=1)(
            logits_BRV, cut(place_BA), draw if is_noisy else None
        )
        here = Choices(
            best_BA=jnp.argmax(score_BRV, axis=-1).astype(jnp.int32),
            best_score_BA=jnp.max(score_BRV, axis=-1),
            given_score_BA=jnp.take_along_axis(score_BRV, cut(given_BA)[..., None], axis=-1)[..., 0],
            given=jax.vmap(score, in_axes=(1, 1, None), out_axes=1)(logits_BRV, cut(given_BA), draw)
            if is_scored
            else None,
        )
        return jax.tree.map(
            lambda whole, part: jax.lax.dynamic_update_slice_in_dim(whole, part, first, axis=1), found, here
        )

    nothing_BA = jnp.zeros(given_BA.shape, jnp.float32)
    nothing = Choices(
        best_BA=given_BA * 0,
        best_score_BA=nothing_BA,
        given_score_BA=nothing_BA,
        given=nothing_scored(given_BA.shape, len(temperatures)) if is_scored else None,
    )
    return jax.lax.fori_loop(0, (jnp.max(output_length_B) + rows - 1) // rows, judge, nothing)


def choices_of(
    checkpoint: Checkpoint,
    texts: Sequence[tuple[Sequence[int], Sequence[int]]],
    draws: Sequence[Sampling] | None,
    batch_size: int,
    penalties_of: Callable[[Sequence[int]], Penalties] | None = None,
    *,
    is_scored: bool = False,
    is_noisy: bool = True,
    temperatures: tuple[float, ...] = (),
) -> Iterator[tuple[int, Choices]]:
    """Gives the `choices` of any number of texts, those of like lengths together.

    Args:
      checkpoint: the model.
      texts: prompt and output of each, both of at least one token.
      draws: how each was sampled, of one row; None where all are greedy.
      batch_size: B, texts of a pass.
      penalties_of: (numbers of texts) -> their penalties, a row each; None where none has any.
      is_scored: whether the given tokens are scored as well.
      is_noisy: False where nobody knows the seeds of draws.
      temperatures: others at which they are scored.

    Returns:
      An iterator over (number of the text, its choices as NumPy arrays [A], A the length of its output), in any order.
    """
    order = sorted(range(len(texts)), key=lambda n: len(texts[n][0]) + len(texts[n][1]))
    for first in range(0, len(order), batch_size):
        numbers = order[first : first + batch_size]
        idle = [numbers[0]] * (batch_size - len(numbers))
        rows = [*numbers, *idle]
        draw = None if draws is None else jax.tree.map(lambda *row: np.concatenate(row), *(draws[n] for n in rows))
        penalties = None if penalties_of is None else penalties_of(rows)
        pairs = [texts[n] for n in rows]
        asked: dict[str, Any] = {"is_scored": is_scored, "is_noisy": is_noisy, "temperatures": temperatures}
        found = jax.device_get(_pass(checkpoint, pairs, draw, penalties, asked))
        for row, n in enumerate(numbers):
            size = len(texts[n][1])
            yield n, jax.tree.map(lambda values, row=row, size=size: values[row, :size], found)


def _pass(
    checkpoint: Checkpoint, texts: list[Any], draw: Sampling | None, penalties: Penalties | None, asked: dict[str, Any]
) -> Choices:
    lengths = np.asarray([(len(prompt), len(output)) for prompt, output in texts], np.int32)
    token_BT = np.zeros((len(texts), bucket(int(lengths.sum(1).max()))), np.int32)
    for row, (prompt, output) in enumerate(texts):
        token_BT[row, : lengths[row].sum()] = [*prompt, *output]
    return choices(
        checkpoint.params,
        checkpoint.config,
        token_BT,
        lengths[:, 0],
        lengths[:, 1],
        draw,
        penalties,
        num_outputs=bucket(int(lengths[:, 1].max())),
        **asked,
    )
