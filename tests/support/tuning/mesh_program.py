"""Tunes masks, and decodes with chosen ones, on meshes of eight CPU devices.

A program of its own, since JAX counts its devices once.
"""

import dataclasses
import json
import sys
from pathlib import Path

import numpy as np
from checkpoints import make_checkpoint
from conftest import BASE, make_tiny

from jax_probe_mtp import Settings, generate
from jax_probe_mtp.tuning import TuneSettings, tune_masks
from support.generation.split_checkpoint import split

MESHES = [(1, 1), (2, 1), (1, 2), (2, 2)]  # data, tensor
SETTINGS = TuneSettings(num_masks=2, steps=6, look_every=3, batch_size=8, micro_batch=4)
ANSWERS = Settings(max_new_tokens=20, batch_size=4)
_DRAW = np.random.default_rng(0)
LONG = [_DRAW.integers(0, 58, size).tolist() for size in (40, 19, 33, 25, 5, 28, 31, 22)]


def texts():
    draw = np.random.default_rng(0)
    return [(draw.integers(0, 61, 7).tolist(), draw.integers(0, 61, 9).tolist()) for _ in range(30)]


def main(output):
    checkpoint, found = make_checkpoint(make_tiny(BASE, 3)), []
    for data, tensor in MESHES:
        there = split(checkpoint, data, tensor) if data * tensor > 1 else checkpoint
        tuned = tune_masks(there, texts(), SETTINGS)
        chosen = [
            [(answer.token_ids, answer.calls) for answer in generate(there, LONG, draft=draft, settings=ANSWERS)]
            for draft in ("probe:9", "probe:9@mask_init=mean")
        ]
        found.append({"masks": tuned.masks_MD.tolist(), "looks": tuned.about["looks"], "chosen": chosen})
    try:
        tune_masks(split(checkpoint, 2, 1), texts(), dataclasses.replace(SETTINGS, batch_size=3, micro_batch=3))
    except ValueError as error:
        found.append(str(error))
    Path(output).write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
