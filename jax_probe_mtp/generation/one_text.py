"""Says where exact answers are the same, whatever program makes them: on CUDA GPUs, but for eight-bit weights in float32.

There a token's logits have the same bits in a call of one row and of many, in any tree, batch and capacity
(`decoding/any_rows.py`). Elsewhere exact answers are those of one compiled program.
"""

import jax
import jax.numpy as jnp

from jax_probe_mtp.decoding import any_rows, block_layer
from jax_probe_mtp.drafting.source import DraftSource
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.params import weights_of


def has_one_text(checkpoint: Checkpoint) -> bool:
    """Says whether exact answers of this checkpoint, where it lies, do not depend on the program."""
    table_VD: jax.Array = checkpoint.params["embed"]
    if table_VD.dtype not in any_rows.DTYPES or not hasattr(table_VD, "devices"):
        return False
    if (
        table_VD.dtype == jnp.float32 and weights_of(checkpoint.params) is not None
    ):  # kernels of eight bits take bfloat16
        return False
    device = next(iter(table_VD.devices()))
    return device.platform == "gpu" and "rocm" not in device.client.platform_version  # as JAX tells the two apart


def device_kind(checkpoint: Checkpoint) -> str:
    """Names the kind of device that the checkpoint lies on, whose instructions decide the bits."""
    table_VD: jax.Array = checkpoint.params["embed"]
    return next(iter(table_VD.devices())).device_kind


def check(checkpoint: Checkpoint, source: DraftSource) -> None:
    """Raises ValueError where exact answers cannot be had.

    That is where a piece of the model has no kernel, where the source's trees are too deep, and where a source that chooses
    among several programs has no one text.
    """
    if not has_one_text(checkpoint):
        if source.sizes:
            raise ValueError(
                "the exact mode is exact within one program here, and this draft chooses among several; "
                "name a size, such as merged:64."
            )
        return
    lacking = any_rows.lacking(jax.tree.map(_part, checkpoint.params), checkpoint.config)
    if lacking:
        raise ValueError(
            f"the exact mode has no GPU kernels for {', '.join(lacking)}: leave --exact out, or run on a CPU, "
            "where answers are exact for one program."
        )
    depth = source.max_depth + source.num_masks
    if depth > block_layer.WINDOW:
        raise ValueError(
            f"the exact mode takes paths of at most {block_layer.WINDOW} rows below a root on a GPU, masks counted, "
            f"got {depth}: give a shallower tree, or leave --exact out."
        )


def _part(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    """Gives what a device has of an array: on a mesh a part, which has kernels or not."""
    return jax.ShapeDtypeStruct(leaf.sharding.shard_shape(leaf.shape), leaf.dtype)
