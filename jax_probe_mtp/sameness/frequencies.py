"""Judges sampled outputs without a known seed: do many answers to one prompt begin as the model's distribution says?

With n answers and k classes (the most likely tokens one by one, all others together), the summed distance of observed and
true frequencies is above sqrt(2 (k ln 2 + ln(1 / q)) / n) with a probability of at most q, for any distribution and any n:
Bretagnolle-Huber-Carol (van der Vaart and Wellner, Weak Convergence and Empirical Processes, Proposition A.6.6).
"""

import dataclasses
import math
from collections import Counter
from collections.abc import Iterable, Sequence

import numpy as np

from jax_probe_mtp.decoding.penalties import Penalties
from jax_probe_mtp.decoding.settings import PENALTIES, Settings
from jax_probe_mtp.errors import one_line
from jax_probe_mtp.model import sampling
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.sameness.first_difference import penalized_logits
from jax_probe_mtp.sameness.given_outputs import how_drawn
from jax_probe_mtp.sameness.output import Output
from jax_probe_mtp.sameness.verdicts import DIVERGED, INCOMPLETE, SAME, UNCHECKED, Verdict

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
    """Judges together the answers to each prompt that share temperature, cuts and penalties; they may have any seeds.

    Args:
      checkpoint: the model.
      outputs: sampled independently of each other.
      settings: sampling of the outputs that have none of their own.
    """
    groups: dict[tuple[object, ...], _Group] = {}
    for output in outputs:
        own = (str(output.prompt.of(name, settings)) for name in ("temperature", "top_k", "top_p", *PENALTIES))
        key = (output.error, tuple(output.prompt.token_ids), *own)
        group = groups.setdefault(key, _Group(first=dataclasses.replace(output, token_ids=[])))
        group.first_tokens.extend(output.token_ids[:1])
        group.num_empty += not output.token_ids
    return [_verdict(checkpoint, group, settings) for group in groups.values()]


@dataclasses.dataclass
class _Group:
    """Answers to one prompt.

    Attributes:
      first: the first of them, without its tokens.
      first_tokens: of all that are not empty.
      num_empty: those that are.
    """

    first: Output
    first_tokens: list[int] = dataclasses.field(default_factory=list)
    num_empty: int = 0


def _verdict(checkpoint: Checkpoint, group: _Group, settings: Settings) -> Verdict:
    prompt, num_answers = group.first.prompt, len(group.first_tokens) + group.num_empty

    def say(kind: str, reason: str) -> Verdict:
        return Verdict(
            id=f"{num_answers} answers to the prompt of {prompt.id}",
            kind=kind,
            num_tokens=len(group.first_tokens),
            num_compared=0,  # one by one they were not
            reason=reason,
            category=group.first.category,
        )

    try:
        request = how_drawn(checkpoint, group.first, settings, 1)
    except ValueError as error:
        return say(UNCHECKED, one_line(error))
    draw = request.sampling
    if not draw.temperature_B[0] > 0:
        return say(UNCHECKED, "greedy answers have no frequencies; state a temperature.")
    if group.num_empty:
        return say(INCOMPLETE, f"{group.num_empty} are empty.")
    expected_V = distribution(checkpoint, prompt.token_ids, draw, request.penalties)
    found = distance(group.first_tokens, expected_V)
    line = f"distance {found.distance:.3f}, by chance at most {found.bound:.3f}"
    if found.num_impossible:
        return say(DIVERGED, f"{found.num_impossible} begin with a token that cuts or min_tokens leave out; {line}.")
    if found.bound >= 1:
        return say(UNCHECKED, f"too few to tell; {line}.")
    return say(SAME if found.distance <= found.bound else DIVERGED, f"{line}.")


def distribution(
    checkpoint: Checkpoint, prompt_ids: Sequence[int], draw: sampling.Sampling, penalties: Penalties | None = None
) -> np.ndarray:
    """Gives what the first new token is drawn from, float64 [V]; `draw` is of one row, its seed is not read."""
    logits_1V = penalized_logits(checkpoint, prompt_ids, [], penalties)
    scaled_1V = sampling.scale(logits_1V, draw.temperature_B)
    is_kept_1V = sampling.keep_likely(scaled_1V, draw.top_k_B, draw.top_p_B)
    kept_V = np.where(np.asarray(is_kept_1V[0]), np.asarray(scaled_1V[0], np.float64), -math.inf)
    weight_V = np.exp(kept_V - kept_V.max())
    return np.asarray(weight_V / weight_V.sum())


def distance(tokens: Sequence[int], expected_V: np.ndarray) -> Distance:
    """Measures how far drawn tokens, at least one, are from a distribution."""
    n, count_of = len(tokens), Counter(tokens)
    order = np.argsort(-expected_V, kind="stable")[: MOST_CLASSES - 1]
    alone = [int(token) for token in order if n * expected_V[token] >= LEAST_EXPECTED]
    expected = np.asarray([expected_V[token] for token in alone])
    observed = np.asarray([count_of[token] / n for token in alone])
    rest = abs(observed.sum() - expected.sum())  # of all other tokens: what the classes alone leave
    bound = math.sqrt(2 * ((len(alone) + 1) * math.log(2) + math.log(1 / FALSE_ALARM)) / n)
    impossible = (token for token in count_of if not 0 <= token < len(expected_V) or expected_V[token] == 0)
    return Distance(
        distance=float(np.abs(observed - expected).sum() + rest),
        bound=bound,
        num_impossible=sum(count_of[token] for token in impossible),
    )
