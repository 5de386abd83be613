"""A decode call by call, as lists."""

import dataclasses

import jax
import numpy as np

from jax_probe_mtp.decoding.loop import prefill
from jax_probe_mtp.decoding.trace import trace
from support.decoding.batches import batch_of
from support.drafting.trees import nodes_of

NO_TOKEN = -1
jit_prefill = jax.jit(prefill, static_argnames=("cfg", "source", "decode_cfg"))


def run_by_calls(tiny, prompts, source, max_new_tokens, seeds=None, shared=None, **draw):
    """Gives the tokens, trees and accepted counts of each row; the first call belongs to the prefill."""
    how = {"eos_token_ids": [], "capacity": 64} | draw
    batch = batch_of(tiny.cfg, source, prompts, max_new_tokens=max_new_tokens, seeds=seeds, **how)
    state = jit_prefill(tiny.params, batch.prompt_BT, batch.request, tiny.cfg, source, batch.config, shared)
    if hasattr(source, "mask_init"):  # a step does not read it: one program serves all
        source = dataclasses.replace(source, mask_init="mean", mask_ema=None, mask_offset=5.0)
    trees, accepted = [[] for _ in prompts], [[] for _ in prompts]
    for number, traced in enumerate(trace(tiny.params, batch, tiny.cfg, source, state=state)):
        # Looked at in NumPy: a slice of a JAX array is a program of its own.
        was_done_B, tree, counts_B = jax.device_get(
            (traced.before.is_done_B, traced.call.tree, traced.call.accepted.num_accepted_B)
        )
        assert number > 0 or np.all(tree.token_BN[:, 1:] == NO_TOKEN)
        for row, nodes in enumerate(nodes_of(tree)):
            if number > 0 and not was_done_B[row]:
                trees[row].append(nodes)
                accepted[row].append(int(counts_B[row]))
    last = jax.device_get(traced.after)
    tokens = [last.token_BT[row, len(p) : last.length_B[row] + 1].tolist() for row, p in enumerate(prompts)]
    assert last.calls_B.tolist() == [len(calls) for calls in trees]
    assert last.accepted_by_depth_BX.sum(axis=1).tolist() == last.accepted_by_kind_BZ.sum(axis=1).tolist()
    assert last.accepted_by_depth_BX.sum(axis=1).tolist() == [sum(counts) for counts in accepted]
    return tokens, trees, accepted
