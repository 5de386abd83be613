"""Chooses the tree that pays here: times decode calls of a few sizes, against the tokens each can be expected to give.

A call of more rows gives more tokens and takes longer. The time is measured, on the checkpoint's own parameters, since it
depends on the device, the batch and the cache. The tokens, tau, are a prior: what Qwen2.5-Coder-0.5B-Instruct gave on 26
Spec-Bench questions, greedily, with the paper's mask (docs/fidelity.md): 1.355, 1.503 and 1.573 with 10, 30 and 60 rows.
Other models accept otherwise: SmolLM2-135M-Instruct gave 1.147, 1.237 and 1.317, the paper's 8B models 1.63 with 30 rows
and 1.71 with 60; a tuned mask gives more (docs/masks.md). So a tree may gain less than expected, or plain decoding be chosen
where a tree would pay; the tokens stay plain decoding's.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax

from jax_probe_mtp.decoding.batch import SMALLEST_BUCKET
from jax_probe_mtp.decoding.config import DecodeConfig
from jax_probe_mtp.decoding.settings import Settings
from jax_probe_mtp.drafting.source import DraftSource
from jax_probe_mtp.drafting.spec import DEFAULT_DRAFT, PLAIN, draft_name, parse_draft, with_shape
from jax_probe_mtp.errors import one_line
from jax_probe_mtp.files.whole_files import write_json
from jax_probe_mtp.measuring import call_cost
from jax_probe_mtp.measuring.environment import environment
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.fingerprint import model_identity

FORMAT = 1  # of the files
SHAPES = {10: "4", 30: "14", 60: "29"}  # rows of a call -> shape of the default draft source
PRIOR_TAU = {1: 1.0, 10: 1.355, 30: 1.503, 60: 1.573}  # rows of a call -> tokens it is expected to give; 1 is plain
CALLS = 16  # of a timed loop
REPEATS = 3


@dataclasses.dataclass(frozen=True, kw_only=True)
class Choice:
    """What to draft with, and why; every mapping is by rows of a call, 1 for plain decoding.

    Attributes:
      source: the tree with the best expectation; plain decoding where none is above 1.
      costs: milliseconds a call; infinite where it did not fit the device's memory. What could not pay is left out.
      prior: tau, tokens that a call is expected to give.
      expected: speed over plain decoding's, tau * cost of plain decoding / cost.
      is_cached: True when the costs were read, not measured now.
    """

    source: DraftSource
    costs: Mapping[int, float]
    prior: Mapping[int, float]
    expected: Mapping[int, float]
    is_cached: bool

    def __str__(self) -> str:
        rows = self.source.num_rows
        gain = f"expected to be {self.expected[rows]:.2f} x as fast as plain decoding" if rows > 1 else "no tree pays"
        trees = ", ".join(f"{rows} rows {self._says(rows)}" for rows in self.prior if rows > 1)
        costs = "cached" if self.is_cached else "fresh"
        return f"{draft_name(self.source)}, {gain} ({costs}: 1 row {self.costs[1]:.2f} ms a call, {trees})"

    def _says(self, rows: int) -> str:
        if rows not in self.costs:
            return "skipped"
        cost, expected = self.costs[rows], self.expected[rows]
        return f"{cost:.2f} ms for {expected:.2f} x" if math.isfinite(cost) else "do not fit"


def choose(
    checkpoint: Checkpoint,
    settings: Settings,
    *,
    template: DraftSource | None = None,
    folder: Path | None = None,
    say: Callable[[str], None] = lambda line: None,
) -> Choice:
    """Picks the tree with the best expected tokens per second for these settings on this device, or plain decoding.

    Args:
      checkpoint: the model; its own parameters are what is timed.
      settings: `batch_size` rows and `capacity` slots, which has to be given, are what is timed, greedy or sampled.
      template: gives everything but the tree, such as the masks' first value; the default draft source when None.
      folder: where costs are kept for the next time, a file for all that they depend on; None keeps nothing.
      say: is given a line before measuring starts, and one where the costs cannot be kept.

    Raises:
      ValueError: if the settings have no capacity, or one of the values makes no sense.
    """
    capacity, is_sampled = settings.capacity, settings.temperature > 0
    if capacity is None:
        raise ValueError("settings have no capacity; give the cache slots that a row will have, such as capacity=512.")
    for name, value in (("batch_size", settings.batch_size), ("capacity", capacity)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    if not math.isfinite(settings.temperature) or settings.temperature < 0:
        raise ValueError(f"temperature must be 0 (greedy) or more, got {settings.temperature}.")
    sources = _sources(parse_draft(DEFAULT_DRAFT) if template is None else template, checkpoint.config)
    prior = {rows: PRIOR_TAU[rows] for rows in sources}
    decode_cfg = DecodeConfig(capacity=max(capacity, SMALLEST_BUCKET), is_exact=settings.is_exact)
    has_cuts = is_sampled and (settings.top_k > 0 or settings.top_p < 1)
    depends_on = _environment(checkpoint) | {
        "batch_size": settings.batch_size,
        "decode_cfg": repr(decode_cfg),
        "is_sampled": is_sampled,
        "has_cuts": has_cuts,
        "drafts": [repr(source) for source in sources.values()],
    }
    path = folder / f"{_digest(depends_on)}.json" if folder else None

    costs = _read(path, depends_on, prior) if path else None
    is_cached = costs is not None
    if costs is None:
        rows_of_calls = ", ".join(map(str, prior))
        say(
            f"choosing a tree: timing calls of {rows_of_calls} rows, as far as they can pay; once for this device and model"
        )
        costs = {}
        while (rows := next_to_measure(costs, prior)) is not None:
            costs[rows] = _time_call(checkpoint, sources[rows], decode_cfg, settings, has_cuts=has_cuts)
        if path:
            _keep(path, depends_on, costs, say)
    rows, expected = pick(costs, prior)
    return Choice(source=sources[rows], costs=costs, prior=prior, expected=expected, is_cached=is_cached)


def pick(costs: Mapping[int, float], prior: Mapping[int, float]) -> tuple[int, dict[int, float]]:
    """Picks the rows of a call with the best expected speed; gives every expected speed over plain decoding's as well.

    1, plain decoding, is picked where nothing is above it; among equals the fewest rows.

    Raises:
      ValueError: if plain decoding has no cost, a cost is not above 0, or one has no tau.
    """
    if 1 not in costs or not math.isfinite(costs[1]):
        raise ValueError(f"plain decoding, 1 row, needs a cost to compare with, got {dict(costs)}.")
    if not all(cost > 0 for cost in costs.values()) or not set(costs) <= set(prior):
        raise ValueError(f"each cost must be above 0 and have one of the taus {dict(prior)}, got {dict(costs)}.")
    expected = {rows: prior[rows] * costs[1] / cost for rows, cost in sorted(costs.items())}
    return max(expected, key=lambda rows: expected[rows]), expected  # the first of equals, so 1 row before any tree


def next_to_measure(costs: Mapping[int, float], prior: Mapping[int, float]) -> int | None:
    """Gives the fewest rows without a cost; None when all have one, or those left cannot pay.

    More rows cost no less, so where the last cost is plain decoding's times the largest tau left, the rest gain nothing.
    """
    left = [rows for rows in sorted(prior) if rows not in costs]
    if not left or (costs and costs[max(costs)] >= costs[1] * max(prior[rows] for rows in left)):
        return None
    return left[0]


def _sources(template: DraftSource, cfg: ModelConfig) -> dict[int, DraftSource]:
    """Maps rows of a call to a draft source, for all that the vocabulary has candidates for."""
    sources = {1: parse_draft(PLAIN)}
    for rows, shape in SHAPES.items():
        source = with_shape(template, shape)
        with contextlib.suppress(ValueError):
            source.check(cfg)
            sources[rows] = source
    return sources


def _time_call(
    checkpoint: Checkpoint, source: DraftSource, decode_cfg: DecodeConfig, settings: Settings, *, has_cuts: bool
) -> float:
    """Times a call in milliseconds, with the cache half full; infinite for a tree that does not fit the device's memory."""
    try:
        return call_cost.time_step(
            checkpoint.params,
            checkpoint.config,
            source,
            decode_cfg,
            batch_size=settings.batch_size,
            in_use=decode_cfg.capacity // 2,
            calls=CALLS,
            repeats=REPEATS,
            temperature=settings.temperature,
            top_p=0.95 if has_cuts else 1.0,  # a cut costs the same at any value, by top-k or by top-p
        ).median_ms
    except jax.errors.JaxRuntimeError as error:
        if source.num_rows == 1 or "RESOURCE_EXHAUSTED" not in str(error):
            raise
        return math.inf


def _environment(checkpoint: Checkpoint) -> dict[str, Any]:
    made_with = environment(checkpoint.number_format)
    names = ("jax_probe_mtp", "jax", "jaxlib", "backend", "device", "dtype")
    return {name: made_with[name] for name in names} | {"model": model_identity(checkpoint)["fingerprint"]}


def _digest(depends_on: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()[:32]


def _read(path: Path, depends_on: dict[str, Any], prior: Mapping[int, float]) -> dict[int, float] | None:
    """Reads the costs of an earlier run; None where there are none, or the file is not what `_keep` wrote."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
        if record["format"] != FORMAT or record["depends_on"] != depends_on:
            return None
        costs = {int(rows): float(cost) for rows, cost in record["costs"].items()}
        pick(costs, prior)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, OverflowError, RecursionError):
        return None
    return costs if next_to_measure(costs, prior) is None and all(map(math.isfinite, costs.values())) else None


def _keep(path: Path, depends_on: dict[str, Any], costs: dict[int, float], say: Callable[[str], None]) -> None:
    """Writes the costs, but for those of a day when memory was short."""
    if not all(map(math.isfinite, costs.values())):
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"format": FORMAT, "depends_on": depends_on, "costs": costs})
    except OSError as error:
        say(f"what a call costs is not kept: {one_line(error)}")
