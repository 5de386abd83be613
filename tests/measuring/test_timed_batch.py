"""Batches that are timed each on its own: their answers, clocks and counts, and what leaves a trace."""

import dataclasses
import itertools

import chex
import jax
import numpy as np
import pytest
import reference
from checkpoints import EOS, make_checkpoint

from jax_probe_mtp import Prompt, Settings, decode
from jax_probe_mtp.drafting import Plain, Probe, Recycle
from jax_probe_mtp.measuring import timed_batch
from jax_probe_mtp.measuring.timed_batch import TimedBatches
from jax_probe_mtp.model.mesh import make_mesh, sharded_params

PROMPTS = [
    Prompt(id="a", token_ids=[7]),
    Prompt(id="b", token_ids=[5, 9, 2, 44, 17, 3, 3]),
    Prompt(id="c", token_ids=[60, 1, 33, 8]),
]
TREE = {
    "tree": (7, 3),
    "num_masks": 2,
    "block_complexity": None,
    "prune": True,
    "mask_init": "mean",
    "mask_offset": 5.0,
}


@pytest.fixture(scope="module")
def checkpoint(tiny):
    return make_checkpoint(tiny)


def plain_tokens(tiny, prompt, new):
    return reference.plain_decode(tiny.reference, prompt.token_ids, max_new_tokens=new, eos=(EOS,))[0]


def test_a_first_batch_is_run_for_two_tokens_first_and_that_leaves_no_trace(tiny, checkpoint, monkeypatch):
    ticks = itertools.count()
    monkeypatch.setattr(timed_batch.time, "perf_counter", lambda: next(ticks))
    source, settings = Recycle(tree=12, warm=True), Settings(max_new_tokens=8, batch_size=2)
    batches = TimedBatches(checkpoint, source)
    prompts = PROMPTS[1:3]
    answers = [timed.generation for timed in batches.run(prompts, settings)]
    assert [answer.token_ids for answer in answers] == [plain_tokens(tiny, prompt, 8) for prompt in prompts]
    assert (batches.stats.prefill_seconds, batches.stats.seconds) == (1, 2)  # one run: start, filled, end
    assert batches.stats.new_tokens == sum(len(answer.token_ids) for answer in answers)
    once = decode(checkpoint.params, batches.lay_out(prompts, settings), tiny.cfg, source)
    np.testing.assert_array_equal(batches._shared.id_YVC, once.shared.id_YVC)
    batches.run(prompts, settings)
    assert batches.stats.seconds == 4


@pytest.mark.parametrize("source", [Probe(widths=(7, 3)), Recycle(tree=12, warm=True)], ids=["probe", "warm"])
def test_a_mesh_gives_the_same(tiny, checkpoint, source):
    """Of one device, which is all there is here; what several give is the same code's, `tests/generation/test_mesh.py`."""
    wanted = sharded_params(tiny.cfg, make_mesh(1, 1))
    params = jax.tree.map(lambda leaf, other: jax.device_put(leaf, other.sharding), checkpoint.params, wanted)
    batches = TimedBatches(dataclasses.replace(checkpoint, params=params), source)
    assert batches.programs.mesh is not None
    settings = Settings(max_new_tokens=8, batch_size=2)
    for prompts in (PROMPTS[:2], PROMPTS[1:]):  # the second with what the first has taught
        answers = [timed.generation for timed in batches.run(prompts, settings)]
        assert [answer.token_ids for answer in answers] == [plain_tokens(tiny, prompt, 8) for prompt in prompts]
        assert sum(answer.committed for answer in answers) > sum(answer.calls for answer in answers)


def test_a_batch_of_known_shapes_traces_nothing(checkpoint, monkeypatch):
    honest, traces = timed_batch.prefill, []
    monkeypatch.setattr(timed_batch, "prefill", lambda *args, **how: traces.append(1) or honest(*args, **how))
    batches, settings = TimedBatches(checkpoint, Probe(widths=(4,))), Settings(max_new_tokens=3, batch_size=2)
    batches.run(PROMPTS[:2], settings)
    assert traces, "the spy saw no trace at all"
    traces.clear()
    num_programs = len(batches.programs)
    batches.run(PROMPTS[1:3], settings)
    assert not traces
    assert len(batches.programs) == num_programs == 2


def test_answers_and_drafts_by_kind_are_the_references(tiny, checkpoint):
    """Three prompts through four rows: the idle one leaves nothing behind."""
    batches, settings = TimedBatches(checkpoint, Probe(widths=(7, 3))), Settings(max_new_tokens=24, batch_size=4)
    timed = batches.run(PROMPTS, settings)
    assert [each.generation.id for each in timed] == ["a", "b", "c"]
    for each, prompt in zip(timed, PROMPTS, strict=True):
        tokens, _, accepted = reference.probe_decode(
            tiny.reference, prompt.token_ids, TREE, max_new_tokens=24, eos=(EOS,)
        )
        answer = each.generation
        assert (answer.token_ids, answer.calls, answer.draft) == (tokens, len(accepted), "probe:7+3")
        assert answer.accepted_by_depth == [sum(count >= depth for count in accepted) for depth in (1, 2)]
        assert each.accepted_by_kind == {"probe": sum(accepted)}
    assert sum(each.accepted_by_kind["probe"] for each in timed) > 0
    assert batches.stats.records == 3


def test_a_batch_beside_others_of_a_kind_is_that_batch_alone(checkpoint):
    """A source that learns nothing across prompts gives the same whatever ran before."""
    settings = Settings(max_new_tokens=8, batch_size=1)
    batches = TimedBatches(checkpoint, Recycle(tree=12))
    first, _, again = (batches.run([prompt], settings) for prompt in (PROMPTS[1], PROMPTS[2], PROMPTS[1]))
    assert first == again
    warm = TimedBatches(checkpoint, Recycle(tree=12, warm=True))
    first, again = (warm.run([PROMPTS[1]], settings) for _ in range(2))
    assert first[0].generation.token_ids == again[0].generation.token_ids
    assert first[0].generation.calls > again[0].generation.calls, "a warm table drafts better the second time"


def test_what_is_compiled_ahead_is_not_compiled_again(checkpoint):
    batches, settings = TimedBatches(checkpoint, Probe(widths=(5,))), Settings(max_new_tokens=3, batch_size=2)
    batch = batches.lay_out(PROMPTS[:2], settings, 2)
    batches.compile(batch)
    seconds = batches.stats.compile_seconds
    assert seconds > 0
    batches.run(PROMPTS[:2], settings)
    assert batches.stats.compile_seconds == seconds
    assert len(batches.programs) == 2


def test_plain_decoding_has_no_kinds(checkpoint):
    (timed,) = TimedBatches(checkpoint, Plain()).run(PROMPTS[1:2], Settings(max_new_tokens=5))
    assert (timed.generation.accepted_by_depth, sum(timed.accepted_by_kind.values())) == ([], 0)
    assert (timed.generation.calls, timed.generation.draft) == (4, "plain")


def test_what_a_batch_on_its_own_cannot_do_is_said(checkpoint):
    batches = TimedBatches(checkpoint, Plain())
    with pytest.raises(ValueError, match="no exact mode"):
        batches.run(PROMPTS[:1], Settings(is_exact=True))
    with pytest.raises(ValueError, match="2 prompts do not fit 1 rows"):
        batches.run(PROMPTS[:2], Settings())
    with pytest.raises(ValueError, match="source must be a DraftSource"):
        TimedBatches(checkpoint, "probe:14")


def test_the_tables_of_idle_rows_stay_empty(tiny, checkpoint):
    source, settings = Recycle(tree=12, warm=True), Settings(max_new_tokens=8, batch_size=3)
    idle = TimedBatches(checkpoint, source)
    idle.run(PROMPTS[1:2], settings)
    alone = decode(checkpoint.params, idle.lay_out(PROMPTS[1:2], settings), tiny.cfg, source).shared
    chex.assert_trees_all_close(jax.device_get(idle._shared), jax.device_get(alone), rtol=1e-5)
