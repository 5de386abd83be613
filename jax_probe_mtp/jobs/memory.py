"""How much device memory a run takes, before anything is loaded: weights, cache and logits, a device."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import psutil

from jax_probe_mtp.drafting.draft_config import DraftConfig, RecycleConfig
from jax_probe_mtp.drafting.recycle import NUM_SUCCESSORS
from jax_probe_mtp.model.config import TENSOR, ModelConfig
from jax_probe_mtp.model.params import abstract_params, partition_specs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Estimate:
    """Bytes on each device.

    Attributes:
      weights: of the device's part of the parameters.
      per_row: of one batch row: its cache, the logits of its part of a call in float32, its own table if it has one.
      rows: batch rows of the device.
    """

    weights: int
    per_row: int
    rows: int

    @property
    def total(self) -> int:
        """What has to fit; a program's temporaries come on top."""
        return self.weights + self.per_row * self.rows

    def __str__(self) -> str:
        return f"weights {_gib(self.weights)} + {self.rows} rows of {_gib(self.per_row)} = {_gib(self.total)} a device"


def estimate(
    cfg: ModelConfig,
    draft_cfg: DraftConfig,
    *,
    dtype: str,
    batch_size: int,
    capacity: int,
    data: int = 1,
    tensor: int = 1,
) -> Estimate:
    """Device memory of a run.

    Args:
      cfg: the model.
      draft_cfg: where drafts come from.
      dtype: of the weights and the cache.
      batch_size: B, over all devices.
      capacity: S, cache slots of a row.
      data: devices that rows are split over.
      tensor: devices that weights are split over.
    """
    leaves = jax.tree.leaves(abstract_params(cfg, jnp.dtype(dtype)))
    specs = jax.tree.leaves(partition_specs(cfg))
    weights = sum(
        math.prod(leaf.shape) * leaf.dtype.itemsize // (tensor if TENSOR in spec else 1)
        for leaf, spec in zip(leaves, specs, strict=True)
    )
    R = draft_cfg.num_rows
    slots = 2 * cfg.num_layers * (cfg.num_kv_heads // tensor) * (capacity + R)
    row = slots * cfg.head_dim * jnp.dtype(dtype).itemsize + R * cfg.vocab_size * 4
    if isinstance(draft_cfg, RecycleConfig):  # ids and scores; a warm table is one for all rows: counted as if of each
        row += cfg.vocab_size * NUM_SUCCESSORS * 8
    return Estimate(weights=weights, per_row=row, rows=batch_size // data)


def check(needed: Estimate, data: int = 1) -> None:
    """Finds out whether a run fits the memory of JAX's first local device, where that is known.

    Raises:
      ValueError: with the sizes, and the largest batch that fits.
    """
    limit = device_limit()
    if limit is None or needed.total <= limit:
        return
    rows = max(0, (limit - needed.weights) // needed.per_row)
    way_out = f"the largest --batch-size that fits is {rows * data}"
    if rows == 0:
        way_out = "not one row fits: lower --capacity, use --dtype bfloat16 or split the weights with --mesh tensor=T"
    raise ValueError(f"{needed}, but it has {_gib(limit)}; {way_out}.")


def device_limit() -> int | None:
    """Bytes that JAX may use of its first local device, of a CPU's memory an equal share of what is free; None if unknown."""
    device = jax.local_devices()[0]
    limit = (device.memory_stats() or {}).get("bytes_limit")
    if limit is not None or device.platform != "cpu":
        return limit
    return psutil.virtual_memory().available // len(jax.local_devices())


def _gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"
