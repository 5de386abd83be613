"""Says how a weight in a file lies inside one of our parameters.

A layout is a function from one of our leaves to a view of it whose elements, in order, are those of the tensor in the
file. The one view serves both directions: assigning to it converts, reading from it exports.
"""

import dataclasses
import math
from collections.abc import Callable

import numpy as np

Part = tuple[range, ...]  # of an array: the indices of each axis


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
        """Gives the shape of the tensor in the file."""
        shape = self.view(leaf).shape
        rows, columns = shape[: self.row_axes], shape[self.row_axes :]
        return (math.prod(rows), math.prod(columns)) if columns else (math.prod(rows),)

    def file_ranges(self, leaf: np.ndarray, part: Part) -> Part:
        """Says where a part of a leaf lies in the tensor in the file.

        The part is a smaller leaf, with a view of its own; the axis of the view that is shorter than the whole leaf's is
        the one that was split, and tells which rows or columns of the file these are.

        Args:
          leaf: the whole leaf; only its shape is used.
          part: a part of it, split along one axis at most.

        Returns:
          The rows and, unless the tensor is a vector, the columns that fill the view of the part, in order.
        """
        smaller = leaf[tuple(slice(axis.start, axis.stop) for axis in part)]
        whole_shape, shape = self.view(leaf).shape, self.view(smaller).shape
        split = [i for i, whole in enumerate(whole_shape) if shape[i] < whole]
        starts = [axis.start for n, axis in zip(leaf.shape, part, strict=True) if len(axis) < n]
        assert len(split) == len(starts) <= 1, (part, shape)
        assert set(split) <= {0, self.row_axes}, (part, shape)  # elsewhere it would not be one block of the file
        start_at = dict(zip(split, starts, strict=True))
        first_row = start_at.get(0, 0) * math.prod(shape[1 : self.row_axes])
        first_column = start_at.get(self.row_axes, 0) * math.prod(shape[self.row_axes + 1 :])
        num_rows, *num_columns = self.file_shape(smaller)
        return (range(first_row, first_row + num_rows), *(range(first_column, first_column + n) for n in num_columns))

    def export(self, leaf: np.ndarray) -> np.ndarray:
        """Inverts the view: copies the file's tensor out of a leaf."""
        return self.view(leaf).copy().reshape(self.file_shape(leaf))


def _rope_pairs(rows_h: np.ndarray) -> np.ndarray:
    """Splits [..., h, D] into [..., h/2, 2, D].

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
}
