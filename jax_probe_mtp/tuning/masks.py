"""Tuned masks, how they are tuned, and how well they guess."""

import dataclasses
import hashlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jax_probe_mtp.drafting.mask_tokens import MAX_MASKS
from jax_probe_mtp.tuning.loss import HIT_SIZES

KEPT_BY = 14  # the best step is the one whose masks have the true token most often among so many


@dataclasses.dataclass(frozen=True, kw_only=True)
class TuneSettings:
    """How to tune.

    Attributes:
      num_masks: M, 1 to 3: the tree then has as many depths.
      steps: of Adam.
      batch_size: texts of a step.
      micro_batch: texts that are in memory at a time.
      learning_rate: of the first step, in deviations of the embedding table; it falls along a cosine to 0.
      look_every: steps between two looks at the texts that are held back; then the run is saved as well.
      max_length: tokens that a text may have; longer ones are left out.
      seed: of the order of the texts.
    """

    num_masks: int = 1
    steps: int = 300
    batch_size: int = 8
    micro_batch: int = 8
    learning_rate: float = 0.1
    look_every: int = 25
    max_length: int = 1024
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_masks", "steps", "batch_size", "micro_batch", "look_every", "max_length"):
            value = getattr(self, name)
            if type(value) is not int or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}.")
        if self.num_masks > MAX_MASKS:
            raise ValueError(f"num_masks must be 1 to {MAX_MASKS}, the depths of a tree, got {self.num_masks}.")
        if self.batch_size % self.micro_batch:
            raise ValueError(
                f"batch_size {self.batch_size} must be a multiple of micro_batch {self.micro_batch}; change one of them."
            )
        if type(self.seed) is not int or self.seed < 0:
            raise ValueError(f"seed must be a whole number of at least 0, got {self.seed!r}.")
        if not 0 < self.learning_rate <= 10:  # false of nan too
            raise ValueError(f"learning_rate must be above 0 and at most 10, got {self.learning_rate}.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TunedMasks:
    """Masks, and what they were made of.

    Attributes:
      masks_MD: float32 [M, D].
      about: the model, the texts, the settings and the hit rates, as JSON has them.
    """

    masks_MD: np.ndarray
    about: dict[str, Any]

    @property
    def shared(self) -> jax.Array:
        """Gives the masks as `generate(..., shared=)` and `decode(..., shared=)` take them, float32 [M, D]."""
        return jnp.asarray(self.masks_MD)

    @property
    def digest(self) -> str:
        """Gives a digest of the masks' bits, by which answers name them."""
        return hashlib.sha256(np.ascontiguousarray(self.masks_MD).tobytes()).hexdigest()[:16]


@dataclasses.dataclass(frozen=True, kw_only=True)
class Look:
    """The masks after so many steps, on the texts that are held back.

    Attributes:
      step: steps made.
      loss: mean cross-entropy of the texts tuned on since the last look, nats a mask row; None before the first step.
      hits: of each mask, how often the true token is among the best of `HIT_SIZES`.
    """

    step: int
    loss: float | None
    hits: list[list[float]]

    @property
    def hit_rate(self) -> float:
        """Gives the rate that the best step is chosen by, the mean over the masks."""
        return float(np.mean([of_mask[HIT_SIZES.index(KEPT_BY)] for of_mask in self.hits]))
