"""Fills our parameters from a file's tensors: each leaf once, each tensor accounted for, a few rows at a time."""

import dataclasses
import re
from collections.abc import Callable, Iterator

import jax
import numpy as np

from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.sources import OpenedModel, TensorSource
from checkpoints_convert.transforms import LAYOUTS, Layout
from jax_probe_mtp.params import Params, abstract_params

CHUNK_BYTES = 8 << 20  # of float32 rows read at once: a few temporaries of this size are all that converting adds
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """A leaf of ours and the tensors that fill it."""

    shape: tuple[int, ...]
    pieces: tuple[tuple[str, Layout], ...]


def plan(model: OpenedModel) -> tuple[list[_Leaf], jax.tree_util.PyTreeDef]:
    """Matches the tensors of a file with the leaves of `abstract_params`, reading no weights.

    Raises:
      CheckpointError: for the first tensor that is missing, misshapen, of a wrong type or unknown.
    """
    tensors = model.source.tensors
    if model.config.num_layers > len(tensors):  # before a tree of as many layers as a damaged config may claim
        raise CheckpointError(
            f"{model.where} holds {len(tensors)} tensors, too few for the {model.config.num_layers} layers of its config."
        )
    leaves, treedef = jax.tree.flatten_with_path(abstract_params(model.config))
    used: set[str] = set()
    planned = []
    for path, leaf in leaves:
        layer = path[1].idx if len(path) > 1 else None
        try:
            probe = np.broadcast_to(np.uint8(0), leaf.shape)  # one byte: only the shapes of its views are asked
        except ValueError:
            raise CheckpointError(
                f"{model.where}: its config asks for a parameter of shape {list(leaf.shape)}."
            ) from None
        pieces = []
        for row in model.rows:
            if row.target != path[-1].key or ("{}" in row.source) != (layer is not None):
                continue
            name, layout = row.source.format(layer), LAYOUTS[row.layout]
            _check_tensor(model, name, layout.file_shape(probe))
            used.add(name)
            pieces.append((name, layout))
        assert sum(layout.view(probe).size for _, layout in pieces) == leaf.size, path
        planned.append(_Leaf(leaf.shape, tuple(pieces)))
    for name in tensors:
        if name not in used and not any(re.fullmatch(pattern, name) for pattern in model.ignored):
            raise CheckpointError(
                f"{tensors[name].file}: tensor {name!r} of shape {list(tensors[name].shape)} is not known for a "
                f"{model.config.family} model of {model.config.num_layers} layers; the file does not match its config."
            )
    return planned, treedef


def _check_tensor(model: OpenedModel, name: str, expected: tuple[int, ...]) -> None:
    info = model.source.tensors.get(name)
    if info is None:
        raise CheckpointError(
            f"{model.where}: tensor {name!r} of shape {list(expected)} is missing; fetch the files again."
        )
    if info.shape != expected:
        raise CheckpointError(
            f"{info.file}: tensor {name!r} has shape {list(info.shape)}, but its config asks for {list(expected)}."
        )
    readable = model.source.readable
    if info.dtype not in readable:
        raise CheckpointError(
            f"{info.file}: tensor {name!r} is {info.dtype}, which is not supported; {', '.join(readable)} are."
        )


def read_leaves(model: OpenedModel, dtype: str) -> tuple[Iterator[np.ndarray], jax.tree_util.PyTreeDef]:
    """The leaves of a model, one after the other, so that a caller may hand each on before the next is read.

    Args:
      model: the opened checkpoint.
      dtype: "float32" or "bfloat16".

    Returns:
      An iterator over the leaves, and the tree they unflatten to.
    """
    if dtype not in DTYPES:
        raise CheckpointError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    leaves, treedef = plan(model)
    return (_fill(leaf, model.source, dtype) for leaf in leaves), treedef


def read_params(model: OpenedModel, dtype: str, put: Callable[[np.ndarray], object]) -> Params:
    """The whole parameter tree, each leaf through `put`."""
    leaves, treedef = read_leaves(model, dtype)
    return jax.tree.unflatten(treedef, [put(leaf) for leaf in leaves])


def _fill(leaf: _Leaf, source: TensorSource, dtype: str) -> np.ndarray:
    target = np.empty(leaf.shape, jax.numpy.dtype(dtype))
    for name, layout in leaf.pieces:
        view = layout.view(target)
        num_rows = source.tensors[name].shape[0]
        rows_each = num_rows // view.shape[0]  # rows of the file's tensor in one entry of the view's first axis
        step = max(1, CHUNK_BYTES // (4 * view[0].size))
        for i in range(0, view.shape[0], step):
            j = min(i + step, view.shape[0])
            rows = source.read(name, i * rows_each, j * rows_each)
            # Casting to bfloat16 rounds to the nearest, ties to even.
            view[i:j] = rows.reshape(j - i, *view.shape[1:])
    return target


def tensors_are_equal(source: TensorSource, a: str, b: str) -> bool:
    """Whether two tensors are the same bit for bit, read a few rows at a time."""
    first, second = source.tensors[a], source.tensors[b]
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    step = max(1, CHUNK_BYTES // (4 * max(1, int(np.prod(first.shape[1:])))))
    ranges = [(i, min(i + step, first.shape[0])) for i in range(0, first.shape[0], step)]
    return all(source.read(a, i, j).tobytes() == source.read(b, i, j).tobytes() for i, j in ranges)
