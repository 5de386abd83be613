"""The loop's edges: ends, capacity, accepted depths, programs. That tokens and trees are right is in test_lossless.py."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from checkpoints import make_checkpoint
from conftest import BASE, FAMILIES, make_tiny
from support.decoding.batches import batch_of

from jax_probe_mtp import Prompt, Settings, decode
from jax_probe_mtp.decoding.config import DecodeConfig
from jax_probe_mtp.decoding.loop import prefill, run_steps
from jax_probe_mtp.decoding.step import step
from jax_probe_mtp.drafting import DynamicProbe, Plain, Probe
from jax_probe_mtp.generation.decoder import Decoder
from jax_probe_mtp.model.params import abstract_params

PROMPTS = [[7, 8], [5, 9, 2, 44, 17, 3, 3], [60, 1, 33, 8], [12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22, 23]]
PROBE = Probe(widths=(9, 3))
DYNAMIC = DynamicProbe(rows=30, num_masks=2)
STATIC = ("cfg", "source", "decode_cfg")
jit_decode = jax.jit(decode, static_argnames=("cfg", "source"))
jit_prefill = jax.jit(prefill, static_argnames=STATIC)
jit_step = jax.jit(step, static_argnames=STATIC)


def run(tiny, prompts, *, probe=PROBE, eos=(), max_new_tokens=15, capacity=64, **settings):
    batch = batch_of(
        tiny.cfg, probe, prompts, max_new_tokens=max_new_tokens, eos_token_ids=eos, capacity=capacity, **settings
    )
    result = jit_decode(tiny.params, batch, tiny.cfg, probe)
    texts = [
        np.asarray(result.token_BT)[row, len(p) : len(p) + int(result.num_emitted_B[row])].tolist()
        for row, p in enumerate(prompts)
    ]
    return texts, result


def plain(tiny, prompt, **settings):
    return reference.plain_decode(tiny.reference, prompt, **{"max_new_tokens": 15} | settings)[0]


@pytest.mark.parametrize("num_ids", [1, 2])
def test_rows_end_at_any_of_the_end_of_text_ids(tiny, num_ids):
    # ids that plain decoding reaches at different places, or not at all
    texts = [plain(tiny, prompt) for prompt in PROMPTS]
    eos = (texts[0][4], texts[1][9])[:num_ids]
    got, _ = run(tiny, PROMPTS, eos=eos)
    expected = [plain(tiny, prompt, eos=eos) for prompt in PROMPTS]
    assert got == expected
    assert len({len(text) for text in expected}) > 1, "all rows end together: choose other ids"


def test_an_end_inside_an_accepted_path_cuts_it_there(tiny):
    """The drafts are the true continuation, so the end of text comes with accepted drafts before and behind it."""
    text = plain(tiny, PROMPTS[1], max_new_tokens=12)
    for end in range(2, 9):
        if text[end] in text[:end]:
            continue
        got = _with_true_drafts(tiny, [PROMPTS[1]], [text], eos=[text[end]], max_new_tokens=10)
        assert got[0][0] == text[: end + 1]


def test_one_new_token_takes_no_decode_call(tiny):
    got, result = run(tiny, PROMPTS, max_new_tokens=1)
    assert got == [plain(tiny, prompt, max_new_tokens=1) for prompt in PROMPTS]
    assert result.calls_B.tolist() == [0] * 4


def test_capacity_exactly_full(tiny):
    got, _ = run(tiny, PROMPTS, capacity=12 + 15 - 1)
    assert got == [plain(tiny, prompt) for prompt in PROMPTS]
    with pytest.raises(ValueError, match="cache holds 25 tokens, but prompt 12 \\+ new 15 need 26"):
        run(tiny, PROMPTS, capacity=12 + 15 - 2)


def test_a_row_that_was_not_checked_stops_where_its_cache_is_full(tiny):
    batch = batch_of(tiny.cfg, PROBE, [PROMPTS[1]], max_new_tokens=40, eos_token_ids=[])
    small = batch.replace(prompt_BT=batch.prompt_BT[:, :7], config=DecodeConfig(capacity=20))
    result = jit_decode(tiny.params, small, tiny.cfg, PROBE)
    assert result.num_emitted_B.tolist() == [14]
    tokens = np.asarray(result.token_BT)[0, 7 : 7 + 14].tolist()
    assert tokens == plain(tiny, PROMPTS[1], max_new_tokens=14)  # 7 + 14 - 1 = 20 slots


def test_prompts_longer_than_the_capacity_are_refused(tiny):
    batch = batch_of(tiny.cfg, PROBE, [PROMPTS[3]], max_new_tokens=4, eos_token_ids=[], capacity=60)
    with pytest.raises(ValueError, match="padded to 61 tokens need a capacity of 60, got 10"):
        decode(tiny.params, batch.replace(config=DecodeConfig(capacity=10)), tiny.cfg, PROBE)


def test_cache_after_steps_equals_a_fresh_prefill(tiny):
    def prefilled(prompts, max_new_tokens):
        batch = batch_of(tiny.cfg, PROBE, prompts, max_new_tokens=max_new_tokens, eos_token_ids=[], capacity=64)
        return batch, jit_prefill(tiny.params, batch.prompt_BT, batch.request, tiny.cfg, PROBE, batch.config)

    batch, state = prefilled(PROMPTS, 12)
    state = run_steps(tiny.params, batch.request, state, tiny.cfg, PROBE, batch.config)
    texts = [np.asarray(state.token_BT)[row, : int(state.length_B[row]) + 1].tolist() for row in range(4)]
    _, fresh = prefilled(texts, 1)
    np.testing.assert_array_equal(state.length_B, fresh.length_B)
    for got, expected in zip(state.cache.k + state.cache.v, fresh.cache.k + fresh.cache.v, strict=True):
        for row in range(4):
            length = int(state.length_B[row])
            np.testing.assert_allclose(got[row, :, :length], expected[row, :, :length], atol=1e-5)


def _with_true_drafts(tiny, prompts, texts, *, depth=3, wrong_from=None, eos=(), max_new_tokens=13):
    """Decodes with the true continuation put in as the draft of each call, spoilt from depth `wrong_from[row]` on."""
    probe = Probe(widths=(1,) * depth, prune=False)
    batch = batch_of(tiny.cfg, probe, prompts, max_new_tokens=max_new_tokens, eos_token_ids=eos, capacity=64)
    state = jit_prefill(tiny.params, batch.prompt_BT, batch.request, tiny.cfg, probe, batch.config)
    while not np.all(state.is_done_B):
        ids = np.full((len(prompts), depth, 1), -1)
        for row, (prompt, text) in enumerate(zip(prompts, texts, strict=True)):
            emitted = int(state.length_B[row]) + 1 - len(prompt)
            for i in range(depth if emitted else 0):  # the first call belongs to the prefill and has no drafts
                true = text[emitted + i] if emitted + i < len(text) else 0
                is_wrong = wrong_from is not None and i >= wrong_from[row]
                ids[row, i, 0] = (true + 1) % tiny.cfg.vocab_size if is_wrong else true
        rows = state.source.rows.replace(id_BMC=jnp.asarray(ids, jnp.int32))
        state = state.replace(source=state.source.replace(rows=rows))
        state = jit_step(tiny.params, batch.request, state, tiny.cfg, probe, batch.config)
    new = [
        np.asarray(state.token_BT)[row, len(p) : int(state.length_B[row]) + 1].tolist() for row, p in enumerate(prompts)
    ]
    return new, state.calls_B.tolist(), state.accepted_by_depth_BX.tolist()


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_the_true_continuation_is_accepted_to_full_depth(tiny, depth):
    texts = [plain(tiny, prompt, max_new_tokens=20) for prompt in PROMPTS]
    new, calls, accepted = _with_true_drafts(tiny, PROMPTS, texts, depth=depth)
    assert new == [text[:13] for text in texts]
    assert calls == [12 // (depth + 1)] * 4  # 12 tokens after the prefill's, depth + 1 a call
    assert accepted == [[12 // (depth + 1)] * depth] * 4


def test_rows_accept_as_deep_as_their_drafts_are_right(tiny):
    texts = [plain(tiny, prompt, max_new_tokens=20) for prompt in PROMPTS]
    new, calls, accepted = _with_true_drafts(tiny, PROMPTS, texts, wrong_from=[0, 1, 2, 3])
    assert new == [text[:13] for text in texts]
    assert calls == [12, 6, 4, 3]
    assert accepted == [[0, 0, 0], [6, 0, 0], [4, 4, 0], [3, 3, 3]]


def test_a_row_alone_equals_that_row_in_a_batch(tiny):
    together, result = run(tiny, PROMPTS, temperature=1.0, seeds=[1, 2, 3, 4])
    for row, prompt in enumerate(PROMPTS):
        alone, single = run(tiny, [prompt], temperature=1.0, seeds=[row + 1])
        assert alone == [together[row]]
        assert single.calls_B[0] == result.calls_B[row]
        assert single.accepted_by_depth_BX[0].tolist() == result.accepted_by_depth_BX[row].tolist()
        assert together[row] == plain(tiny, prompt, temperature=1.0, seed=row + 1)


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "smollm3"])
def test_other_families_decode_without_loss(family):
    tiny = make_tiny(FAMILIES[family], seed=1)
    got, result = run(tiny, PROMPTS, temperature=0.7, seeds=[3, 3, 3, 3])
    expected = [reference.plain_decode(tiny.reference, p, max_new_tokens=15, temperature=0.7, seed=3) for p in PROMPTS]
    assert min(gap for _, gap in expected) > 1e-3
    assert got == [text for text, _ in expected]
    assert int(result.accepted_by_depth_BX.sum()) > 0


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("probe", [PROBE, DYNAMIC], ids=["static", "dynamic"])
def test_under_64_bit_types_nothing_changes(probe, temperature):
    tiny = make_tiny(dataclasses.replace(BASE, head_dim=16), seed=3)  # heads of a size for which kernels are traced
    settings = {"probe": probe, "temperature": temperature, "seeds": [1, 2, 3, 4]}
    before, counts = run(tiny, PROMPTS, **settings)
    with jax.enable_x64(True):
        after, wide_counts = run(tiny, PROMPTS, **settings)
    assert after == before
    assert wide_counts.calls_B.tolist() == counts.calls_B.tolist()


@pytest.mark.parametrize("is_exact", [False, True])
def test_under_64_bit_types_rows_are_refilled(is_exact):
    checkpoint = make_checkpoint(make_tiny(dataclasses.replace(BASE, head_dim=16), seed=3))
    prompts = [Prompt(id=i, token_ids=prompt) for i, prompt in enumerate(PROMPTS)]
    settings = Settings(max_new_tokens=8, batch_size=2, is_exact=is_exact)

    def decode_all():
        decoder = Decoder(checkpoint, PROBE)
        answers = [answer.token_ids for answer in decoder.run(prompts, settings)]
        return answers, decoder.stats.calls, decoder.stats.committed

    before = decode_all()
    assert before[2] > before[1]
    with jax.enable_x64(True):
        assert decode_all() == before


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_in_bfloat16_a_first_difference_is_within_rounding(tiny, temperature):
    """Two steps of bfloat16 at the best score, as the plain program of the same dtype scores the two tokens."""
    short = dataclasses.replace(tiny, params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), tiny.params))
    settings = {"max_new_tokens": 40, "temperature": temperature, "seeds": [1, 2, 3, 4]}
    expected, _ = run(short, PROMPTS, probe=Plain(), **settings)
    got, result = run(short, PROMPTS, **settings)
    assert int(result.accepted_by_depth_BX.sum()) > 0
    from jax_probe_mtp.sameness.first_difference import first_difference  # from a package below: for this test alone

    checkpoint = make_checkpoint(short)
    for prompt, plain_ids, ids, seed in zip(PROMPTS, expected, got, settings["seeds"], strict=True):
        draw = batch_of(
            tiny.cfg, PROBE, [prompt], max_new_tokens=1, eos_token_ids=[], temperature=temperature, seeds=[seed]
        ).request.draw
        found = first_difference(checkpoint, prompt, plain_ids, ids, draw)
        assert found is None or found.is_tie, found


@pytest.mark.parametrize("dtype", [np.uint8, np.int16, np.int64])
def test_ids_of_any_whole_dtype_are_widened(tiny, dtype):
    big = dataclasses.replace(tiny.cfg, vocab_size=300)  # ids that a byte does not hold
    params = make_tiny(big, seed=3).params
    batch = batch_of(big, PROBE, PROMPTS, max_new_tokens=15, eos_token_ids=[], capacity=64)
    expected = jit_decode(params, batch, big, PROBE).token_BT
    assert int(expected.max()) > 255
    got = jit_decode(params, batch.replace(prompt_BT=batch.prompt_BT.astype(dtype)), big, PROBE).token_BT
    assert got.dtype == jnp.int32
    assert got.tolist() == expected.tolist()


def test_other_values_do_not_recompile(tiny):
    def call(counted, prompts, **settings):
        args = {"max_new_tokens": 9, "eos_token_ids": [3], "temperature": 0.5, "capacity": 64} | settings
        return counted(tiny.params, batch_of(tiny.cfg, PROBE, prompts, **args), tiny.cfg, PROBE)

    chex.clear_trace_counter()
    once = jax.jit(chex.assert_max_traces(decode, n=1), static_argnames=("cfg", "source"))
    call(once, PROMPTS)
    call(once, PROMPTS[::-1], temperature=1.5, top_k=4, top_p=0.5, seeds=[4, 5, 6, 7])
    call(once, [[1], [2], [3], [4]], max_new_tokens=20, eos_token_ids=[8])
    with pytest.raises(AssertionError, match="traced > 1 times"):
        call(once, PROMPTS, capacity=65)


def test_inside_the_callers_own_jit(tiny):
    batch = batch_of(tiny.cfg, PROBE, PROMPTS, max_new_tokens=10, eos_token_ids=[], capacity=64)

    @jax.jit
    def most_common(params, batch, scale):
        scaled = jax.tree.map(lambda leaf: leaf * scale, params)
        result = decode(scaled, batch, tiny.cfg, PROBE)
        return jnp.bincount(result.token_BT.ravel(), length=tiny.cfg.vocab_size), result.token_BT

    counts, tokens = most_common(tiny.params, batch, 1.0)
    for row, prompt in enumerate(PROMPTS):
        assert np.asarray(tokens)[row, len(prompt) : len(prompt) + 10].tolist() == plain(
            tiny, prompt, max_new_tokens=10
        )
    assert int(counts.sum()) == tokens.size


@pytest.mark.parametrize("is_sampled", [False, True])
@pytest.mark.parametrize("probe", [PROBE, DYNAMIC], ids=["static", "dynamic"])
def test_prefill_and_steps_lower_for_a_tpu(probe, is_sampled):
    cfg = dataclasses.replace(BASE, num_layers=1)
    params = abstract_params(cfg, jnp.bfloat16)
    batch = batch_of(
        cfg, probe, PROMPTS, max_new_tokens=9, eos_token_ids=[1], temperature=float(is_sampled), capacity=64
    )
    static = {"cfg": cfg, "source": probe, "decode_cfg": batch.config}
    prompt_and_request = batch.prompt_BT, batch.request
    state = jax.eval_shape(functools.partial(prefill, **static), params, *prompt_and_request)
    for function, args in [(prefill, (params, *prompt_and_request)), (run_steps, (params, batch.request, state))]:
        exported = jax.export.export(jax.jit(functools.partial(function, **static)), platforms=["tpu"])(*args)
        assert exported.platforms == ("tpu",)
        assert "stablehlo.dot_general" in exported.mlir_module()
