"""Keeps the parameters on disk: one Orbax checkpoint, written and read with little more memory than they take."""

import contextlib
import functools
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from checkpoints_convert.errors import CheckpointError, is_failure
from checkpoints_convert.mapping.fields import Fields, read_json
from checkpoints_convert.mapping.transforms import Part
from checkpoints_convert.params.fill import EMBED, KeyPath
from checkpoints_convert.params.placement import place, wanted_params
from checkpoints_convert.params.rounding import check_scales, rounded
from jax_probe_mtp.errors import one_line
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.params import Int8, Params, abstract_params, by_head, is_int8

PARAMS = "params"
GATE_UP = "gate_up"  # in version 1


@contextlib.contextmanager
def _without_orbax_notes() -> Iterator[None]:
    """Hides warnings meant for training jobs, such as that there are no OCDBT files to merge."""
    logger = logging.getLogger("absl")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def save_params(folder: Path, params: Params) -> None:
    """Writes `folder/params` with Orbax, referring to the arrays instead of copying them.

    By default every numpy array is copied before it is written, the OCDBT format keeps most of the data in memory once
    more until it is committed, and compression takes another buffer an array to save a tenth of the size. For a 0.5B
    model in float32 these take 2.8 times its size; without them, 1.01.

    Args:
      folder: the converted folder.
      params: a tree of numpy arrays.
    """
    import orbax.checkpoint as ocp  # slow to import, and `info` does without

    types = ocp.type_handlers
    handler = ocp.PyTreeCheckpointHandler(
        use_ocdbt=False,
        use_compression=False,
        type_handler_registry=types.create_type_handler_registry(
            (np.ndarray, types.NumpyHandler(deepcopy_host_arrays=False)), (jax.Array, types.ArrayHandler())
        ),
    )
    with _without_orbax_notes(), ocp.Checkpointer(handler) as checkpointer:
        checkpointer.save(folder / PARAMS, args=ocp.args.PyTreeSave(params))


def load_params(
    folder: Path,
    cfg: ModelConfig,
    dtype: str,
    weights: str | None,
    mesh: Mesh | None = None,
    *,
    stored_weights: str | None,
    version: int,
) -> Params:
    """Reads `folder/params` onto the default device or a mesh.

    Leaf by leaf, each by tensorstore, which Orbax writes with: a restore of the whole tree holds most of it twice (1.7 times
    its size, against 1.06), and one of a leaf takes Orbax longer than reading it. A leaf is one chunk on disk, which is read
    whole whatever part of it is asked for; so each process reads every leaf, and keeps its parts.

    Args:
      folder: the converted folder.
      cfg: the model.
      dtype: dtype of the arrays; stored ones are cast.
      weights: "int8" for matrices of eight bits, rounded here where they are not stored so; None for those of the dtype.
      mesh: the devices, as `mesh.sharded_params` uses them; None is the default device.
      stored_weights: what matrices the folder has, None for those of its dtype; nothing but "int8" is made of "int8".
      version: of the folder's format. In 1 the heads of `qkv`, `qkv_bias` and `out` had axes of their own, and gate and up
        were one array [D, 2, F].

    Returns:
      The tree of `abstract_params`, or on a mesh of `sharded_params`.

    Raises:
      CheckpointError: if the files are missing, damaged, or not of the model's shapes.
    """
    import tensorstore  # `info` does without

    _check_layout(folder / PARAMS)
    whole = abstract_params(cfg, jax.numpy.dtype(dtype), stored_weights)
    stored = dict(jax.tree.leaves_with_path(whole if version > 1 else _as_in_version_1(whole, cfg)))
    _check_names(folder / PARAMS, {_name(path) for path in stored})

    def restore(path: KeyPath) -> np.ndarray:
        """Reads a stored leaf as it lies on disk."""
        at = folder.resolve() / PARAMS / _name(path)
        try:
            _check_array(at / ".zarray", stored[path].shape, _stored_dtypes(path))
            spec = {"driver": "zarr", "kvstore": {"driver": "file", "path": f"{at}/"}}
            if not (at / ".".join("0" * len(stored[path].shape))).is_file():
                raise ValueError("its chunk is missing")  # which tensorstore takes for zeros
            array: np.ndarray = tensorstore.open(spec, read=True).result().read().result()
        except BaseException as error:  # tensorstore raises many kinds
            if not is_failure(error):
                raise
            name, reason = jax.tree_util.keystr(path), one_line(error)[:300]
            raise CheckpointError(f"{folder / PARAMS}: {name} cannot be restored ({reason}); convert again.") from None
        return array

    def matrix(path: KeyPath, shape: tuple[int, ...]) -> np.ndarray:
        """Gives an array of version 2 or later, not cast."""
        if path in stored:
            return restore(path).reshape(shape)
        stored_D2F = restore((*path[:-1], jax.tree_util.DictKey(GATE_UP)))
        return np.ascontiguousarray(stored_D2F[:, ("gate", "up").index(path[-1].key)])

    def read(path: KeyPath, ours: Any) -> Any:
        """Gives what is ours at a path: an array, or an `Int8`."""
        if not is_int8(ours):
            return matrix(path, ours.shape).astype(dtype, copy=False)
        what = f"{folder / PARAMS}: {jax.tree_util.keystr(path)}"
        if stored_weights:
            weight = Int8(*(restore((*path, jax.tree_util.GetAttrKey(field))) for field in Int8._fields))
            check_scales(weight.scale, what, "convert again")
            return weight
        num_out, num_in = ours.value.shape
        if path[0].key == "head":
            weight_OI = matrix(path if path in stored else EMBED, (num_out, num_in))
        else:
            weight_OI = matrix(path, (num_in, num_out)).T
        return rounded(lambda some: weight_OI[some.start : some.stop], range(num_out), num_in, what)

    def put(path: KeyPath, ours: Any, on_devices: Any) -> Any:
        return jax.tree.map(
            lambda values, leaf: place(functools.partial(_cut, values), leaf), read(path, ours), on_devices
        )

    ours = abstract_params(cfg, jax.numpy.dtype(dtype), weights)
    wanted = wanted_params(cfg, dtype, weights, mesh)
    params: Params = jax.tree_util.tree_map_with_path(put, ours, wanted, is_leaf=is_int8)
    return params


def _as_in_version_1(params: Params, cfg: ModelConfig) -> Params:
    """Gives the parameters that a folder of version 1 holds."""

    def of_layer(layer: Params) -> Params:
        apart = {
            name: jax.ShapeDtypeStruct(shape, layer[name].dtype)
            for name, shape in by_head(cfg).items()
            if name in layer
        }
        both = jax.ShapeDtypeStruct((cfg.width, 2, cfg.mlp_width), layer["gate"].dtype)
        return {name: leaf for name, leaf in layer.items() if name not in ("gate", "up")} | apart | {GATE_UP: both}

    return params | {"layers": [of_layer(layer) for layer in params["layers"]]}


def _check_layout(params: Path) -> None:
    """Refuses formats that `save_params` does not write: Orbax would follow its notes to them."""
    notes = read_json(params / "_METADATA") if (params / "_METADATA").exists() else {}
    if notes.get("use_zarr3") or notes.get("use_ocdbt") or (params / "manifest.ocdbt").exists():
        raise CheckpointError(
            f"{params} holds zarr3 or OCDBT arrays; only those of a conversion are read, convert again."
        )


def _name(path: KeyPath) -> str:
    """Gives the name of a leaf's folder."""
    return jax.tree_util.keystr(path, simple=True, separator=".")


def _check_names(params: Path, expected: set[str]) -> None:
    found = {path.name for path in params.iterdir() if path.is_dir()}
    if found != expected:
        name = min(found ^ expected)
        raise CheckpointError(
            f"{params} holds {len(found)} arrays, but its config asks for {len(expected)}: they do not match, {name} is "
            f"{'missing' if name in expected else 'not known'}; convert again."
        )


def _stored_dtypes(path: KeyPath) -> tuple[str, ...]:
    """Says what a leaf may be stored as, by zarr's names."""
    of_int8 = {"value": ("|i1",), "scale": ("<f4",)}
    return of_int8[path[-1].name] if isinstance(path[-1], jax.tree_util.GetAttrKey) else ("<f4", "bfloat16")


def _check_array(notes: Path, shape: tuple[int, ...], dtypes: tuple[str, ...]) -> None:
    """Checks the sizes in an array's notes before the library believes them: without memory for them it ends the process."""
    fields = Fields(read_json(notes), str(notes))
    stored, chunks = fields.items("shape"), fields.items("chunks")
    if stored != list(shape):
        raise ValueError(f"its shape is {stored}, but its config asks for {list(shape)}")
    if chunks != stored or fields.text("dtype") not in dtypes or "compressor" in fields or "filters" in fields:
        raise ValueError(f"{notes} asks for something else than one plain chunk of {' or '.join(dtypes)}")


def _cut(leaf: np.ndarray, part: Part | None) -> np.ndarray:
    """Cuts a part out of a leaf: a copy, so that the leaf can go."""
    if part is None:
        return leaf
    values = leaf[tuple(slice(axis.start, axis.stop) for axis in part)]  # numpy stops at the leaf's end
    return np.pad(values, [(0, len(axis) - n) for n, axis in zip(values.shape, part, strict=True)])
