"""Batches that are timed on their own: the first one leaves no trace, a known shape is not traced again."""

import dataclasses
import itertools

import jax
import numpy as np
import pytest
import reference
from checkpoints import EOS, make_checkpoint

from jax_probe_mtp import Prompt, Settings, decode
from jax_probe_mtp.decoding.config import DecodeConfig
from jax_probe_mtp.drafting import Plain, Probe, Recycle
from jax_probe_mtp.generation import decoder as module
from jax_probe_mtp.generation.decoder import Decoder
from jax_probe_mtp.model.mesh import make_mesh, sharded_params

PROMPTS = [
    Prompt(id="a", token_ids=[7]),
    Prompt(id="b", token_ids=[5, 9, 2, 44, 17, 3, 3]),
    Prompt(id="c", token_ids=[60, 1, 33, 8]),
    Prompt(id="d", token_ids=list(range(12, 24))),
]


@pytest.fixture(scope="module")
def checkpoint(tiny):
    return make_checkpoint(tiny)


def test_a_first_batch_is_run_for_two_tokens_first_and_that_leaves_no_trace(tiny, checkpoint, monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(ticks))
    draft, settings = Recycle(tree=12, warm=True), Settings(max_new_tokens=8, batch_size=2)
    decoder = Decoder(checkpoint, draft)
    batch = PROMPTS[1:3]
    answers = decoder.run_batch(batch, settings)
    assert [answer.token_ids for answer in answers] == [
        reference.plain_decode(tiny.reference, prompt.token_ids, max_new_tokens=8, eos=(EOS,))[0] for prompt in batch
    ]
    assert (decoder.stats.prefill_seconds, decoder.stats.seconds) == (1, 2)  # one run: start, filled, end
    assert decoder.stats.new_tokens == sum(len(answer.token_ids) for answer in answers)
    once = decode(checkpoint.params, *decoder.request(batch, settings)[:2], tiny.cfg, draft, DecodeConfig(capacity=64))
    np.testing.assert_array_equal(decoder._table.id_YVC, once.table.id_YVC)
    decoder.run_batch(batch, settings)
    assert decoder.stats.seconds == 4


def test_a_batch_of_known_shapes_traces_nothing(checkpoint, monkeypatch):
    honest, traces = module.decode_loop.prefill, []
    monkeypatch.setattr(module.decode_loop, "prefill", lambda *args, **how: traces.append(1) or honest(*args, **how))
    decoder, settings = Decoder(checkpoint, Probe(widths=(4,))), Settings(max_new_tokens=3, batch_size=2)
    decoder.run_batch(PROMPTS[:2], settings)
    assert traces, "the spy saw no trace at all"
    traces.clear()
    decoder.run_batch(PROMPTS[1:3], settings)
    assert not traces


def test_a_batch_on_its_own_runs_on_one_device(checkpoint):
    params = jax.tree.map(
        lambda array, wanted: jax.device_put(np.asarray(array), wanted.sharding),
        checkpoint.params,
        sharded_params(checkpoint.config, make_mesh(1, 1)),
    )
    plain = Decoder(dataclasses.replace(checkpoint, params=params), Plain())
    with pytest.raises(ValueError, match=r"^a batch on its own runs on one device; use `run`"):
        plain.run_batch(PROMPTS[:2], Settings(batch_size=2))
