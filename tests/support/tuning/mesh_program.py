"""Tunes masks on meshes of eight CPU devices; a program of its own, since JAX counts its devices once."""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
from checkpoints import make_checkpoint
from conftest import BASE, make_tiny

from jax_probe_mtp.tuning import TuneSettings, tune_masks
from support.generation.mesh_program import split

MESHES = [(1, 1), (2, 1), (1, 2), (2, 2)]  # data, tensor
SETTINGS = TuneSettings(num_masks=2, steps=6, look_every=3, batch_size=8, micro_batch=4)


def texts():
    draw = np.random.default_rng(0)
    return [(draw.integers(0, 61, 7).tolist(), draw.integers(0, 61, 9).tolist()) for _ in range(30)]


def main(output):
    checkpoint, found = make_checkpoint(make_tiny(BASE, 3)), []
    for data, tensor in MESHES:
        tuned = tune_masks(split(checkpoint, data, tensor) if data * tensor > 1 else checkpoint, texts(), SETTINGS)
        found.append({"masks": tuned.masks_MD.tolist(), "looks": tuned.about["looks"]})
    try:
        tune_masks(split(checkpoint, 2, 1), texts(), dataclasses.replace(SETTINGS, batch_size=3, micro_batch=3))
    except ValueError as error:
        found.append(str(error))
    Path(output).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
