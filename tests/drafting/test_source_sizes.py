"""Draft sources as configurations: the sizes of a tree worked out by hand, and what is refused."""

import pytest

from jax_probe_mtp.drafting import DynamicProbe, Merged, Ngram, Plain, Probe, Recycle


@pytest.mark.parametrize(
    ("probe", "pools", "num_nodes", "num_rows"),
    [
        (Probe(widths=(14,)), (14,), 15, 30),
        (Probe(widths=(29,)), (29,), 30, 60),
        (Probe(widths=(15, 4)), (15, 4), 20, 60),
        (Probe(widths=(5, 4, 2)), (5, 4, 2), 12, 48),  # (3+1)(1+11), exactly the budget
        (DynamicProbe(rows=30, num_masks=1), (14,), 15, 30),
        (DynamicProbe(rows=30, num_masks=2), (9, 8), 10, 30),
        (DynamicProbe(rows=60, num_masks=2), (19, 18), 20, 60),
        (DynamicProbe(rows=32, num_masks=2), (9, 8), 10, 30),  # 2 rows are left over
        (DynamicProbe(rows=9, num_masks=2), (2, 1), 3, 9),  # the least: a chain
        (DynamicProbe(rows=16, num_masks=3), (3, 2, 1), 4, 16),
    ],
    ids=str,
)
def test_sizes_of_a_call(probe, pools, num_nodes, num_rows):
    assert probe.pool_sizes == pools
    assert probe.max_depth == len(pools)
    assert probe.num_nodes == num_nodes
    assert probe.num_rows == num_rows


@pytest.mark.parametrize(
    ("source", "num_nodes", "max_depth"),
    [
        (Plain(), 1, 0),  # the root alone
        (Ngram(), 11, 10),
        (Ngram(num_drafts=1), 2, 1),
        (Ngram(num_drafts=64, max_ngram=16), 65, 64),
        (Recycle(), 60, 6),
        (Recycle(tree=2), 2, 1),
        (Recycle(tree=6), 6, 5),  # room for a chain of 5
        (Recycle(tree=7), 7, 6),
        (Recycle(tree=8), 8, 6),  # no chain is longer
        (Recycle(tree=256, warm=True), 256, 6),
        (Recycle(tree="static80"), 81, 6),
        (Merged(mask_owners=0), 64, 8),
        (Merged(rows=4, mask_owners=0), 4, 3),
        (Merged(rows=256, mask_owners=0, depth=2), 256, 2),
    ],
    ids=str,
)
def test_sizes_of_a_call_without_masks(source, num_nodes, max_depth):
    assert source.num_masks == 0
    assert source.num_nodes == source.num_rows == num_nodes
    assert source.max_depth == max_depth


def test_pruning_looks_at_one_candidate_more():
    assert Probe(widths=(15, 4)).num_kept == 16
    assert Probe(widths=(15, 4), prune=False).num_kept == 15
    assert DynamicProbe(rows=30, num_masks=2, prune=False).num_kept == 9


def test_num_masks_comes_from_the_tree():
    assert Probe(widths=(15, 4)).num_masks == 2
    assert Probe(widths=[14]) == Probe(widths=(14,)) == Probe(widths=14)  # a list would not be hashable


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"widths": ()}, ["1 to 3 depths", "[]"]),
        ({"widths": (1, 1, 1, 1)}, ["1 to 3 depths", "[1, 1, 1, 1]"]),
        ({"widths": (0,)}, ["at least 1", "[0]"]),
        ({"widths": (3, -1)}, ["at least 1", "[3, -1]"]),
        ({"widths": (2.5,)}, ["[2.5]"]),
        ({"widths": (True,)}, ["[True]"]),
        ({"widths": 14.0}, ["numbers of candidates", "14.0"]),
        ({"widths": None}, ["numbers of candidates", "None"]),
        ({"widths": "dynamic"}, ["numbers of candidates", "'dynamic'"]),
        ({"mask_init": "ones"}, ["'ones'", "mean, last_k, sample, offset"]),
        ({"mask_ema": 1.01}, ["mask_ema", "1.01"]),
        ({"mask_ema": -0.1}, ["mask_ema", "-0.1"]),
        ({"mask_offset": float("inf")}, ["mask_offset", "inf"]),
    ],
    ids=str,
)
def test_probe_refuses(settings, says):
    _assert_refused(lambda: Probe(**settings), says)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_masks": 0}, ["1 to 3", "got 0"]),
        ({"num_masks": 4}, ["1 to 3", "got 4"]),
        ({"num_masks": 1.0}, ["num_masks", "whole number", "got 1.0"]),
        ({"rows": 60.0}, ["rows", "whole number", "got 60.0"]),
        ({"rows": 8}, ["8 rows", "2 masks", "9 or more"]),
        ({"num_masks": 3, "rows": 15}, ["15 rows", "3 masks", "16 or more"]),
        ({"mask_init": "ones"}, ["'ones'", "mean, last_k, sample, offset"]),
    ],
    ids=str,
)
def test_dynamic_probe_refuses(settings, says):
    _assert_refused(lambda: DynamicProbe(**settings), says)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"num_drafts": 0}, ["num_drafts", "from 1 to 64", "got 0"]),
        ({"num_drafts": 65}, ["num_drafts", "from 1 to 64", "got 65"]),
        ({"num_drafts": 2.0}, ["num_drafts", "whole number", "got 2.0"]),
        ({"num_drafts": True}, ["num_drafts", "whole number", "got True"]),
        ({"max_ngram": 0}, ["max_ngram", "from 1 to 16", "got 0"]),
        ({"max_ngram": 17}, ["max_ngram", "from 1 to 16", "got 17"]),
        ({"max_ngram": "5"}, ["max_ngram", "whole number", "got '5'"]),
        ({"match": "last"}, ["'last'", "recent, first"]),
    ],
    ids=str,
)
def test_ngram_refuses(settings, says):
    _assert_refused(lambda: Ngram(**settings), says)


@pytest.mark.parametrize(
    ("tree", "says"),
    [
        (1, ["from 2 to 256", "got 1"]),  # the root alone
        (257, ["from 2 to 256", "got 257"]),
        (60.0, ["whole number", "got 60.0"]),
        ((15, 4), ["whole number", "got (15, 4)"]),
        ("dynamic", ["'static80'", "got 'dynamic'"]),
    ],
    ids=str,
)
def test_recycle_refuses(tree, says):
    _assert_refused(lambda: Recycle(tree=tree), ["tree", *says])


def test_recycle_is_warm_or_not():
    _assert_refused(lambda: Recycle(warm="yes"), ["warm must be True or False", "got 'yes'"])


@pytest.mark.parametrize(
    ("rows", "owners", "num_nodes"),
    [(4, 2, 2), (16, 2, 14), (32, 4, 28), (64, 8, 56), (128, 8, 120), (256, 8, 248)],
)
def test_an_eighth_of_a_merged_drafts_rows_are_masks(rows, owners, num_nodes):
    source = Merged(rows=rows)
    assert (source.num_masks, source.num_owners, source.num_nodes, source.num_rows) == (1, owners, num_nodes, rows)
    assert source == Merged(rows=rows, mask_owners=owners)


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"rows": 3}, ["rows", "from 4 to 256", "got 3"]),
        ({"rows": 257}, ["rows", "from 4 to 256", "got 257"]),
        ({"rows": 64.0}, ["rows", "whole number", "got 64.0"]),
        ({"rows": 16, "mask_owners": 9}, ["mask_owners", "from 0 to 8", "got 9"]),
        ({"mask_owners": -1}, ["mask_owners", "from 0 to 32", "got -1"]),
        ({"depth": 9}, ["depth", "from 1 to 8", "got 9"]),
        ({"depth": 0}, ["depth", "from 1 to 8", "got 0"]),
        ({"warm": 1}, ["warm must be True or False", "got 1"]),
        ({"is_learning": None}, ["is_learning must be True or False", "got None"]),
        ({"without": "masks"}, ["successors, pairs, ngrams", "mask_owners 0", "got 'masks'"]),
        ({"without": ""}, ["successors, pairs, ngrams", "got ''"]),
        ({"without": ("pairs",)}, ["successors, pairs, ngrams", "got ('pairs',)"]),
        ({"mask_owners": 0, "rank_with_noise": False}, ["mask_owners 0 leaves no masks", "rank_with_noise"]),
        ({"without": "successors+pairs+ngrams", "mask_owners": 0}, ["nothing is left to draft from"]),
        ({"mask_owners": 0, "mask_init": "zero"}, ["mask_owners 0 leaves no masks"]),
        ({"mask_owners": 0, "mask_ema": 0.5}, ["mask_owners 0 leaves no masks"]),
        ({"mask_init": "median"}, ["mask_init must be one of", "got 'median'"]),
        ({"mask_ema": 2.0}, ["mask_ema must be between 0", "got 2.0"]),
    ],
    ids=str,
)
def test_merged_refuses(settings, says):
    _assert_refused(lambda: Merged(**settings), says)


def test_what_a_merged_draft_leaves_out_has_one_name():
    assert Merged(without="ngrams+pairs+ngrams") == Merged(without="pairs+ngrams")


def _assert_refused(build, says):
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as refusal:
        build()
    for part in says:
        assert part in str(refusal.value)
