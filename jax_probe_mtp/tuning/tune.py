"""Tunes mask tokens: Adam moves M x D numbers, the weights stay as they are."""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np

from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.fingerprint import model_identity
from jax_probe_mtp.tuning.loss import HIT_SIZES
from jax_probe_mtp.tuning.masks import Look, TunedMasks, TuneSettings
from jax_probe_mtp.tuning.run import Run
from jax_probe_mtp.tuning.saved import Saved
from jax_probe_mtp.tuning.texts import Pair, split

Report = Callable[[int, float | None, Look | None], None]


def tune_masks(
    checkpoint: Checkpoint,
    texts: Sequence[Pair],
    settings: TuneSettings | None = None,
    *,
    folder: Path | None = None,
    report: Report = lambda step, loss, look: None,
) -> TunedMasks:
    """Tunes masks on the model's own answers and keeps those of the best step.

    Args:
      checkpoint: the model; its parameters may lie on a mesh.
      texts: token ids of prompts and of the model's answers, as `Generation.prompt_ids` and `Generation.token_ids` hold them;
        every tenth is held back.
      settings: how; `TuneSettings()` when left out.
      folder: where the run is saved after each look, and from where it goes on; nowhere when left out.
      report: called after each step with its number and loss, and with a `Look` where there was one; before the first
        step too.

    Raises:
      ValueError: one line: too few texts, or a `folder` that holds another run.
    """
    settings = TuneSettings() if settings is None else settings
    sizes = {"max_length": settings.max_length, "vocab_size": checkpoint.config.vocab_size}
    used = split(texts, num_masks=settings.num_masks, **sizes)
    about: dict[str, Any] = {
        "model": {**model_identity(checkpoint), "dtype": checkpoint.number_format},
        "texts": {"digest": used.digest, "tuned_on": len(used.tuned_on), "held_back": len(used.held_back)},
        "settings": dataclasses.asdict(settings),
    }
    with Saved(folder, about) as saved:
        run = Run(checkpoint, used, settings)
        state = run.start()
        step, best_MD = 0, state.masks_MD
        if saved.exists:
            step, (state, best_MD) = saved.load((state, best_MD))
            looks = saved.looks
        else:
            looks = [Look(step=0, loss=None, hits=run.hits(state.masks_MD))]
        report(step, None, looks[-1])
        losses: list[jax.Array] = []
        while step < settings.steps:
            state, loss = run.step(state, step)
            step += 1
            losses.append(loss)
            look = None
            if step % settings.look_every == 0 or step == settings.steps:
                look = Look(step=step, loss=float(np.mean(jax.device_get(losses))), hits=run.hits(state.masks_MD))
                if look.hit_rate > max(each.hit_rate for each in looks):
                    best_MD = state.masks_MD
                looks.append(look)
                losses = []
                saved.save(step, (state, best_MD), looks)
            report(step, float(loss), look)
    best = max(looks, key=lambda look: look.hit_rate)
    found = {"start": run.start_name, "best_step": best.step, "hit_sizes": list(HIT_SIZES), "hits": best.hits}
    curve = [dataclasses.asdict(look) for look in looks]
    return TunedMasks(masks_MD=np.asarray(jax.device_get(best_MD)), about=about | found | {"looks": curve})
