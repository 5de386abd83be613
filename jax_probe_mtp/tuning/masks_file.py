"""The file of tuned masks: safetensors, with what they were tuned on beside them."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import safetensors
from safetensors.numpy import save

from jax_probe_mtp.drafting.mask_tokens import MAX_MASKS
from jax_probe_mtp.errors import one_line
from jax_probe_mtp.files.whole_files import write_files
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.fingerprint import model_identity
from jax_probe_mtp.tuning.masks import TunedMasks

FORMAT = 1
NAME = "masks"
MAX_NAME = 255  # characters of a model's name
MAX_BYTES = 1 << 20  # 3 masks of a width of 16,384 are 200 KB
MOST = (
    1e6  # an infinite mask would put NaN into the attention of every row, and bfloat16 rounds large numbers to infinity
)


def save_masks(tuned: TunedMasks, path: Path) -> None:
    """Writes tuned masks to a file, whole or not at all; raises ValueError where they could not be read again."""
    if not np.all(np.abs(tuned.masks_MD) <= MOST):
        raise ValueError(
            f"the tuned masks hold a number that is not finite, or above {MOST:g} in size; tune with a lower rate."
        )
    about = json.dumps({"format": FORMAT, **tuned.about})
    write_files(path.parent, {path.name: save({NAME: tuned.masks_MD}, metadata={"about": about})})


def load_masks(path: Path, checkpoint: Checkpoint, *, is_relative: bool = False) -> TunedMasks:
    """Reads the tuned masks of a model.

    Args:
      path: what `save_masks` or `tune-masks` wrote.
      checkpoint: the model that they are for.
      is_relative: True takes masks of another model that is as wide: of the same one in another precision, say.

    Returns:
      The masks; `TunedMasks.shared` is what `generate` and `decode` take.

    Raises:
      ValueError: one line, if it is no such file or its masks are another model's.
      OSError: if it cannot be read.
    """
    tuned = read_masks(path)
    check_masks(tuned, path, checkpoint, is_relative=is_relative)
    return tuned


def check_masks(tuned: TunedMasks, path: Path, checkpoint: Checkpoint, *, is_relative: bool) -> None:
    """Raises ValueError where masks are another model's; see `load_masks`."""
    own, other, width = model_identity(checkpoint), tuned.about["model"], tuned.masks_MD.shape[1]
    if width != checkpoint.config.width:
        raise ValueError(
            f"{path} has masks of {width} numbers, tuned for {other['name']}, but {own['name']} is {checkpoint.config.width} "
            f"wide; tune masks for it."
        )
    if not is_relative and own["fingerprint"] != other["fingerprint"]:
        raise ValueError(
            f"{path} was tuned for {other['name']} ({other['fingerprint']}), and this is {own['name']} ({own['fingerprint']}); "
            f"tune masks for it, or give --masks-of-relative if it is the same model in another precision."
        )


def read_masks(path: Path) -> TunedMasks:
    """Reads and checks a file that anybody may have written; whose masks they are is not compared."""
    size = path.stat().st_size
    if not path.is_file():
        raise ValueError(f"{path} is no file of tuned masks but a folder or a device; name a file.")
    if size > MAX_BYTES:
        raise ValueError(f"{path} is no file of tuned masks: those are files of {MAX_BYTES} bytes at most, got {size}.")
    try:
        with safetensors.safe_open(path, framework="numpy") as file:
            about = json.loads((file.metadata() or {})["about"])
            names = list(file.keys())
            masks_MD = file.get_tensor(NAME) if names == [NAME] else None
        is_known = about.pop("format") == FORMAT and _is_about(about)
    except OSError:
        raise
    except Exception as error:  # whatever a torn or hostile file makes of the libraries
        raise ValueError(f"{path} is no file of tuned masks: {one_line(error):.120}.") from None
    if not is_known or masks_MD is None:
        raise ValueError(f"{path} is no file of tuned masks of format {FORMAT}: it holds {one_line(names):.80}.")
    if masks_MD.dtype != np.float32 or masks_MD.ndim != 2 or not 1 <= masks_MD.shape[0] <= MAX_MASKS:
        raise ValueError(
            f"{path} must hold float32 masks, 1 to {MAX_MASKS} of the model's width, got {masks_MD.dtype} "
            f"{list(masks_MD.shape)}."
        )
    if not np.all(np.abs(masks_MD) <= MOST):  # true of nan too
        raise ValueError(
            f"{path} has a mask with a number that is not finite, or above {MOST:g} in size; tune it again."
        )
    return TunedMasks(masks_MD=masks_MD, about=about)


def _is_about(about: Any) -> bool:
    """Says whether the model is named, in words that a message can hold; the rest is for people."""
    names = [about["model"][name] for name in ("name", "fingerprint")]
    return all(isinstance(name, str) and name.isprintable() and len(name) <= MAX_NAME for name in names)
