"""Fills our parameters from a file's tensors: each number once, each tensor accounted for, a few rows at a time."""

import dataclasses
import functools
import math
import re
from typing import Any, Literal

import jax
import numpy as np
from jax.sharding import Mesh

from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.mapping.names import HF_HEAD
from checkpoints_convert.mapping.tensor_source import OpenedModel, TensorSource
from checkpoints_convert.mapping.transforms import LAYOUTS, Layout, Part
from checkpoints_convert.params.placement import place, wanted_params
from checkpoints_convert.params.rounding import rounded
from jax_probe_mtp.model.params import WEIGHTS, Int8, Params, abstract_params, by_head, is_int8

CHUNK_BYTES = 8 << 20  # of float32 rows read at once: a few temporaries of this size are all that converting adds
DTYPES = ("float32", "bfloat16")
# What libraries put before the names of the tensors that they wrap, and how to be rid of it.
WRAPPERS = {
    "module.": "save the model that DataParallel holds, its .module",
    "_orig_mod.": "save the model that torch.compile was given",
    "base_model.model.": "merge the adapter into it with peft's merge_and_unload(), and save that",
}
EMBED = (jax.tree_util.DictKey("embed"),)

KeyPath = tuple[Any, ...]  # of a leaf, as JAX gives it
Order = Literal["C", "F"]  # of an array's numbers in memory, as NumPy names it


@dataclasses.dataclass(frozen=True)
class _Leaf:
    """A leaf of ours and the tensors that fill it; `by_head` is its shape with an index for each head, where it has heads."""

    shape: tuple[int, ...]
    by_head: tuple[int, ...]
    pieces: tuple[tuple[str, Layout], ...]


def plan(model: OpenedModel) -> dict[KeyPath, _Leaf]:
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
            "config; give the files and the config of one model."
        )
    used: set[str] = set()
    planned = {}
    for path, leaf in jax.tree.leaves_with_path(abstract_params(model.config)):
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
        planned[path] = _Leaf(leaf.shape, shape, tuple(pieces))
    for name in tensors:
        if name not in used and not any(re.fullmatch(pattern, name) for pattern in model.ignored):
            raise CheckpointError(
                f"{tensors[name].file}: tensor {name!r} of shape {list(tensors[name].shape)} is not known for a "
                f"{model.config.family} model of {model.config.num_layers} layers; the file does not match its config."
            )
    return planned


def _probe(shape: tuple[int, ...]) -> np.ndarray:
    """Makes an array of one byte that has a leaf's shape, to ask for the shapes of its views."""
    return np.broadcast_to(np.uint8(0), shape)


def _check_tensor(model: OpenedModel, name: str, expected: tuple[int, ...]) -> None:
    info = model.source.tensors.get(name)
    if info is None:
        advice = _advice(model, name)
        raise CheckpointError(f"{model.where}: tensor {name!r} of shape {list(expected)} is missing; {advice}.")
    if info.shape != expected:
        raise CheckpointError(
            f"{info.file}: tensor {name!r} has shape {list(info.shape)}, but its config asks for {list(expected)}."
        )
    readable = model.source.readable
    if info.dtype not in readable:
        raise CheckpointError(
            f"{info.file}: tensor {name!r} is {info.dtype}, which is not supported; {', '.join(readable)} are."
        )


def _advice(model: OpenedModel, missing: str) -> str:
    """Says what to do about a tensor that a file does not have."""
    for prefix, advice in WRAPPERS.items():
        if any(name.startswith(prefix) for name in model.source.tensors):
            return f"its tensors' names begin with {prefix!r}: {advice}"
    rest = {row.source for row in model.rows if "{}" not in row.source} - {missing}
    if missing == HF_HEAD and rest <= model.source.tensors.keys():
        return 'if its head is the embedding, add "tie_word_embeddings": true to config.json'
    return "give the files and the config of one model"


def read_leaves(model: OpenedModel, dtype: str, weights: str | None) -> Params:
    """Prepares the leaves of a model to be read one after the other, so that a caller may hand each on before the next.

    Args:
      model: the opened checkpoint.
      dtype: "float32" or "bfloat16".
      weights: "int8" for matrices rounded from what the file has, whatever the dtype; None for those of the dtype.

    Returns:
      The tree of `abstract_params`, each leaf a function that reads it or a part of it.

    Raises:
      CheckpointError: if the tensors are not those of the model.
    """
    check_numbers(dtype, weights)
    planned = plan(model)
    model.check_weights()
    matrices = _Rounded(model)

    def reader(path: KeyPath, wanted: Any) -> Any:
        if is_int8(wanted):  # a tied head's numbers are the table's
            leaf = planned[path] if path in planned else planned[EMBED]
            return Int8(*(functools.partial(matrices.read, path, leaf, field) for field in Int8._fields))
        return functools.partial(_read_part, planned[path], model.source, np.dtype(wanted.dtype))

    wanted = abstract_params(model.config, jax.numpy.dtype(dtype), weights)
    params: Params = jax.tree_util.tree_map_with_path(reader, wanted, is_leaf=is_int8)
    return params


def check_numbers(dtype: str | None, weights: str | None) -> None:
    """Raises CheckpointError unless a model can have this dtype and these weights; None stands for what it has."""
    if dtype not in (None, *DTYPES):
        raise CheckpointError(f"dtype must be one of {', '.join(DTYPES)}, got {dtype!r}.")
    if weights not in (None, *WEIGHTS):
        raise CheckpointError(f"weights must be {', '.join(WEIGHTS)} or left out, got {weights!r}.")


def read_params(model: OpenedModel, dtype: str, weights: str | None, mesh: Mesh | None) -> Params:
    """Reads the whole parameter tree on the default device, or on a mesh as `mesh.sharded_params` says."""
    leaves = read_leaves(model, dtype, weights)  # first, since it refuses more layers than memory has room for
    params: Params = jax.tree.map(place, leaves, wanted_params(model.config, dtype, weights, mesh))
    return params


class _Rounded:
    """Rounds a file's matrices to eight bits, one after the other; keeps the last, whose value and scale are read in turn."""

    def __init__(self, model: OpenedModel) -> None:
        self._model = model
        self._path: KeyPath = ()
        self._parts: dict[range, Int8] = {}  # of its columns

    def read(self, path: KeyPath, leaf: _Leaf, field: str, part: Part | None) -> np.ndarray:
        """Reads a part of an `Int8`'s value or scale; None is all of it.

        A scale is of whole columns, so these are read, of a value that is split along the other axis too.
        """
        columns = range(leaf.shape[0 if _is_head(path) else 1]) if part is None else part[0]
        if self._path != path:
            self._path, self._parts = path, {}
        if columns not in self._parts:
            self._parts[columns] = self._round(path, leaf, columns)
        values: np.ndarray = getattr(self._parts[columns], field)
        if part is None or field == "scale":
            return values
        return values[:, part[1].start : part[1].stop]

    def _round(self, path: KeyPath, leaf: _Leaf, columns: range) -> Int8:
        def read(columns: range) -> np.ndarray:
            part = (columns, range(leaf.shape[1])) if _is_head(path) else (range(leaf.shape[0]), columns)
            order: Order = "C" if _is_head(path) else "F"  # side by side what products sum up, as in files
            weight = _read_part(leaf, self._model.source, np.dtype(np.float32), part, order)
            return weight if _is_head(path) else weight.T

        what = f"{self._model.where}: {jax.tree_util.keystr(path)}"
        if _is_head(path):  # the largest by far, and the one that can be read by rows
            inside = range(columns.start, min(columns.stop, leaf.shape[0]))
            padding = (0, len(columns) - len(inside))  # a mesh's, of zeros as elsewhere
            value, scale = rounded(read, inside, leaf.shape[1], what)
            return Int8(np.pad(value, (padding, (0, 0))), np.pad(scale, padding))
        weight_OI = read(columns)
        return rounded(lambda some: weight_OI[some.start : some.stop], range(len(columns)), leaf.shape[0], what)


def _is_head(path: KeyPath) -> bool:
    """Says whether a matrix lies with its numbers out first in the parameters that are not rounded, too."""
    return bool(path[0].key == "head")


def _read_part(leaf: _Leaf, source: TensorSource, dtype: np.dtype, part: Part | None, order: Order = "C") -> np.ndarray:
    """Reads a part of a leaf, zeros where it goes behind the leaf's end; None is all of it."""
    part = part or tuple(range(n) for n in leaf.shape)
    target = np.zeros([len(axis) for axis in part], dtype, order=order)
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
