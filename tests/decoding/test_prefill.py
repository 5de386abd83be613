"""The prefill: pieces, padding, and what a piece reads."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from support.decoding.batches import batch_of

from jax_probe_mtp import decode
from jax_probe_mtp.decoding.config import DecodeConfig
from jax_probe_mtp.decoding.loop import prefill
from jax_probe_mtp.drafting import Plain, Probe
from jax_probe_mtp.drafting.source import SourceState

PROBE, PLAIN = Probe(widths=(9, 3)), Plain()
jit_decode = jax.jit(decode, static_argnames=("cfg", "source"))
jit_prefill = jax.jit(prefill, static_argnames=("cfg", "source", "decode_cfg"))


@pytest.mark.parametrize("chunk", [1, 3, 5, 64])
def test_chunked_prefill_leaves_the_same_cache(tiny, chunk):
    prompts = [[*range(1, 20)], [40, 41]]
    batch = batch_of(tiny.cfg, PROBE, prompts, max_new_tokens=4, eos_token_ids=[], capacity=40)
    # No padding behind the longest: the last chunk has to overlap the one before.
    batch = batch.replace(prompt_BT=batch.prompt_BT[:, :19], config=DecodeConfig(capacity=40, prefill_chunk=chunk))
    args = tiny.params, batch.prompt_BT, batch.request, tiny.cfg, PROBE
    state = jit_prefill(*args, batch.config)
    whole = jit_prefill(*args, DecodeConfig(capacity=40))
    for row, length in enumerate([18, 1]):
        for got, expected in zip(state.cache.k + state.cache.v, whole.cache.k + whole.cache.v, strict=True):
            np.testing.assert_allclose(got[row, :, :length], expected[row, :, :length], atol=1e-5)
            assert np.abs(expected[row, :, :length]).min() > 0
    result = jit_decode(tiny.params, batch, tiny.cfg, PROBE)
    for row, prompt in enumerate(prompts):
        expected, _ = reference.plain_decode(tiny.reference, prompt, max_new_tokens=4)
        assert np.asarray(result.token_BT)[row, len(prompt) : len(prompt) + 4].tolist() == expected


# Every twentieth of the 253 Spec-Bench questions, by length, in tokens of Qwen2.5's chat.
SPEC_BENCH = (38, 39, 41, 43, 50, 55, 61, 68, 71, 79, 85, 95, 105, 168, 383, 574, 678, 726, 765, 820, 1517)


@dataclasses.dataclass(frozen=True)
class CountsRows(Plain):
    """Counts the prompt rows that the model reads."""

    def start(self, model, prompts, shared):
        return SourceState(rows=jnp.zeros_like(prompts.length_B), shared=shared)

    def read(self, state, chunk):
        return state.replace(rows=state.rows + chunk.token_BU.shape[1])


def test_at_most_a_quarter_of_what_prompts_take_is_padding(tiny):
    cfg, rows = dataclasses.replace(tiny.cfg, context_length=2048), []
    for length in SPEC_BENCH:
        batch = batch_of(cfg, CountsRows(), [[5] * length], max_new_tokens=1, eos_token_ids=[])
        state = jit_prefill(tiny.params, batch.prompt_BT, batch.request, cfg, CountsRows(), batch.config)
        rows += [int(state.source.rows[0])]
    needed = [length - 1 for length in SPEC_BENCH]
    assert all(read >= need for read, need in zip(rows, needed, strict=True))
    assert sum(needed) >= 0.75 * sum(rows)


def test_what_the_capacity_adds_to_a_prefill_is_not_attended_to(tiny):
    """The compiled prefill has no array as wide as the cache but the cache: each piece reads the prompt's own slots."""
    batch = batch_of(tiny.cfg, PLAIN, [[5] * 60], max_new_tokens=1, eos_token_ids=[], capacity=391)
    lowered = jit_prefill.lower(tiny.params, batch.prompt_BT, batch.request, tiny.cfg, PLAIN, batch.config)
    slots = 391 + PLAIN.num_rows
    shapes = {
        shape for shape in re.findall(r"tensor<([0-9x]+)xf32>", lowered.as_text()) if str(slots) in shape.split("x")
    }
    assert shapes <= {f"{'1x' * i}{tiny.cfg.num_kv_heads}x{slots}x{tiny.cfg.head_dim}" for i in (0, 1)}
    assert shapes
