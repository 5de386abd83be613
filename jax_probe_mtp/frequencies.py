"""Sampled outputs without a known seed: do the first tokens of many answers to one prompt follow the model's distribution?

With n answers and k classes (the most likely tokens one by one, all others together), the summed distance of observed and
true frequencies is above sqrt(2 (k ln 2 + ln(1 / q)) / n) with a probability of at most q, for any distribution and any n:
Bretagnolle-Huber-Carol (van der Vaart and Wellner, Weak Convergence and Empirical Processes, Proposition A.6.6).
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable

import jax.numpy as jnp
import numpy as np

from jax_probe_mtp import sampling
from jax_probe_mtp.checkpoint import Checkpoint
from jax_probe_mtp.exactness import logits_after
from jax_probe_mtp.foreign import Output
from jax_probe_mtp.prompts import Settings
from jax_probe_mtp.verdicts import DIVERGED, SAME, UNCHECKED, Verdict

FALSE_ALARM = 1e-3  # q: how often answers that are drawn rightly may fail, at most
MOST_CLASSES = 16
LEAST_EXPECTED = 5  # answers in each class but the last


@dataclasses.dataclass(frozen=True, kw_only=True)
class Distance:
    """How far observed frequencies are from a distribution.

    Attributes:
      distance: sum over the classes of |observed - expected|, 0 to 2.
      bound: what it stays below, but for a share `FALSE_ALARM` of samples that are drawn rightly.
      num_impossible: answers of probability 0.
    """

    distance: float
    bound: float
    num_impossible: int


def judge_frequencies(checkpoint: Checkpoint, outputs: Iterable[Output], settings: Settings) -> list[Verdict]:
    """A verdict for the answers to each prompt, as far as they share temperature and cuts; they may have any seeds.

    Args:
      checkpoint: the model.
      outputs: sampled independently of each other.
      settings: sampling of the outputs that have none of their own.
    """
    groups: dict[tuple[object, ...], list[Output]] = {}
    for output in outputs:
        cuts = (output.prompt.of(name, settings) for name in ("temperature", "top_k", "top_p"))
        groups.setdefault((tuple(output.prompt.token_ids), *cuts), []).append(output)
    return [_verdict(checkpoint, group, settings) for group in groups.values()]


def _verdict(checkpoint: Checkpoint, group: list[Output], settings: Settings) -> Verdict:
    prompt, tokens = group[0].prompt, [output.token_ids[0] for output in group if output.token_ids]
    says = {"id": f"{len(group)} answers to the prompt of {prompt.id}", "num_tokens": len(tokens)}
    says["category"] = group[0].category
    temperature = prompt.of("temperature", settings)
    errors = [output.error for output in group if output.error]
    if errors or not prompt.token_ids:
        return Verdict(kind=UNCHECKED, reason=errors[0] if errors else "the prompt is empty.", **says)  # type: ignore[arg-type]
    if not temperature > 0:
        return Verdict(kind=UNCHECKED, reason="greedy answers have no frequencies; state a temperature.", **says)  # type: ignore[arg-type]
    expected_V = distribution(
        checkpoint, prompt.token_ids, temperature, prompt.of("top_k", settings), prompt.of("top_p", settings)
    )
    found = distance(np.asarray(tokens), expected_V)
    line = f"distance {found.distance:.3f}, by chance at most {found.bound:.3f}"
    if found.num_impossible:
        kind, reason = DIVERGED, f"{found.num_impossible} begin with a token that the cuts leave out; {line}."
    elif found.bound >= 1:
        kind, reason = UNCHECKED, f"too few to tell; {line}."
    else:
        kind, reason = (SAME if found.distance <= found.bound else DIVERGED), f"{line}."
    return Verdict(kind=kind, reason=reason, num_differences=int(kind == DIVERGED), **says)  # type: ignore[arg-type]


def distribution(
    checkpoint: Checkpoint, prompt_ids: list[int], temperature: float, top_k: int, top_p: float
) -> np.ndarray:
    """What the first new token is drawn from, float64 [V]."""
    logits_1V = jnp.asarray(logits_after(checkpoint, prompt_ids))[None]
    scaled_1V = sampling.scale(logits_1V, jnp.asarray([temperature], jnp.float32))
    is_kept_1V = sampling.keep_likely(scaled_1V, jnp.asarray([top_k], jnp.int32), jnp.asarray([top_p], jnp.float32))
    kept_V = np.where(np.asarray(is_kept_1V[0]), np.asarray(scaled_1V[0], np.float64), -math.inf)
    weight_V = np.exp(kept_V - kept_V.max())
    return np.asarray(weight_V / weight_V.sum())


def distance(tokens: np.ndarray, expected_V: np.ndarray) -> Distance:
    """The distance of n drawn tokens, whole numbers [n], from a distribution."""
    n, count_of = len(tokens), Counter(tokens.tolist())
    if not n:
        return Distance(distance=math.inf, bound=math.inf, num_impossible=0)
    order = np.argsort(-expected_V, kind="stable")[: MOST_CLASSES - 1]
    alone = [int(token) for token in order if n * expected_V[token] >= LEAST_EXPECTED]
    expected = np.asarray([expected_V[token] for token in alone])
    observed = np.asarray([count_of[token] / n for token in alone])
    rest = abs(observed.sum() - expected.sum())  # of all other tokens: what the classes alone leave
    bound = math.sqrt(2 * ((len(alone) + 1) * math.log(2) + math.log(1 / FALSE_ALARM)) / n)
    is_impossible = [not 0 <= token < len(expected_V) or expected_V[token] == 0 for token in tokens.tolist()]
    return Distance(
        distance=float(np.abs(observed - expected).sum() + rest), bound=bound, num_impossible=sum(is_impossible)
    )
