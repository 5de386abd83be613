"""How a weight in a file lies inside one of our parameters.

A layout is a function from one of our leaves to a view of it whose elements, in order, are those of the tensor in the
file. The one view serves both directions: assigning to it converts, reading from it exports.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np


@dataclasses.dataclass(frozen=True)
class Layout:
    """One way a file's tensor lies in a leaf.

    Attributes:
      view: leaf -> view of it, in the file's order; writable, never a copy.
      row_axes: how many of the view's first axes make up the tensor's first axis; the rest make up its second.
    """

    view: Callable[[np.ndarray], np.ndarray]
    row_axes: int

    def file_shape(self, leaf: np.ndarray) -> tuple[int, ...]:
        """Shape of the tensor in the file."""
        shape = self.view(leaf).shape
        rows, columns = shape[: self.row_axes], shape[self.row_axes :]
        return (math.prod(rows), math.prod(columns)) if columns else (math.prod(rows),)

    def export(self, leaf: np.ndarray) -> np.ndarray:
        """The inverse: the file's tensor, copied out of a leaf."""
        return self.view(leaf).copy().reshape(self.file_shape(leaf))


def _rope_pairs(rows_h: np.ndarray) -> np.ndarray:
    """[..., h, D] -> [..., h/2, 2, D].

    A llama GGUF keeps the two numbers that rope turns together next to each other (dimension i and i + h/2 become rows
    2i and 2i + 1); Hugging Face keeps the halves apart.

    Source: `LlamaModel.permute` in llama.cpp's convert_hf_to_gguf.py.
    """
    *heads, h, D = rows_h.shape
    halves = rows_h.reshape(*heads, 2, h // 2, D)
    assert np.may_share_memory(halves, rows_h)  # splitting an axis never copies
    return halves.swapaxes(-3, -2)


def _q(qkv: np.ndarray) -> np.ndarray:
    return qkv[:, :, :-2].transpose(1, 2, 3, 0)  # [D, K, G+2, h] -> [K, G, h, D]


def _k(qkv: np.ndarray) -> np.ndarray:
    return qkv[:, :, -2].transpose(1, 2, 0)  # -> [K, h, D]


def _v(qkv: np.ndarray) -> np.ndarray:
    return qkv[:, :, -1].transpose(1, 2, 0)  # -> [K, h, D]


LAYOUTS = {
    "same": Layout(lambda leaf: leaf, 1),
    "transposed": Layout(lambda leaf: leaf.T, 1),
    "q": Layout(_q, 3),
    "k": Layout(_k, 2),
    "v": Layout(_v, 2),
    "q_rope_pairs": Layout(lambda qkv: _rope_pairs(_q(qkv)), 4),
    "k_rope_pairs": Layout(lambda qkv: _rope_pairs(_k(qkv)), 3),
    "q_bias": Layout(lambda bias: bias[:, :-2], 3),  # [K, G+2, h] -> [K, G, h]
    "k_bias": Layout(lambda bias: bias[:, -2], 2),
    "v_bias": Layout(lambda bias: bias[:, -1], 2),
    "out": Layout(lambda out: out.transpose(3, 0, 1, 2), 1),  # [K, G, h, D] -> [D, K, G, h]
    "gate": Layout(lambda gate_up: gate_up[:, 0].T, 1),  # [D, 2, F] -> [F, D]
    "up": Layout(lambda gate_up: gate_up[:, 1].T, 1),
}
