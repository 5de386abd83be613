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
    """Decodes a batch as `decode` does, and stops after every call; the first call is the prefill's and drafts nothing.

    Takes what `decode` takes, outside `jax.jit`, and a state to go on from in place of a prefill. Two states are alive at
    a time, so the cache takes its memory twice.
    """
    static = {"cfg": cfg, "source": source, "decode_cfg": batch.config}
    if state is None:
        state = _prefill(params, batch.prompt_BT, batch.request, shared=shared, **static)
    while not state.is_done_B.all():
        after, call = _step(params, batch.request, state, **static)
        yield TracedCall(before=state, call=call, after=after)
        state = after
