"""Where two outputs of one prompt part, and whether rounding alone can have parted them."""

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from jax_probe_mtp import model, sampling
from jax_probe_mtp.checkpoint import Checkpoint
from jax_probe_mtp.request import bucket

FLOAT32_TIE = 1e-4  # rounding differences between 1 and 30 rows reach 5.5e-5 on SmolLM2


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """The first place where an output is not plain decoding's.

    Attributes:
      position: index into the new tokens.
      plain_token: plain decoding's token there; None if its output ended before.
      other_token: the other output's; None if it ended before.
      gap: plain decoding's best score less its second best there.
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
        return self.gap <= self.tolerance

    def __str__(self) -> str:
        kind = "tie" if self.is_tie else "diverged"
        return (
            f"{kind} at new token {self.position}: plain {self.plain_token}, this {self.other_token}, "
            f"top-two gap {self.gap:.2e} (tie up to {self.tolerance:.0e})"
        )


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
      None when all tokens are equal. In float32 a gap up to `FLOAT32_TIE` is a tie; in bfloat16 one up to two of its
      steps at the size of the best score.
    """
    if list(plain_ids) == list(other_ids):
        return None
    shared = sum(1 for _ in _common_prefix(plain_ids, other_ids))
    tokens = [*prompt_ids, *plain_ids[:shared]]
    padded = np.zeros((1, bucket(len(tokens))), np.int32)
    padded[0, : len(tokens)] = tokens
    logits = jax.jit(model.full_logits, static_argnums=1)(checkpoint.params, checkpoint.config, jnp.asarray(padded))
    score_V = sampling.scores(logits[:, len(tokens) - 1], jnp.asarray([len(tokens)]), draw)[0]
    best, second = np.sort(np.asarray(score_V))[:-3:-1]
    is_float32 = checkpoint.params["embed"].dtype == jnp.float32
    bfloat16_step = 2.0 ** (math.floor(math.log2(max(abs(float(best)), 1e-30))) - 7)
    return Difference(
        position=shared,
        plain_token=_at(plain_ids, shared),
        other_token=_at(other_ids, shared),
        gap=float(best - second),
        tolerance=FLOAT32_TIE if is_float32 else 2 * bfloat16_step,
    )


def _common_prefix(a: Sequence[int], b: Sequence[int]):  # type: ignore[no-untyped-def]
    for x, y in zip(a, b, strict=False):
        if x != y:
            return
        yield x


def _at(ids: Sequence[int], index: int) -> int | None:
    return ids[index] if index < len(ids) else None
