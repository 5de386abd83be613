"""A decode call by call: the tree of each call, what was accepted, and the states before and after it."""

from collections.abc import Iterator
from typing import Any

import flax.struct
import jax

from jax_probe_mtp.decoding.batch import Batch
from jax_probe_mtp.decoding.loop import prefill
from jax_probe_mtp.decoding.state import DecodeState
from jax_probe_mtp.decoding.step import Call, step_and_call
from jax_probe_mtp.drafting.source import DraftSource
from jax_probe_mtp.model.config import ModelConfig
from jax_probe_mtp.model.params import Params

_STATIC = ("cfg", "source", "decode_cfg")
_prefill = jax.jit(prefill, static_argnames=_STATIC)
_step = jax.jit(step_and_call, static_argnames=_STATIC)


class TracedCall(flax.struct.PyTreeNode, kw_only=True):
    """One call.

    Attributes:
      before: the state before it: what the source knew and which masks went in.
      call: its tree, owners of masks, walk and new tokens.
      after: the state after it.
    """

    before: DecodeState
    call: Call
    after: DecodeState


def trace(
    params: Params,
    batch: Batch,
    cfg: ModelConfig,
    source: DraftSource,
    shared: Any = None,
    state: DecodeState | None = None,
) -> Iterator[TracedCall]:
    """Decodes a batch as `decode` does, outside `jax.jit`, and stops after every call.

    The first call after a prefill belongs to it and drafts nothing. Two states are alive at a time, so the cache takes its
    memory twice.

    Args:
      params, batch, cfg, source, shared: as for `decode`.
      state: what to go on from in place of a prefill; what the rows share is then the state's.
    """
    if state is not None and shared is not None:
        raise ValueError("a state has what its rows share; give one of state and shared.")
    static = {"cfg": cfg, "source": source, "decode_cfg": batch.config}
    if state is None:
        state = _prefill(params, batch.prompt_BT, batch.request, shared=shared, **static)
    while not state.is_done_B.all():
        after, call = _step(params, batch.request, state, **static)
        yield TracedCall(before=state, call=call, after=after)
        state = after
