"""Reads tensors of a GGUF file, dequantized a few rows at a time."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from gguf import GGML_QUANT_SIZES, quants

from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.gguf.header import GGUFTensor
from checkpoints_convert.mapping.tensor_source import TensorInfo

FLOATS = ("F32", "F16", "BF16")
_ROW_BYTES = 1 << 16  # of a row that is dequantized; its numbers take up to eight times as much
READABLE = (*FLOATS, "Q8_0", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q4_K", "Q5_K", "Q6_K")


class GGUFSource:
    """The tensors of a file (a `TensorSource`).

    Args:
      path: the file.
      header: its tensors, as `read_header` found them.
    """

    readable: tuple[str, ...] = READABLE

    def __init__(self, path: Path, header: Mapping[str, GGUFTensor]) -> None:
        self._path = path
        self._header = header
        self._tensors = {
            name: TensorInfo(shape=tensor.shape, dtype=tensor.kind.name, file=str(path))
            for name, tensor in header.items()
        }

    @property
    def tensors(self) -> Mapping[str, TensorInfo]:
        return self._tensors

    def read(self, name: str, start: int, stop: int, columns: range | None = None) -> np.ndarray:
        tensor = self._header[name]
        row_bytes, rest = divmod(tensor.num_bytes, tensor.shape[0])
        if rest or tensor.kind.name not in READABLE:
            raise CheckpointError(f"{self._path}: tensor {name!r} of type {tensor.kind.name} cannot be read by rows.")
        count = (stop - start) * row_bytes
        # Plain reads, not a memory map: mapped pages would count as ours for as long as the file is mapped.
        raw = np.fromfile(self._path, np.uint8, count=count, offset=tensor.offset + start * row_bytes)
        if raw.size != count:
            raise CheckpointError(f"{self._path}: tensor {name!r} ended after {raw.size} of {count} bytes.")
        raw = raw.reshape(stop - start, row_bytes)
        if columns is None:
            values = quants.dequantize(_fewer_rows(raw), tensor.kind)
            return values.reshape(stop - start, *tensor.shape[1:])
        # Numbers are packed in blocks: those that hold the columns, then what of them is asked for.
        block, block_bytes = GGML_QUANT_SIZES[tensor.kind]
        first, last = columns.start // block, -(-columns.stop // block)
        values = quants.dequantize(raw[:, first * block_bytes : last * block_bytes], tensor.kind)
        return values[:, columns.start - first * block : columns.stop - first * block]


def _fewer_rows(raw: np.ndarray) -> np.ndarray:
    """Gives the same bytes in fewer and longer rows: the gguf package works on 16 at a time, however short they are."""
    count, row_bytes = raw.shape
    together = next(n for n in range(max(1, min(count, _ROW_BYTES // max(row_bytes, 1))), 0, -1) if count % n == 0)
    return raw.reshape(count // together, together * row_bytes)
