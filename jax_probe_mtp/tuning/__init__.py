"""Mask tokens tuned on a model's own answers: a few thousand numbers, no weight changed."""

from jax_probe_mtp.tuning.masks import TunedMasks, TuneSettings
from jax_probe_mtp.tuning.masks_file import load_masks, save_masks
from jax_probe_mtp.tuning.tune import tune_masks

__all__ = ["TuneSettings", "TunedMasks", "load_masks", "save_masks", "tune_masks"]
