"""Estimates how much device memory a run takes, before anything is loaded: weights, cache and logits, a device."""

import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp
import psutil

from jax_probe_mtp.drafting.shown import Model, Prompts
from jax_probe_mtp.drafting.source import DraftSource, SourceState
from jax_probe_mtp.model.config import TENSOR, ModelConfig
from jax_probe_mtp.model.params import Params, abstract_params, partition_specs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes on each device.

    Attributes:
      weights: of the device's part of the parameters.
      per_row: of one batch row: its cache, its logits of a call in float32 over the device's part of the vocabulary, what the
        draft source keeps.
      rows: batch rows of the device.
      shared: of what is kept for all rows together: by the draft source, and prefixes of prompts.
    """

    weights: int
    per_row: int
    rows: int
    shared: int = 0

    @property
    def total(self) -> int:
        """Sums up what has to fit; a program's temporaries come on top."""
        return self.weights + self.shared + self.per_row * self.rows

    def __str__(self) -> str:
        shared = f" + shared {_gib(self.shared)}" if self.shared else ""
        return f"weights {_gib(self.weights)}{shared} + {self.rows} rows of {_gib(self.per_row)} = {_gib(self.total)} a device"


def estimate(
    cfg: ModelConfig,
    source: DraftSource,
    *,
    dtype: str,
    weights: str | None = None,
    batch_size: int,
    capacity: int,
    num_top: int = 0,
    is_penalized: bool = False,
    prefix_slots: int = 0,
    data: int = 1,
    tensor: int = 1,
) -> Estimate:
    """Estimates the device memory of a run.

    Args:
      cfg: the model.
      source: where drafts come from.
      dtype: of the weights and the cache.
      weights: what matrices are instead, as for `abstract_params`.
      batch_size: B, over all devices.
      capacity: S, cache slots of a row.
      num_top: likely tokens that are kept for each of them.
      is_penalized: True for a program with penalties.
      prefix_slots: cache slots of the prefixes that are kept for several prompts.
      data: devices that rows are split over.
      tensor: devices that weights are split over.
    """
    leaves = jax.tree.leaves(abstract_params(cfg, jnp.dtype(dtype), weights))
    specs = jax.tree.leaves(partition_specs(cfg, weights))
    weight_bytes = sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize // (tensor if TENSOR in spec else 1)
        for leaf, spec in zip(leaves, specs, strict=True)
    )
    R = source.num_rows
    slots = 2 * cfg.num_layers * (cfg.num_kv_heads // tensor) * (capacity + R)
    row = slots * cfg.head_dim * jnp.dtype(dtype).itemsize + R * -(-cfg.vocab_size // tensor) * 4
    row += (capacity + 1) * num_top * 8  # an id and a log-probability
    row += is_penalized * cfg.vocab_size * (4 + 1 + 1 + 4 + 4)  # bias, ends, prompt, counts, and the logits they change
    of_source_row, shared = _source_bytes(cfg, source, dtype, capacity)
    of_token = 2 * cfg.num_layers * (cfg.num_kv_heads // tensor) * cfg.head_dim + cfg.width
    shared += prefix_slots * of_token * jnp.dtype(dtype).itemsize
    return Estimate(weights=weight_bytes, shared=shared, per_row=row + of_source_row, rows=batch_size // data)


def _source_bytes(cfg: ModelConfig, source: DraftSource, dtype: str, capacity: int) -> tuple[int, int]:
    """Counts the bytes that a draft source keeps for one row, and for all rows together."""
    params = abstract_params(cfg, jnp.dtype(dtype))
    shapes = {"token_BT": ((1, 8), jnp.int32), "length_B": ((1,), jnp.int32), "seed_B": ((1,), jnp.uint32)}
    arrays = dict[str, Any]({name: jax.ShapeDtypeStruct(*shape) for name, shape in shapes.items()})
    prompt = Prompts(**arrays, capacity=capacity)

    def start(params: Params, prompt: Prompts) -> SourceState:
        return source.start(Model(params, cfg), prompt, source.init_shared(cfg))

    state = jax.eval_shape(start, params, prompt)
    rows, shared = (
        sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
        for tree in (state.rows, state.shared)
    )
    return rows, shared


def check(needed: Estimate, data: int = 1) -> None:
    """Finds out whether a run fits the memory of JAX's first local device, where that is known.

    Raises:
      ValueError: with the sizes, and the largest batch that fits.
    """
    limit = device_limit()
    if limit is None or needed.total <= limit:
        return
    rows = max(0, (limit - needed.weights - needed.shared) // needed.per_row)
    way_out = f"the largest --batch-size that fits is {rows * data}"
    if rows == 0:
        way_out = "not one row fits: lower --capacity, use --dtype bfloat16 or split the weights with --mesh tensor=T"
    raise ValueError(f"{needed}, but it has {_gib(limit)}; {way_out}.")


def device_limit() -> int | None:
    """Gives the bytes that JAX may use of its first local device, of a CPU an equal share of what is free; None if unknown."""
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is not None or device.platform != "cpu":
        return limit
    return psutil.virtual_memory().available // len(jax.local_devices())


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
