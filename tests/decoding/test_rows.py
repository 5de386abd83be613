"""A row that is given a new text: what its neighbours keep, and what it leaves behind."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from support.decoding.row_batches import (
    EOS,
    GREEDY_LONG,
    LONG,
    SOURCES,
    A,
    B,
    C,
    D,
    RowBatch,
    S,
    T,
    Text,
    bits,
    copy_of,
    jit_empty,
    of_reference,
    rows_of,
)

from jax_probe_mtp.decoding.request import idle_request, join_requests


@pytest.fixture(scope="module")
def busy(tiny):
    """Makes a batch of a source, in the middle of three texts."""

    @functools.cache
    def make(source):
        batch = RowBatch(tiny, source)
        for row, text in enumerate((A, D, LONG)):
            batch.admit(row, text)
        batch.run()
        assert not np.any(batch.state.is_done_B)
        return batch

    return make


@pytest.mark.parametrize("row", range(B))
@pytest.mark.parametrize("source", SOURCES)
def test_a_newcomer_leaves_all_other_rows_bit_for_bit(busy, source, row):
    batch = busy(source)
    after = copy_of(batch)
    after.admit(row, C)
    others = [r for r in range(B) if r != row]
    before_rows, after_rows = rows_of((batch.request, batch.state)), rows_of((after.request, after.state))
    num_caches = 2 * batch.tiny.cfg.num_layers
    num_of_source = {"probe": 4, "ngram": 0, "recycle": 2, "warm": 0, "merged": 10}[source]
    assert len(before_rows) == 6 + 7 + num_caches + num_of_source, "a leaf without rows is not looked at"
    for name, old in before_rows.items():
        assert bits(old[others]) == bits(after_rows[name][others]), name
    assert after.request.eos_E.tolist() == [EOS]

    prompt, state = C.prompt, after.state
    assert state.token_BT[row, : len(prompt)].tolist() == prompt
    assert (int(state.length_B[row]), bool(state.is_done_B[row])) == (len(prompt) - 1, False)
    assert (int(state.calls_B[row]), int(state.accepted_by_depth_BX[row].sum())) == (0, 0)
    assert (after.request.prompt_length_B[row], after.request.max_new_tokens_B[row]) == (len(prompt), C.new)
    drawn = after.request.sampling
    assert (drawn.temperature_B[row], drawn.top_k_B[row], drawn.seed_B[row]) == (1.0, 40, 4)
    assert drawn.top_p_B[row] == np.float32(0.95)


@pytest.mark.parametrize(
    ("source", "has_prompt"),
    [*((source, False) for source in SOURCES), ("probe", True), ("ngram", True), ("recycle", True)],
)
def test_nobody_changes_nothing(busy, source, has_prompt):
    """An idle place, and a prompt that may have no tokens; a shared table would learn from such a prompt."""
    batch = busy(source)
    after = copy_of(batch)
    nobody = jnp.zeros((1, T), jnp.int32), idle_request(1, [EOS], is_sampled=True)
    if has_prompt:
        arriving = batch.arriving(C)
        nobody = arriving.prompt_BT, arriving.request.replace(max_new_tokens_B=jnp.zeros(1, jnp.int32))
    for row in range(B):
        after.put([row], *nobody)
    before_leaves, after_leaves = (jax.tree.leaves((one.request, one.state)) for one in (batch, after))
    for old, new in zip(before_leaves, after_leaves, strict=True):
        assert bits(old) == bits(new)


@pytest.mark.parametrize("source", SOURCES)
def test_several_newcomers_enter_as_one_after_the_other(busy, source):
    """The reference is `admit` of one row at a time, which is another program: floats may differ by rounding."""
    batch = busy(source)
    one_by_one, together = copy_of(batch), copy_of(batch)
    for row, text in ((2, C), (0, A)):
        one_by_one.admit(row, text)
    nobody = jnp.zeros((1, T), jnp.int32), idle_request(1, [EOS], is_sampled=True)
    coming = [(arriving.prompt_BT, arriving.request) for arriving in map(batch.arriving, (C, A))]
    prompts, requests = zip(coming[0], nobody, coming[1], strict=True)
    together.put([2, 1, 0], jnp.concatenate(prompts), join_requests(requests))

    def committed(batch):
        """Leaves out what lies behind the texts in the cache, which means nothing."""
        is_text_BS = np.arange(S)[None] < np.asarray(batch.state.length_B)[:, None]
        slots = batch.state.cache.k + batch.state.cache.v
        cut = tuple(jnp.where(is_text_BS[:, None, :, None], x[:, :, :S], 0) for x in slots)
        return batch.request, batch.state.replace(cache=cut)

    (expected, _), (got, _) = (jax.tree.flatten(committed(one)) for one in (one_by_one, together))
    for a, b in zip(expected, got, strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
    before_rows, after_rows = rows_of((batch.request, batch.state)), rows_of((together.request, together.state))
    for name, old in before_rows.items():
        assert bits(old[1]) == bits(after_rows[name][1]), name


@pytest.mark.parametrize("source", SOURCES)
def test_several_nobodies_change_nothing(busy, source):
    batch = busy(source)
    after = copy_of(batch)
    after.put([0, 0], jnp.zeros((2, T), jnp.int32), idle_request(2, [EOS], is_sampled=True))
    before_leaves, after_leaves = (jax.tree.leaves((one.request, one.state)) for one in (batch, after))
    for old, new in zip(before_leaves, after_leaves, strict=True):
        assert bits(old) == bits(new)


def test_a_warm_table_goes_on(busy, tiny):
    batch = busy("warm")
    after = copy_of(batch)
    after.admit(1, C)
    logits_TV = tiny.reference.logits(tiny.reference.embed(C.prompt)) / C.draw["temperature"]
    learnt = {}
    for token, logits in zip(C.prompt[:-1], logits_TV[:-1], strict=True):
        learnt[token], gap = reference.successors(logits)
        assert gap > 1e-5
    old, new = np.asarray(batch.state.source.shared.id_YVC)[0], np.asarray(after.state.source.shared.id_YVC)[0]
    for token in range(tiny.cfg.vocab_size):
        expected = [successor for successor, _ in learnt[token]] if token in learnt else old[token].tolist()
        assert new[token].tolist() == expected
    assert np.any(old[C.prompt[:-1]] >= 0), "nothing was there to be replaced"
    assert np.sum(np.any(old >= 0, axis=1)) > 20


HOW = [("probe", True), ("ngram", True), ("recycle", True), ("probe", False)]


@pytest.fixture(scope="module", params=HOW, ids=lambda how: how[0] + ("" if how[1] else " greedy program"))
def placed(request, tiny):
    """What one text gives in four places: alone, beside others, elsewhere, and in a row that held a longer text."""
    source, is_sampled = request.param
    long, texts = (LONG, (A, C)) if is_sampled else (GREEDY_LONG, (A,))
    outcomes = {}
    for i, text in enumerate(texts):
        alone = RowBatch(tiny, source, is_sampled=is_sampled)
        alone.admit(0, text)
        alone.run_until_done(0)

        beside = RowBatch(tiny, source, is_sampled=is_sampled)
        beside.admit(2, long)
        beside.run()
        beside.admit(0, text)
        beside.admit(1, texts[i - 1])
        beside.run_until_done(0)

        refilled = RowBatch(tiny, source, is_sampled=is_sampled)
        refilled.admit(1, long)
        refilled.run_until_done(1)
        assert int(refilled.state.length_B[1]) > len(text.prompt) + text.new, "the row held no longer text"
        refilled.admit(0, texts[i - 1])
        refilled.run()
        refilled.admit(1, text)
        refilled.admit(2, long)
        refilled.run_until_done(1)
        outcomes[i] = (
            text,
            {
                "alone": alone.outcome(0),
                "beside": beside.outcome(0),
                "refilled": refilled.outcome(1),
            },
        )
    return source, outcomes


def test_a_text_is_bit_for_bit_the_same_in_any_row_beside_and_after_anything(placed):
    for _, places in placed[1].values():
        assert places["beside"] == places["alone"]
        assert places["refilled"] == places["alone"]


def test_tokens_and_counts_are_the_references(placed, tiny):
    source, outcomes = placed
    for text, places in outcomes.values():
        tokens, accepted = of_reference(tiny, source, text)
        new, calls, by_depth, _ = places["refilled"]
        assert new == tokens
        assert calls == len(accepted)
        assert by_depth == [sum(count > depth for count in accepted) for depth in range(len(by_depth))]
    drafts = sum(sum(places["alone"][2]) for _, places in outcomes.values())
    assert drafts > 0, "no draft was right: choose other texts"


def test_logprobs_are_of_the_models_own_softmax(placed, tiny):
    """Before temperature and cuts, for accepted drafts as for the rest."""
    for text, places in placed[1].values():
        new, _, _, as_bits = places["refilled"]
        logits_TV = tiny.reference.logits(tiny.reference.embed([*text.prompt, *new]))[len(text.prompt) - 1 : -1]
        largest = logits_TV.max(axis=1, keepdims=True)
        log_softmax_TV = logits_TV - largest - np.log(np.exp(logits_TV - largest).sum(axis=1, keepdims=True))
        got = np.asarray(as_bits, np.int32).view(np.float32)
        np.testing.assert_allclose(got, log_softmax_TV[np.arange(len(new)), new], atol=1e-4)
        assert len(new) > 10


def _text_of_full_length(tiny, length, new):
    """The first prompt of this length, of a row of them, whose text does not end before the limit; and that text."""
    for first in range(61):
        text = Text(prompt=[(7 * i + first) % 61 for i in range(length)], new=new, seed=3, draw={"temperature": 0.8})
        limits = {"max_new_tokens": new, "eos": (EOS,), "seed": 3, "temperature": 0.8}
        tokens, gap = reference.plain_decode(tiny.reference, text.prompt, **limits)
        if len(tokens) == new and gap > 1e-3:
            return text, tokens
    raise AssertionError("choose other prompts")


@pytest.mark.parametrize(
    ("length", "new", "slots"), [(S, 1, S + 1), (10, S - 9, S + 1), (12, S - 11, 12), (1, S, T), (1, S, 1)]
)
def test_a_row_may_fill_its_capacity_from_any_prompt(tiny, length, new, slots):
    """The prompt padded to one more than the capacity, not padded, of one token; beside rows that keep what they have."""
    text, tokens = _text_of_full_length(tiny, length, new)
    batch = RowBatch(tiny, "probe")
    batch.admit(0, A)
    batch.admit(2, C)
    batch.run()
    before = rows_of(batch.state)
    batch.admit(1, text, slots)
    for name, new_leaf in rows_of(batch.state).items():
        assert bits(before[name][[0, 2]]) == bits(new_leaf[[0, 2]]), name
    start, given = length - 1, []
    while not batch.state.is_done_B[1]:
        report = batch.run()  # its last tokens are read next to the end of the array
        num_new = int(report.length_BQ[1].max()) - start
        given += report.token_BU[1, :num_new].tolist()
        start += num_new
    assert int(batch.state.length_B[1]) == S
    assert given == tokens == batch.new_tokens(1)
    batch.run_until_done(0)
    batch.run_until_done(2)
    for row, other in ((0, A), (2, C)):
        assert batch.new_tokens(row) == of_reference(tiny, "probe", other)[0]


@pytest.mark.parametrize("source", SOURCES)
def test_an_empty_batch_runs_no_model(busy, tiny, source):
    """So a job does not trace and compile it once more before its first prompt."""
    batch = busy(source)
    begun = batch.source.init_shared(tiny.cfg)
    text = jit_empty.lower(tiny.params, batch.request, begun, **batch.static).as_text()
    assert "dot_general" not in text
    assert "dot_general" in jax.jit(lambda x: x @ x).lower(jnp.ones((2, 2))).as_text()
