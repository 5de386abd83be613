"""The merged draft through the loop: tree by tree what the slow reference builds, learned weights and tables included."""

import jax
import numpy as np
import pytest
import reference
from conftest import BASE
from support.decoding.batches import batch_of
from support.drafting.merged import WEIGHTS
from support.drafting.trees import nodes_of

from jax_probe_mtp import decode
from jax_probe_mtp.decoding.trace import trace
from jax_probe_mtp.drafting import Merged
from jax_probe_mtp.drafting.merged.memory import Sizes

PROMPTS = [[7], [5, 9, 2, 44, 17, 3, 3], [60, 1, 33, 8, 60, 1, 33, 8, 60, 1], [12, 13, 14, 15, 16, 17, 18, 19, 20, 21]]
SEEDS = [11, 2**32 - 1, 0, 5]
CAPACITY = 64
NEW_TOKENS = 24
ROUNDING = 3e-6  # a gap below proves nothing
jit_decode = jax.jit(decode, static_argnames=("cfg", "source"))


def batch(source, prompts, seeds, temperature=0.0, limits=None):
    made = batch_of(
        BASE,
        source,
        prompts,
        seeds=seeds,
        max_new_tokens=NEW_TOKENS,
        eos_token_ids=[],
        capacity=CAPACITY,
        temperature=temperature,
    )
    limits = [NEW_TOKENS] * len(prompts) if limits is None else limits
    return made.replace(request=made.request.replace(max_new_tokens_B=np.asarray(limits, np.int32)))


def how_of(source):
    return {"num_rows": source.rows, "mask_owners": source.num_owned, "max_depth": source.depth}


def compare_trees(calls, rows):
    """Each call's tree with the reference's, whose rows are tokens, trees and accepted counts; gives all accepted."""
    for number, traced in enumerate(calls):
        for got, (_, trees, _) in zip(nodes_of(traced.call.tree), rows, strict=True):
            if number < len(trees):
                assert reference.without_padding(got) == reference.without_padding(trees[number])
    return sum(sum(accepted) for _, _, accepted in rows)


def compare_weights(weight_F, learned):
    learned.step()
    expected = np.concatenate([learned.weights[name] for name in reference.merged.NAMES])
    np.testing.assert_allclose(weight_F, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("temperature", [0.0, 0.7])
@pytest.mark.parametrize(
    "source",
    [
        Merged(24, mask_owners=4, mask_init="mean"),
        Merged(9, mask_owners=1, depth=3, mask_init="zero"),
        Merged(40, mask_owners=0),
    ],
    ids=["masks", "few rows", "no masks"],
)
def test_every_tree_is_the_slow_builders(repetitive, source, temperature):
    calls = list(trace(repetitive.params, batch(source, PROMPTS, SEEDS, temperature), BASE, source))
    learned = [reference.Learned(WEIGHTS, **reference.Learned.sizes_of_row(CAPACITY, BASE.vocab_size)) for _ in PROMPTS]
    draws = [{"temperature": temperature, "seed": seed} if temperature else {} for seed in SEEDS]
    how = how_of(source) | ({"mask_init": source.mask_init} if source.num_owned else {})
    rows, gap = reference.merged_batch(repetitive.reference, PROMPTS, learned, draws, max_new_tokens=NEW_TOKENS, **how)
    assert gap > ROUNDING, "choose other prompts: rounding could decide a rank"
    texts = np.asarray(calls[-1].after.token_BT)
    for row, (prompt, (new, _, _)) in enumerate(zip(PROMPTS, rows, strict=True)):
        assert texts[row, len(prompt) : len(prompt) + NEW_TOKENS].tolist() == new
    assert compare_trees(calls[1:], rows) > 20
    last = max(range(len(PROMPTS)), key=lambda row: len(rows[row][1]))  # the row that was decoded to the last call
    compare_weights(calls[-1].after.source.rows.learned.weights.weight_YF[last], learned[last])


def test_warm_rows_share_tables_and_weights_from_batch_to_batch(repetitive):
    """Two batches of two rows, of which the first row ends earlier: trees, weights and what is kept, to the last entry."""
    source = Merged(16, mask_owners=2, mask_init="mean", warm=True)
    shared, limits = None, [9, NEW_TOKENS]
    sizes = Sizes.of_all(BASE.vocab_size)
    learned = reference.Learned(WEIGHTS, tokens=sizes.tokens, pairs=sizes.pairs, ngrams=sizes.ngrams)
    for prompts in (PROMPTS[1:3], [PROMPTS[2], PROMPTS[3]]):
        calls = list(trace(repetitive.params, batch(source, prompts, [0, 0], limits=limits), BASE, source, shared))
        own = [{"max_new_tokens": limit} for limit in limits]
        rows, gap = reference.merged_batch(repetitive.reference, prompts, [learned] * 2, own, **how_of(source))
        assert gap > ROUNDING, "choose other prompts: rounding could decide a rank"
        assert compare_trees(calls[1:], rows) > 8
        shared = calls[-1].after.source.shared
        compare_weights(shared.learned.weights.weight_YF[0], learned)
    ngram_nSE = np.asarray(shared.learned.memory.ngram_YnSE[0])
    kept = {(n, slot) for n, slot in zip(*np.nonzero(ngram_nSE[..., 1] >= 0), strict=True)}
    expected = {(reference.merged.LENGTHS.index(n), slot): tokens for (n, slot), (_, tokens) in learned.ngram.items()}
    assert kept == set(expected)
    for (n, slot), tokens in expected.items():
        assert [t for t in ngram_nSE[n, slot, 1:].tolist() if t >= 0] == tokens
    tokens = np.asarray(shared.learned.memory.token_YSE[0, :, 1:])
    for slot, (_, listed) in learned.token.items():
        assert tokens[slot].tolist() == [token | (bucket << 24) for token, bucket in listed]
    assert np.sum(tokens[:, 0] >= 0) == len(learned.token)


def test_a_cold_row_is_the_same_in_any_batch(repetitive):
    source = Merged(16, mask_owners=2, mask_init="auto")

    def counts(prompts):
        result = jit_decode(repetitive.params, batch(source, prompts, [0] * len(prompts)), BASE, source)
        return [
            (result.calls_B[row].item(), result.accepted_by_depth_BX[row].tolist(), result.token_BT[row].tolist())
            for row in range(len(prompts))
        ]

    together = counts(PROMPTS)
    assert [counts([prompt])[0][:2] for prompt in PROMPTS] == [row[:2] for row in together]
    assert sum(sum(by_depth) for _, by_depth, _ in together) > 20


def test_what_is_left_out_is_not_drafted_from(repetitive):
    """Each kind of draft is accepted where all sources are asked, and none of a kind that is left out."""
    prompts = [prompt * 3 for prompt in PROMPTS]

    def kinds(**left_out):
        source = Merged(24, mask_init="mean", **left_out)
        result = jit_decode(repetitive.params, batch(source, prompts, SEEDS), BASE, source)
        return dict(zip(source.kinds, result.accepted_by_kind_BZ.sum(axis=0).tolist(), strict=True))

    everything = kinds()
    assert everything["several"] > 0
    assert everything["masks"] > 0
    alone = kinds(without="pairs+ngrams+successors", mask_owners=8)
    assert alone["masks"] > 0
    assert sum(alone.values()) == alone["masks"]
    tables = kinds(mask_owners=3, without="ngrams+pairs")
    assert tables["successors"] + tables["several"] > 0
    assert tables["ngrams"] == tables["pairs"] == 0


def test_weights_that_do_not_learn_stay(repetitive):
    source = Merged(16, mask_owners=2, mask_init="mean", is_learning=False)
    *_, last = trace(repetitive.params, batch(source, PROMPTS, SEEDS), BASE, source)
    expected = np.concatenate([WEIGHTS[name] for name in reference.merged.NAMES]).astype(np.float32)
    np.testing.assert_array_equal(last.after.source.rows.learned.weights.weight_YF, [expected] * len(PROMPTS))
