"""A decode call by call: the tree of each call, what was accepted, and the states before and after it; as a drawing too."""

import math
from collections.abc import Callable, Iterator
from typing import Any

import flax.struct
import jax

from jax_probe_mtp.decoding.batch import Batch
from jax_probe_mtp.decoding.loop import prefill
from jax_probe_mtp.decoding.state import DecodeState
from jax_probe_mtp.decoding.step import Call, step_and_call
from jax_probe_mtp.drafting.candidates import NO_TOKEN
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


def draw(call: Call, source: DraftSource, show: Callable[[int], str], row: int = 0) -> str:
    """Draws the tree of one call as text, a line a node, children under their parent and further to the right.

    A line holds the token, the probability of the path to it as the source sees it, who proposed it, and whether it was
    accepted and owned a mask. The bonus token stands under the node that it follows.

    Args:
      call: from `trace`.
      source: what drafted.
      show: token id -> text.
      row: of the batch.
    """
    tree, accepted = call.tree, call.accepted
    token_N, parent_N, depth_N = (each[row].tolist() for each in (tree.token_BN, tree.parent_BN, tree.depth_BN))
    walk = accepted.node_BP[row].tolist()[: int(accepted.num_accepted_B[row]) + 1]
    owners = range(len(token_N)) if call.owner_BO is None else call.owner_BO[row].tolist()
    lines = []

    def add(node: int) -> None:
        notes = ["accepted"] * (node in walk[1:]) + ["owns a mask"] * (source.num_masks > 0 and node in owners)
        path = f"{math.exp(tree.score_BN[row, node]):.2f}" if node else ""
        kind = source.kinds[int(tree.kind_BN[row, node])] if node else "root"
        lines.append(("  " * depth_N[node] + repr(show(token_N[node])), path, kind, ", ".join(notes)))
        for child in range(1, len(token_N)):
            if parent_N[child] == node and token_N[child] != NO_TOKEN:
                add(child)
        if node == walk[-1]:
            bonus = show(int(accepted.token_BP[row, len(walk) - 1]))
            lines.append(("  " * (depth_N[node] + 1) + repr(bonus), "", "bonus", ""))

    add(0)
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)
