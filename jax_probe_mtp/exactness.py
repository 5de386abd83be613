"""Where two outputs of one prompt part, and whether rounding alone can have parted them."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jax_probe_mtp import model, sampling
from jax_probe_mtp.checkpoint import Checkpoint
from jax_probe_mtp.config import ModelConfig
from jax_probe_mtp.generation import Decoder, Generation, Prompt, Settings
from jax_probe_mtp.newcomer import make_newcomer
from jax_probe_mtp.params import Params
from jax_probe_mtp.request import bucket

FLOAT32_TIE = 1e-4  # rounding differences between 1 and 30 rows reach 5.5e-5 on SmolLM2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """The first place where an output is not plain decoding's.

    Attributes:
      position: index into the new tokens.
      plain_token: plain decoding's token there; None if its output ended before.
      other_token: the other output's; None if it ended before.
      gap: plain decoding's score of its own token less that of the other, below 0 where rounding chose
        otherwise here; infinite where one output ended, or where top-k or top-p leave one of the tokens out.
      tolerance: the largest gap that counts as a tie in the model's dtype.
    """

    position: int
    plain_token: int | None
    other_token: int | None
    gap: float
    tolerance: float

    @property
    def is_tie(self) -> bool:
        """True when rounding alone may have chosen between the two."""
        return abs(self.gap) <= self.tolerance

    @property
    def kind(self) -> str:
        """`tie` or `diverged`."""
        return "tie" if self.is_tie else "diverged"

    def __str__(self) -> str:
        return (
            f"{self.kind} at new token {self.position}: plain {self.plain_token}, this {self.other_token}, "
            f"gap {self.gap:.2e} (a tie up to {self.tolerance:.0e})"
        )


def compare(
    plain: Decoder, prompt: Prompt, settings: Settings, expected: Generation, got: Generation
) -> Difference | None:
    """`first_difference` of what two decoders gave for one prompt.

    Args:
      plain: the decoder that gave `expected`, plainly.
      prompt: the prompt of both.
      settings: the settings of both.
      expected: plain decoding's output.
      got: the other output.
    """
    if expected.token_ids == got.token_ids:
        return None
    draw = None
    if prompt.of("temperature", settings) > 0:
        draw = make_newcomer(plain.checkpoint, plain.draft_cfg, prompt, settings)[1].sampling
    return first_difference(plain.checkpoint, prompt.token_ids, expected.token_ids, got.token_ids, draw)


def first_difference(
    checkpoint: Checkpoint,
    prompt_ids: Sequence[int],
    plain_ids: Sequence[int],
    other_ids: Sequence[int],
    draw: sampling.Sampling | None = None,
) -> Difference | None:
    """Compares an output with plain decoding's and judges the first difference by plain decoding's own scores.

    Args:
      checkpoint: the model of both.
      prompt_ids: the prompt of both.
      plain_ids: new tokens of plain decoding.
      other_ids: new tokens of the other.
      draw: how tokens were sampled, one row; None for greedy.

    Returns:
      None when all tokens are equal. In float32 a gap up to `FLOAT32_TIE`, divided by a temperature below 1, is a tie; in
      bfloat16 one up to two of its steps at the size of the best score. Rounding cannot end a text early: there the gap
      is infinite.
    """
    if list(plain_ids) == list(other_ids):
        return None
    shared = _common_length(plain_ids, other_ids)
    plain_token, other_token = _at(plain_ids, shared), _at(other_ids, shared)
    score_V = _scores(checkpoint, [*prompt_ids, *plain_ids[:shared]], draw)
    scores_of_both = [-math.inf if token is None else float(score_V[token]) for token in (plain_token, other_token)]
    gap = scores_of_both[0] - scores_of_both[1] if np.isfinite(scores_of_both).all() else math.inf
    if checkpoint.params["embed"].dtype == jnp.float32:
        lowest_temperature = 1.0 if draw is None else min(1.0, float(draw.temperature_B[0]))
        tolerance = FLOAT32_TIE / (lowest_temperature or 1.0)  # scores are logits / T, and so is their rounding
    else:
        tolerance = 2 * 2.0 ** (math.floor(math.log2(max(abs(float(np.max(score_V))), 1e-30))) - 7)
    return Difference(
        position=shared,
        plain_token=plain_token,
        other_token=other_token,
        gap=gap,
        tolerance=tolerance,
    )


def _scores(checkpoint: Checkpoint, tokens: list[int], draw: sampling.Sampling | None) -> np.ndarray:
    """What the token after `tokens` maximises, float32 [V], by one pass over the whole text."""

    padded = np.zeros((1, bucket(len(tokens))), np.int32)
    padded[0, : len(tokens)] = tokens
    logits_BV = _logits_at(checkpoint.params, checkpoint.config, jnp.asarray(padded), jnp.int32(len(tokens) - 1))
    return np.asarray(sampling.scores(logits_BV, jnp.asarray([len(tokens)]), draw)[0])


@functools.partial(jax.jit, static_argnames="cfg")
def _logits_at(params: Params, cfg: ModelConfig, tokens_BT: jax.Array, position: jax.Array) -> jax.Array:
    hidden_BTD = model.full_hidden(params, cfg, tokens_BT)
    return model.logits(params, cfg, jax.lax.dynamic_slice_in_dim(hidden_BTD, position, 1, axis=1))[:, 0]


def _common_length(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _at(ids: Sequence[int], index: int) -> int | None:
    return ids[index] if index < len(ids) else None
