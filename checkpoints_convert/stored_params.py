"""The parameters on disk: one Orbax checkpoint, written and read with little more memory than they take."""

import contextlib
import logging
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np

from checkpoints_convert.errors import CheckpointError
from jax_probe_mtp.config import ModelConfig
from jax_probe_mtp.messages import one_line
from jax_probe_mtp.params import Params, abstract_params

PARAMS = "params"


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


def load_params(folder: Path, cfg: ModelConfig, dtype: str) -> Params:
    """Reads `folder/params` onto the default device.

    Leaf by leaf: a restore of the whole tree holds most of it twice (1.7 times its size, against 1.06).

    Args:
      folder: the converted folder.
      cfg: the model.
      dtype: dtype of the arrays; stored ones are cast.

    Returns:
      The tree of `abstract_params(cfg)`.

    Raises:
      CheckpointError: if the files are missing, damaged, or not of the model's shapes.
    """
    import orbax.checkpoint as ocp

    wanted, treedef = jax.tree.flatten_with_path(abstract_params(cfg, jax.numpy.dtype(dtype)))
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    restore_args = [
        ocp.ArrayRestoreArgs(dtype=leaf.dtype, sharding=device, global_shape=leaf.shape, strict=True)
        for _, leaf in wanted
    ]
    arrays: list[jax.Array] = []
    with _without_orbax_notes(), ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer:
        for i, (path, leaf) in enumerate(wanted):
            others = [ocp.PLACEHOLDER] * len(wanted)
            item = jax.tree.unflatten(treedef, [*others[:i], leaf, *others[i + 1 :]])
            args = ocp.args.PyTreeRestore(item=item, restore_args=jax.tree.unflatten(treedef, restore_args))
            try:
                restored = checkpointer.restore(folder.resolve() / PARAMS, args=args)
                arrays.append(jax.block_until_ready(jax.tree.leaves(restored)[i]))
            except Exception as error:  # Orbax and tensorstore raise many kinds
                name, reason = jax.tree_util.keystr(path), one_line(error)[:300]
                raise CheckpointError(
                    f"{folder / PARAMS}: {name} cannot be restored ({reason}); convert again."
                ) from None
    return jax.tree.unflatten(treedef, arrays)
