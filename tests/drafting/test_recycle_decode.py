"""Token Recycling through the loop: what prompts teach, a table that goes on from batch to batch, tables of single rows."""

import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from conftest import BASE
from support.decoding.batches import batch_of
from support.drafting.tables import assert_same_dict, dicts
from support.drafting.trees import nodes_of

from jax_probe_mtp import decode
from jax_probe_mtp.decoding.config import DecodeConfig
from jax_probe_mtp.decoding.loop import prefill
from jax_probe_mtp.decoding.trace import trace
from jax_probe_mtp.drafting import Ngram, Plain, Probe, Recycle
from jax_probe_mtp.drafting.recycle import empty_table

jit_prefill = jax.jit(prefill, static_argnames=("cfg", "source", "decode_cfg"))
jit_decode = jax.jit(decode, static_argnames=("cfg", "source"))


@pytest.mark.parametrize("temperatures", [(0.0,) * 4, (0.7, 0.0, 1.5, 1.0)], ids=["greedy", "drawn"])
def test_a_prompt_is_read_whole_whatever_its_chunks(tiny, temperatures):
    """150 tokens in chunks of 100 are read 64 rows at a time: both the chunks and the rows overlap."""
    rng = np.random.default_rng(3)
    prompts = [rng.integers(0, BASE.vocab_size, length).tolist() for length in (150, 97, 40, 1)]
    source = Recycle(tree=5)
    batch = batch_of(
        BASE, source, prompts, max_new_tokens=1, eos_token_ids=[], temperature=max(temperatures), capacity=150
    )
    request = batch.request
    if max(temperatures):
        request = request.replace(sampling=request.sampling.replace(temperature_B=jnp.asarray(temperatures)))
    decode_cfg = DecodeConfig(capacity=150, prefill_chunk=100)
    prompt_BT = batch.prompt_BT[:, :150]  # no padding behind the longest
    state = jit_prefill(tiny.params, prompt_BT, request, BASE, source, decode_cfg)
    for got, prompt, temperature in zip(dicts(state.source.rows), prompts, temperatures, strict=True):
        slow = reference.Recycle(tiny.reference, {}, num_nodes=5, max_depth=4, temperature=temperature)
        slow.read(prompt)  # all but the last token
        assert min(slow.gaps, default=1.0) > 1e-5, "choose other prompts: rounding could decide a rank"
        assert_same_dict(got, slow.table)


WARM = Recycle(tree=5, warm=True)
SAID_ONCE = [[5, 9, 2, 44, 17, 3, 3], [60, 1, 33, 8]]
SAID_NEXT = [[12, 13, 14, 12, 9], [33, 2, 44]]
LIMITS = [4, 14]  # the first row ends earlier, a third one is idle from the start


def run(tiny, source, prompts, table=None, limits=LIMITS):
    """One batch of three rows through `decode`: each row's tokens and counts, and the table."""
    result = jit_decode(tiny.params, make(source, prompts, limits), BASE, source, table)
    texts = np.asarray(result.token_BT)
    rows = [
        (
            texts[row, len(prompt) : len(prompt) + int(result.num_emitted_B[row])].tolist(),
            int(result.calls_B[row]),
            int(result.accepted_by_depth_BX[row].sum()),
        )
        for row, prompt in enumerate(prompts)
    ]
    return rows, result.shared


def make(source, prompts, limits):
    batch = batch_of(BASE, source, prompts, rows=3, max_new_tokens=max(limits), eos_token_ids=[], capacity=64)
    return batch.replace(request=batch.request.replace(max_new_tokens_B=jnp.asarray([*limits, 0, 0][:3])))


def run_slowly(tiny, prompts, table, limits=LIMITS):
    rows, table, gap = reference.recycle_batch(
        tiny.reference, prompts, table, [{"max_new_tokens": limit} for limit in limits], num_nodes=5, max_depth=4
    )
    assert gap > 1e-5, "choose other prompts: rounding could decide a tree"
    return rows, table


def summary(rows):
    return [(tokens, len(trees), sum(accepted)) for tokens, trees, accepted in rows]


def test_a_warm_table_goes_on_from_batch_to_batch(tiny):
    once, table = run(tiny, WARM, SAID_ONCE)
    slow_once, slow_table = run_slowly(tiny, SAID_ONCE, {})
    assert once == summary(slow_once)
    assert_same_dict(dicts(table)[0], slow_table)  # with nothing of the row that was done, or was idle

    result, last_table = run(tiny, WARM, SAID_NEXT, table)
    slow, slow_last_table = run_slowly(tiny, SAID_NEXT, slow_table)
    assert result == summary(slow)
    assert_same_dict(dicts(last_table)[0], slow_last_table)
    assert sum(accepted for _, _, accepted in once + result) > 0, "no draft was ever right"
    from_nothing, _ = run_slowly(tiny, SAID_NEXT, {})
    assert [trees for _, trees, _ in from_nothing] != [trees for _, trees, _ in slow], "the table made no difference"

    calls = list(trace(tiny.params, make(WARM, SAID_NEXT, LIMITS), BASE, WARM, table))
    assert len(calls) == 1 + max(len(trees) for _, trees, _ in slow)
    for number, traced in enumerate(calls[1:]):
        for nodes, (_, trees, _) in zip(nodes_of(traced.call.tree), slow, strict=False):
            if number < len(trees):
                assert reference.without_padding(nodes) == reference.without_padding(trees[number])


def test_a_row_with_a_table_of_its_own_is_the_same_alone(tiny):
    source, prompts = Recycle(tree=5), [*SAID_ONCE, [7, 7, 3, 44]]
    together, table = run(tiny, source, prompts, limits=[14] * 3)
    assert table == ()
    for row, prompt in enumerate(prompts):
        alone, _ = run(tiny, source, [prompt], limits=[14])
        assert alone == [together[row]]
    assert sum(accepted for _, _, accepted in together) > 0


@pytest.mark.parametrize("source", [Plain(), Probe(widths=(3,)), Ngram(), Recycle(tree=5)], ids=str)
def test_only_a_warm_source_takes_and_gives_a_table(tiny, source):
    batch = batch_of(BASE, source, SAID_ONCE, max_new_tokens=4, eos_token_ids=[], capacity=64)
    run_abstractly = functools.partial(jax.eval_shape, functools.partial(decode, cfg=BASE, source=source))
    assert run_abstractly(tiny.params, batch).shared == ()
    assert not source.learns_shared
    with pytest.raises(ValueError, match=r"begins with shared arrays of no kind, got int32\[1, 61, 8\], float32"):
        run_abstractly(tiny.params, batch, shared=empty_table(1, BASE.vocab_size))


def test_a_table_of_another_model_is_refused(tiny):
    table = empty_table(1, 60)
    with pytest.raises(ValueError, match=r"begins with shared arrays of int32\[1, 61, 8\], .* got int32\[1, 60, 8\]"):
        decode(tiny.params, make(WARM, SAID_ONCE, LIMITS), BASE, WARM, table)


def test_a_table_goes_in_as_it_comes_out(tiny):
    batch = make(WARM, SAID_ONCE, LIMITS)
    run_abstractly = functools.partial(jax.eval_shape, functools.partial(decode, cfg=BASE, source=WARM))
    first = run_abstractly(tiny.params, batch).shared
    again = run_abstractly(tiny.params, batch, shared=empty_table(1, BASE.vocab_size)).shared
    chex.assert_trees_all_equal_shapes_and_dtypes(first, again, empty_table(1, BASE.vocab_size))
