"""Fills our parameters from a file's tensors: each number once, each tensor accounted for, a few rows at a time."""

import dataclasses
import functools
import math
import re

import jax
import numpy as np
from jax.sharding import Mesh

from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.mapping.tensor_source import OpenedModel, TensorSource
from checkpoints_convert.mapping.transforms import LAYOUTS, Layout, Part
from checkpoints_convert.params.placement import ReadPart, place, wanted_params
from jax_probe_mtp.model.params import Params, abstract_params, by_head

CHUNK_BYTES = 8 << 20  # of float32 rows read at once: a few temporaries of this size are all that converting adds
DTYPES = ("float32", "bfloat16")


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """A leaf of ours and the tensors that fill it; `by_head` is its shape with an index for each head, where it has heads."""

    shape: tuple[int, ...]
    by_head: tuple[int, ...]
    pieces: tuple[tuple[str, Layout], ...]


def plan(model: OpenedModel) -> tuple[list[_Leaf], jax.tree_util.PyTreeDef]:
    """Matches the tensors of a file with the leaves of `abstract_params`, reading no weights.

    Raises:
      CheckpointError: for the first tensor that is missing, misshapen, of a wrong type or unknown.
    """
    tensors = model.source.tensors
    tensors_a_layer = sum("{}" in row.source for row in model.rows)
    if model.config.num_layers * tensors_a_layer > 2 * len(
        tensors
    ):  # before a tree of the layers that a config may claim
        raise CheckpointError(
            f"{model.where} holds {len(tensors)} tensors, too few for the {model.config.num_layers} layers of its "
            "config; fetch the files again."
        )
    leaves, treedef = jax.tree.flatten_with_path(abstract_params(model.config))
    used: set[str] = set()
    planned = []
    for path, leaf in leaves:
        layer = path[1].idx if len(path) > 1 else None
        shape = by_head(model.config).get(path[-1].key, leaf.shape)
        try:
            probe = _probe(shape)
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
        planned.append(_Leaf(leaf.shape, shape, tuple(pieces)))
    for name in tensors:
        if name not in used and not any(re.fullmatch(pattern, name) for pattern in model.ignored):
            raise CheckpointError(
                f"{tensors[name].file}: tensor {name!r} of shape {list(tensors[name].shape)} is not known for a "
                f"{model.config.family} model of {model.config.num_layers} layers; the file does not match its config."
            )
    return planned, treedef


def _probe(shape: tuple[int, ...]) -> np.ndarray:
    """Makes an array of one byte that has a leaf's shape, to ask for the shapes of its views."""
    return np.broadcast_to(np.uint8(0), shape)


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


def read_leaves(model: OpenedModel, dtype: str) -> tuple[list[ReadPart], jax.tree_util.PyTreeDef]:
    """Prepares the leaves of a model to be read one after the other, so that a caller may hand each on before the next.

    Args:
      model: the opened checkpoint.
      dtype: "float32" or "bfloat16".

    Returns:
      A function that reads each leaf or a part of it, and the tree they unflatten to.

    Raises:
      CheckpointError: if the tensors are not those of the model.
    """
    if dtype not in DTYPES:
        raise CheckpointError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    leaves, treedef = plan(model)
    model.check_weights()
    return [functools.partial(_read_part, leaf, model.source, jax.numpy.dtype(dtype)) for leaf in leaves], treedef


def read_params(model: OpenedModel, dtype: str, mesh: Mesh | None) -> Params:
    """Reads the whole parameter tree on the default device, or on a mesh as `mesh.sharded_params` says."""
    leaves, treedef = read_leaves(model, dtype)
    wanted = jax.tree.leaves(wanted_params(model.config, dtype, mesh))
    return jax.tree.unflatten(treedef, [place(read, leaf) for read, leaf in zip(leaves, wanted, strict=True)])


def _read_part(leaf: _Leaf, source: TensorSource, dtype: np.dtype, part: Part | None) -> np.ndarray:
    """Reads a part of a leaf, zeros where it goes behind the leaf's end; None is all of it."""
    part = part or tuple(range(n) for n in leaf.shape)
    target = np.zeros([len(axis) for axis in part], dtype)
    within = tuple(range(n)[axis.start : axis.stop] for n, axis in zip(leaf.shape, part, strict=True))
    not_padding = target[tuple(slice(len(axis)) for axis in within)]
    if leaf.by_head != leaf.shape:  # no vocabulary, so no padding
        within = part_by_head(within, leaf.shape, leaf.by_head)
        not_padding = target.reshape([len(axis) for axis in within])
    for name, layout in leaf.pieces:
        view = layout.view(not_padding)
        rows, *columns = layout.file_ranges(_probe(leaf.by_head), within)
        rows_each = math.prod(view.shape[1 : layout.row_axes])  # of the file, in one entry of the view's first axis
        row_size = math.prod(source.tensors[name].shape[1:])
        step = max(1, CHUNK_BYTES // (4 * rows_each * row_size))
        for i in range(0, view.shape[0], step):
            j = min(i + step, view.shape[0])
            block = source.read(name, rows.start + i * rows_each, rows.start + j * rows_each, *columns)
            # Casting to bfloat16 rounds to the nearest, ties to even.
            view[i:j] = block.reshape(j - i, *view.shape[1:])
    return target


def part_by_head(part: Part, shape: tuple[int, ...], apart: tuple[int, ...]) -> Part:
    """Says which part of a leaf with an index for each head a part of the leaf is: whole kv heads.

    Args:
      part: of the leaf.
      shape: of the leaf; each axis is the product of axes that stand side by side in `apart`.
      apart: shape of the leaf with an index for each head.
    """
    ranges: list[range] = []
    for axis, size in zip(part, shape, strict=True):
        first = end = len(ranges)
        while math.prod(apart[first:end]) < size or end == first:
            end += 1
        inner = math.prod(apart[first + 1 : end])
        assert axis.start % inner == axis.stop % inner == 0, (part, apart)
        ranges += [range(axis.start // inner, axis.stop // inner), *map(range, apart[first + 1 : end])]
    return tuple(ranges)


def tensors_are_equal(source: TensorSource, a: str, b: str) -> bool:
    """Says whether two tensors are the same bit for bit, read a few rows at a time."""
    first, second = source.tensors[a], source.tensors[b]
    if first.shape != second.shape or first.dtype != second.dtype:
        return False
    step = max(1, CHUNK_BYTES // (4 * max(1, int(np.prod(first.shape[1:])))))
    ranges = [(i, min(i + step, first.shape[0])) for i in range(0, first.shape[0], step)]
    return all(source.read(a, i, j).tobytes() == source.read(b, i, j).tobytes() for i, j in ranges)
