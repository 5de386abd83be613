"""Configurations: what is refused, and the sizes of a tree worked out by hand."""

import dataclasses

import jax
import pytest
from conftest import BASE

from jax_probe_mtp.decoding.config import DecodeConfig
from jax_probe_mtp.drafting import DynamicProbe, Ngram, Plain, Probe, Recycle


@pytest.mark.parametrize(
    ("probe", "pools", "num_nodes", "num_rows"),
    [
        (Plain(), (), 1, 1),  # the root alone
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
    ],
    ids=str,
)
def test_sizes_of_a_call_without_masks(source, num_nodes, max_depth):
    assert source.masks_per_node == 0
    assert source.num_nodes == source.num_rows == num_nodes
    assert source.max_depth == max_depth


def test_pruning_looks_at_one_candidate_more():
    assert Probe(widths=(15, 4)).num_candidates == 16
    assert Probe(widths=(15, 4), prune=False).num_candidates == 15
    assert DynamicProbe(rows=30, num_masks=2, prune=False).num_candidates == 9


def test_num_masks_comes_from_the_tree():
    assert Probe(widths=(15, 4)).num_masks == 2
    assert Probe(widths=(15, 4)) == Probe(widths=(15, 4))
    assert Probe(widths=[14]) == Probe(widths=(14,))  # a list would not be hashable


DYNAMIC = {"tree": "dynamic"}


@pytest.mark.parametrize(
    ("settings", "says"),
    [
        ({"tree": (3,), "num_masks": 2}, ["2 masks", "2 numbers", "[3]"]),
        ({"tree": (3, 2, 1), "num_masks": 2}, ["2 masks", "[3, 2, 1]"]),
        ({"num_masks": 2}, ["2 masks", "[]"]),
        ({"tree": (1, 1, 1, 1)}, ["at most 3", "[1, 1, 1, 1]"]),
        ({"tree": (0,)}, ["at least 1", "[0]"]),
        ({"tree": (3, -1)}, ["at least 1", "[3, -1]"]),
        ({"tree": (2.5,)}, ["[2.5]"]),
        ({"tree": 14.0}, ["numbers of candidates", "14.0"]),
        ({"tree": None}, ["numbers of candidates", "None"]),
        ({"tree": (3,), "num_masks": 1.0}, ["1.0 masks", "[3]"]),
        ({"tree": (15, 4), "block_complexity": 59}, ["[15, 4]", "60 rows", "59"]),
        ({"tree": "static"}, ["'static'", "'dynamic'"]),
        ({**DYNAMIC}, ["num_masks and block_complexity"]),
        ({**DYNAMIC, "num_masks": 2}, ["num_masks and block_complexity"]),
        ({**DYNAMIC, "block_complexity": 60}, ["num_masks and block_complexity"]),
        ({**DYNAMIC, "num_masks": 0, "block_complexity": 60}, ["1 to 3", "got 0"]),
        ({**DYNAMIC, "num_masks": 4, "block_complexity": 60}, ["1 to 3", "got 4"]),
        ({**DYNAMIC, "num_masks": 2, "block_complexity": 8}, ["block_complexity 8", "2 masks", "9 or more"]),
        ({**DYNAMIC, "num_masks": 3, "block_complexity": 15}, ["block_complexity 15", "3 masks", "16 or more"]),
        ({"tree": (14,), "mask_init": "zero"}, ["'zero'", "mean, last_k, sample, offset"]),
    ],
    ids=str,
)
def test_probe_refuses(settings, says):
    _assert_refused(lambda: ProbeConfig(**settings), says)


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
    _assert_refused(lambda: Recycle(warm="yes"), ["is_warm", "got 'yes'"])


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        *[({name: 0}, [name, "0"]) for name in ("vocab_size", "width", "num_layers", "mlp_width", "context_length")],
        ({"num_heads": -6}, ["num_heads", "-6"]),
        ({"num_kv_heads": 0}, ["num_kv_heads", "0"]),
        ({"width": 24.0}, ["width", "24.0"]),
        ({"num_heads": 6, "num_kv_heads": 4}, ["num_heads 6", "num_kv_heads 4"]),
        ({"head_dim": 7}, ["head_dim", "7"]),
        ({"head_dim": 8, "rope_divisors": (1.0, 2.0, 3.0)}, ["4 numbers", "got 3"]),
        ({"norm_eps": 0.0}, ["norm_eps 0.0"]),
        ({"norm_eps": float("nan")}, ["norm_eps nan"]),
        ({"rope_theta": -1.0}, ["rope_theta -1.0"]),
    ],
    ids=str,
)
def test_model_refuses(changes, says):
    _assert_refused(lambda: dataclasses.replace(BASE, **changes), says)


@pytest.mark.parametrize("value", [0, 10.5, "10"], ids=repr)
@pytest.mark.parametrize("name", ["capacity", "prefill_chunk"])
def test_decode_refuses(name, value):
    _assert_refused(lambda: DecodeConfig(**{"capacity": 8, name: value}), [f"{name} must", "at least 1", repr(value)])


def test_query_heads_that_share_a_kv_head():
    assert BASE.queries_per_kv == 3  # 6 heads over 2


@pytest.mark.parametrize(
    "config",
    [BASE, Probe(widths=[3, 2]), Ngram(), Recycle(), DecodeConfig(capacity=8)],
    ids=lambda c: type(c).__name__,
)
def test_a_config_is_a_static_argument_and_cannot_change(config):
    traced = []
    traced_once = jax.jit(lambda x, cfg: traced.append(cfg) or x, static_argnums=1)
    traced_once(0, config)
    traced_once(0, dataclasses.replace(config))  # equal: no second trace
    assert traced == [config]
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, dataclasses.fields(config)[0].name, 1)


def _assert_refused(build, says):
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as refusal:
        build()
    for part in says:
        assert part in str(refusal.value)
