"""The tree that pays: picked from given costs by hand, and from those of a real model."""

import dataclasses
import math
import re

import jax
import pytest
from checkpoints import make_checkpoint, words
from support.measuring.tree_timer import CHEAP, Timer

from jax_probe_mtp import Settings, generate
from jax_probe_mtp.drafting import Plain, Probe
from jax_probe_mtp.measuring import call_cost
from jax_probe_mtp.measuring.tree_choice import PRIOR_TAU, choose, next_to_measure, pick

SETTINGS = Settings(batch_size=2, capacity=128)
PROMPT = words(5, 9, 2, 44, 17, 3, 3)


@pytest.fixture(scope="module")
def checkpoint(tiny):
    return make_checkpoint(tiny)


@pytest.fixture
def timer(monkeypatch):
    timer = Timer()
    monkeypatch.setattr(call_cost, "time_step", timer)
    return timer


@pytest.mark.parametrize(
    ("costs", "rows", "expected"),
    [
        (CHEAP, 30, {1: 1, 10: 13.55 / 10.5, 30: 15.03 / 11, 60: 15.73 / 13}),
        ({1: 8, 10: 8, 30: 8, 60: 8}, 60, {1: 1, 10: 1.355, 30: 1.503, 60: 1.573}),
        ({1: 2, 10: 2.1, 30: 3.1, 60: 5}, 10, {1: 1, 10: 2.71 / 2.1, 30: 3.006 / 3.1, 60: 3.146 / 5}),
        ({1: 3, 10: 7}, 1, {1: 1, 10: 4.065 / 7}),
        ({1: 3}, 1, {1: 1}),
        ({1: 3, 10: 4, 30: math.inf}, 10, {1: 1, 10: 4.065 / 4, 30: 0}),
    ],
    ids=["30", "60", "10", "none pays", "nothing measured", "no memory"],
)
def test_picks_the_best_expected_speed(costs, rows, expected):
    assert pick(costs, PRIOR_TAU) == (rows, pytest.approx(expected))


def test_ties_go_to_plain_decoding_and_then_to_fewer_rows():
    prior = {1: 1.0, 10: 1.5, 30: 2.0}
    assert pick({1: 2.0, 10: 3.0, 30: 4.0}, prior) == (1, {1: 1.0, 10: 1.0, 30: 1.0})
    assert pick({1: 2.0, 10: 2.25, 30: 3.0}, prior)[0] == 10  # 4/3 both
    assert pick({30: 3.0, 10: 2.25, 1: 2.0}, prior)[0] == 10  # whatever their order


@pytest.mark.parametrize(
    ("costs", "says"),
    [
        ({}, "plain decoding, 1 row, needs a cost"),
        ({10: 1.0}, "plain decoding, 1 row, needs a cost"),
        ({1: math.nan}, "nan"),
        ({1: math.inf, 10: 1.0}, "inf"),
        ({1: 1.0, 10: 0.0}, "above 0"),
        ({1: -1.0}, "above 0"),
        ({1: 1.0, 10: math.nan}, "above 0"),
        ({1: 1.0, 12: 1.0}, "12: 1.0"),
    ],
)
def test_costs_that_make_no_sense(costs, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        pick(costs, PRIOR_TAU)


@pytest.mark.parametrize(
    ("costs", "rows"),
    [
        ({}, 1),
        ({1: 10.0}, 10),
        ({1: 10.0, 10: 15.72}, 30),
        ({1: 10.0, 10: 15.73}, None),  # 60 rows give 1.573 at best
        ({1: 10.0, 10: 14.0, 30: 15.72}, 60),
        ({1: 10.0, 10: 14.0, 30: 15.73}, None),
        (CHEAP, None),
        ({1: 10.0, 10: math.inf}, None),
    ],
)
def test_measures_what_can_pay_with_fewer_rows_first(costs, rows):
    assert next_to_measure(costs, PRIOR_TAU) == rows


def test_the_choice_says_what_and_why(checkpoint, timer):
    choice = choose(checkpoint, SETTINGS)
    assert choice.source == Probe(widths=(14,))
    assert (choice.costs, choice.prior, choice.is_cached) == (CHEAP, PRIOR_TAU, False)
    assert choice.expected == pytest.approx({1: 1, 10: 13.55 / 10.5, 30: 15.03 / 11, 60: 15.73 / 13})
    assert str(choice) == (
        "probe:14, expected to be 1.37 x as fast as plain decoding (fresh: 1 row 10.00 ms a call, 10 rows 10.50 ms for "
        "1.29 x, 30 rows 11.00 ms for 1.37 x, 60 rows 13.00 ms for 1.21 x)"
    )
    timer.costs = {1: 10.0, 10: 16.0}
    plain = choose(checkpoint, SETTINGS)
    assert plain.source == Plain()
    assert str(plain) == (
        "plain, no tree pays (fresh: 1 row 10.00 ms a call, 10 rows 16.00 ms for 0.85 x, 30 rows skipped, 60 rows skipped)"
    )


def test_times_the_run_that_is_asked_for(checkpoint, timer):
    assert choose(checkpoint, SETTINGS).source.num_rows == 30
    assert timer.rows == [1, 10, 30, 60]
    for _, decode_cfg, more in timer.asked:
        assert decode_cfg.capacity == 128
        assert (more["batch_size"], more["in_use"], more["temperature"], more["top_p"]) == (2, 64, 0.0, 1.0)
    timer.asked.clear()
    template = Probe(widths=(7, 3), mask_init="last_k", rank_with_noise=False)
    drawn = dataclasses.replace(SETTINGS, temperature=0.5, top_k=3, capacity=1)
    assert choose(checkpoint, drawn, template=template).source == dataclasses.replace(template, widths=(14,))
    assert [source.num_rows for source, _, _ in timer.asked] == [1, 10, 30, 60]
    assert timer.asked[0][0] == Plain()
    for _, decode_cfg, more in timer.asked:
        assert decode_cfg.capacity == 64  # no cache is smaller than a bucket
        assert more["temperature"] == 0.5
        assert 0 < more["top_p"] < 1  # stands for the cut by top-k


def test_stops_where_more_rows_cannot_pay(checkpoint, timer):
    timer.costs = {1: 10.0, 10: 14.0, 30: 20.0}
    choice = choose(checkpoint, SETTINGS)
    assert timer.rows == [1, 10, 30]
    assert choice.source == Plain()


def test_trees_wider_than_the_vocabulary_are_left_out(tiny, timer):
    narrow = make_checkpoint(tiny)
    narrow = dataclasses.replace(narrow, config=dataclasses.replace(narrow.config, vocab_size=29))
    assert list(choose(narrow, SETTINGS).prior) == timer.rows == [1, 10, 30]  # [29] looks at 30 candidates


def test_a_tree_that_does_not_fit_is_not_chosen_and_not_kept(checkpoint, timer, tmp_path):
    out_of_memory = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")
    timer.costs = {1: 10.0, 10: 11.0, 30: out_of_memory}
    choice = choose(checkpoint, SETTINGS, folder=tmp_path)
    assert choice.source == Probe(widths=(4,))
    assert "30 rows do not fit, 60 rows skipped" in str(choice)
    assert list(tmp_path.iterdir()) == []
    timer.costs = {1: out_of_memory}
    with pytest.raises(jax.errors.JaxRuntimeError, match="9 bytes"):
        choose(checkpoint, SETTINGS)
    timer.costs = {1: 10.0, 10: jax.errors.JaxRuntimeError("INTERNAL: a fault")}
    with pytest.raises(jax.errors.JaxRuntimeError, match="a fault"):
        choose(checkpoint, SETTINGS)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"capacity": None}, "settings have no capacity"),
        ({"capacity": 0}, "capacity must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"temperature": -1.0}, "got -1.0"),
        ({"temperature": math.nan}, "got nan"),
    ],
)
def test_settings_that_make_no_sense(checkpoint, timer, changes, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        choose(checkpoint, dataclasses.replace(SETTINGS, **changes))
    assert timer.asked == []


def test_measures_a_real_model_and_decodes_with_the_choice(checkpoint):
    settings = Settings(max_new_tokens=16, batch_size=2, capacity=64)
    choice = choose(checkpoint, settings)
    assert 1 in choice.costs
    assert 10 in choice.costs
    assert all(0 < cost < 1e4 for cost in choice.costs.values())
    (got,) = generate(checkpoint, [PROMPT], draft=choice.source, settings=settings)
    (plain,) = generate(checkpoint, [PROMPT], draft=Plain(), settings=settings)
    assert got.token_ids == plain.token_ids
