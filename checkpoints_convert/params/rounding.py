"""Rounds matrices to eight bits on the host, some columns at a time, and checks what was rounded."""

from collections.abc import Callable

import numpy as np

from checkpoints_convert.errors import CheckpointError
from jax_probe_mtp.model.params import Int8, quantize

PIECE_NUMBERS = 1 << 21  # of a matrix in work at once: a few float32 temporaries of 8 MB


def rounded(read: Callable[[range], np.ndarray], columns: range, num_in: int, what: str) -> Int8:
    """Rounds a matrix for `num_in` numbers in.

    Args:
      read: gives the weights of some of the numbers out, [o, I], float32 or bfloat16.
      columns: the numbers out.
      num_in: I.
      what: file and name, for messages.

    Raises:
      CheckpointError: if a weight is not finite.
    """
    step = max(1, PIECE_NUMBERS // num_in)
    whole = Int8(np.empty((len(columns), num_in), np.int8), np.empty(len(columns), np.float32))
    for i in range(0, len(columns), step):
        with np.errstate(invalid="ignore"):  # of what is refused below
            piece = quantize(read(columns[i : i + step]))
        whole.value[i : i + step], whole.scale[i : i + step] = piece
    check_scales(whole.scale, what, "its weights are not finite; fetch the files again")
    return whole


def check_scales(scale_O: np.ndarray, what: str, way_out: str) -> None:
    """Raises CheckpointError unless each scale is a number above 0."""
    wrong = scale_O[~((scale_O > 0) & np.isfinite(scale_O))]
    if wrong.size:
        raise CheckpointError(f"{what} has scales that are not above 0 and finite, such as {wrong[0]}: {way_out}.")
