"""Finds where two outputs of one prompt part, and judges whether rounding alone can have parted them."""

import dataclasses
import functools
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jax_probe_mtp.decoding.batch import bucket, make_batch
from jax_probe_mtp.decoding.penalties import Penalties, penalize, used
from jax_probe_mtp.decoding.request import Request
from jax_probe_mtp.decoding.settings import Prompt, Settings
from jax_probe_mtp.drafting.spec import PLAIN, parse_draft
from jax_probe_mtp.generation.answers import Generation
from jax_probe_mtp.model import sampling, transformer
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.params import Params

FLOAT32_TIE = 1e-4  # rounding differences between 1 and 30 rows reach 5.5e-5 on SmolLM2
OTHER_FRAMEWORK_TIE = 1e-3  # of another framework's float32, whose kernels round otherwise everywhere
BFLOAT16_TIE = 2  # steps of bfloat16
MANTISSA_BITS = {"float32": 23, "bfloat16": 7}


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """A place where an output is not plain decoding's.

    Attributes:
      position: index into the new tokens.
      plain_token: plain decoding's token there; None if its output ended before.
      other_token: the other output's; None if it ended before.
      plain_score: plain decoding's score of its own token: the logit, or where sampled logit / T plus noise. -inf where
        there is no token, or top-k and top-p leave it out.
      other_score: its score of the other token.
      tolerance: the largest gap that counts as a tie in the model's dtype; -inf where nothing does.
      step: distance of two neighbouring numbers of the model's dtype at the size of the best score.
    """

    position: int
    plain_token: int | None
    other_token: int | None
    plain_score: float
    other_score: float
    tolerance: float
    step: float

    @property
    def gap(self) -> float:
        """Gives the score of plain decoding's token less that of the other, below 0 where rounding chose otherwise here.

        Infinite where one output ended, or where a cut leaves one of the tokens out.
        """
        scores = self.plain_score, self.other_score
        return scores[0] - scores[1] if all(map(math.isfinite, scores)) else math.inf

    @property
    def is_tie(self) -> bool:
        """Says whether rounding alone may have chosen between the two."""
        return abs(self.gap) <= self.tolerance

    @property
    def kind(self) -> str:
        """Says `tie` or `diverged`."""
        return "tie" if self.is_tie else "diverged"

    def __str__(self) -> str:
        return (
            f"{self.kind} at new token {self.position}: plain {self.plain_token} ({self.plain_score:.6g}), "
            f"this {self.other_token} ({self.other_score:.6g}), gap {self.gap:.2e}, {self.gap / self.step:.4g} steps "
            + (f"(a tie up to {self.tolerance:.1e})" if self.tolerance >= 0 else "(nothing is a tie)")
        )


def compare_answers(
    checkpoint: Checkpoint,
    prompt: Prompt,
    settings: Settings,
    expected: Generation,
    got: Generation,
    float32_tie: float | None = None,
) -> Difference | None:
    """Finds the `first_difference` of what two decoders gave for one prompt.

    Args:
      checkpoint: the model of both.
      prompt: the prompt of both.
      settings: the settings of both.
      expected: plain decoding's output.
      got: the other output.
      float32_tie: as for `first_difference`.
    """
    if expected.token_ids == got.token_ids:
        return None
    request = request_of(checkpoint, prompt, settings)
    draw = request.sampling if prompt.of("temperature", settings) > 0 else None
    ids = prompt.token_ids, expected.token_ids, got.token_ids
    tie = FLOAT32_TIE if float32_tie is None else float32_tie
    return first_difference(checkpoint, *ids, draw, tie, request.penalties)


def request_of(checkpoint: Checkpoint, prompt: Prompt, settings: Settings) -> Request:
    """Checks a prompt, and says how its tokens are chosen, as one row that has all values of a draw, be it greedy."""
    plain, eos = parse_draft(PLAIN), checkpoint.eos_token_ids
    return make_batch(checkpoint.config, plain, [prompt], settings, eos_token_ids=eos, is_sampled=True).request


def first_difference(
    checkpoint: Checkpoint,
    prompt_ids: Sequence[int],
    plain_ids: Sequence[int],
    other_ids: Sequence[int],
    draw: sampling.Sampling | None = None,
    float32_tie: float = FLOAT32_TIE,
    penalties: Penalties | None = None,
) -> Difference | None:
    """Compares an output with plain decoding's and judges the first difference by plain decoding's own scores.

    Args:
      checkpoint: the model of both.
      prompt_ids: the prompt of both.
      plain_ids: new tokens of plain decoding.
      other_ids: new tokens of the other.
      draw: how tokens were sampled, one row; None for greedy.
      float32_tie: of float32 models.
      penalties: of the one row; None without any.

    Returns:
      None when all tokens are equal. What counts as a tie is said at `rounding`. Rounding cannot end a text early: there the
      gap is infinite.
    """
    if list(plain_ids) == list(other_ids):
        return None
    shared = _common_length(plain_ids, other_ids)
    plain_token, other_token = _at(plain_ids, shared), _at(other_ids, shared)
    score_V = _scores(checkpoint, prompt_ids, plain_ids[:shared], draw, penalties)
    plain_score, other_score = (
        -math.inf if token is None else float(score_V[token]) for token in (plain_token, other_token)
    )
    tolerance, step = rounding(checkpoint, float(np.max(score_V)), draw, float32_tie)
    return Difference(
        position=shared,
        plain_token=plain_token,
        other_token=other_token,
        plain_score=plain_score,
        other_score=other_score,
        tolerance=tolerance,
        step=step,
    )


def rounding(
    checkpoint: Checkpoint, best_score: float, draw: sampling.Sampling | None, float32_tie: float
) -> tuple[float, float]:
    """Gives the largest gap that counts as a tie, and the step of the model's dtype at the size of the best score.

    In bfloat16 two of its steps are a tie; in float32, whose sums are long beside its steps, `float32_tie`, divided by a
    temperature below 1.
    """
    dtype = str(checkpoint.params["embed"].dtype)
    step = 2.0 ** (math.floor(math.log2(max(abs(best_score), 1e-30))) - MANTISSA_BITS[dtype])
    if dtype == "bfloat16":
        return BFLOAT16_TIE * step, step
    lowest_temperature = 1.0 if draw is None else min(1.0, float(draw.temperature_B[0]))
    return float32_tie / (lowest_temperature or 1.0), step  # scores are logits / T, and so is their rounding


def _scores(
    checkpoint: Checkpoint,
    prompt_ids: Sequence[int],
    new_ids: Sequence[int],
    draw: sampling.Sampling | None,
    penalties: Penalties | None,
) -> np.ndarray:
    """Gives the scores that the token after a text maximises, float32 [V], by one pass over the whole text."""
    logits_1V = penalized_logits(checkpoint, prompt_ids, new_ids, penalties)
    return np.asarray(sampling.scores(logits_1V, jnp.asarray([len(prompt_ids) + len(new_ids)]), draw)[0])


def penalized_logits(
    checkpoint: Checkpoint, prompt_ids: Sequence[int], new_ids: Sequence[int], penalties: Penalties | None
) -> jax.Array:
    """Gives the logits of what comes after a text with the penalties of its one row, float32 [1, V]."""
    tokens = [*prompt_ids, *new_ids]
    logits_1V = jnp.asarray(logits_after(checkpoint, tokens))[None]
    if penalties is None:
        return logits_1V
    lengths = jnp.asarray([len(prompt_ids)]), jnp.asarray([len(tokens)])
    return penalize(logits_1V, penalties, used(jnp.asarray([tokens]), *lengths, logits_1V.shape[1]))


def logits_after(checkpoint: Checkpoint, tokens: Sequence[int]) -> np.ndarray:
    """Gives the logits of what comes after a text, float32 [V], by one pass over it."""
    padded = np.zeros((1, bucket(len(tokens))), np.int32)
    padded[0, : len(tokens)] = tokens
    logits_1V = _logits_at(checkpoint.params, checkpoint.config, jnp.asarray(padded), jnp.int32(len(tokens) - 1))
    return np.asarray(logits_1V[0])


@functools.partial(jax.jit, static_argnames="cfg")
def _logits_at(params: Params, cfg: ModelConfig, tokens_BT: jax.Array, position: jax.Array) -> jax.Array:
    hidden_BTD = transformer.full_hidden(params, cfg, tokens_BT)
    return transformer.logits(params, cfg, jax.lax.dynamic_slice_in_dim(hidden_BTD, position, 1, axis=1))[:, 0]


def _common_length(a: Sequence[int], b: Sequence[int]) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _at(ids: Sequence[int], index: int) -> int | None:
    return ids[index] if index < len(ids) else None
