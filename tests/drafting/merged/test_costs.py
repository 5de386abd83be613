"""What calls cost, as it is kept: taken back where it holds for the same, and never where it makes no sense."""

import json

import pytest

from jax_probe_mtp.drafting.merged.costs import Costs

HERE = {"device": "a card", "jax": "0.11.2", "exact": False}


def test_what_is_kept_is_taken_back():
    costs = Costs(HERE)
    costs.add("1", "plain", 0.25)
    costs.add("8", "merged:16", 0.5)
    again = Costs(dict(HERE), {"8": {"plain": 0.125, "merged:16": 9.0}})
    assert again.take(json.loads(json.dumps(costs.as_json())))
    assert again.seconds == {"1": {"plain": 0.25}, "8": {"plain": 0.125, "merged:16": 0.5}}
    assert again.get("8", "merged:16") == 0.5
    assert again.get("8", "merged:32") is again.get("2", "plain") is None


@pytest.mark.parametrize(
    "kept",
    [
        None,
        [],
        {"depends_on": HERE | {"device": "another card"}, "seconds": {}},
        {"depends_on": HERE, "seconds": {"1": {"plain": "fast"}}},
        {"depends_on": HERE, "seconds": {"1": {"plain": 0}}},
        {"depends_on": HERE, "seconds": {"1": {"plain": float("nan")}}},
        {"depends_on": HERE, "seconds": {"1": {"plain": None}}},
        {"depends_on": HERE, "seconds": {"1": 3}},
        {"depends_on": HERE, "seconds": 3},
    ],
)
def test_what_holds_for_something_else_or_makes_no_sense_is_not(kept):
    costs = Costs(HERE, {"1": {"plain": 0.5}})
    assert not costs.take(kept)
    assert costs.seconds == {"1": {"plain": 0.5}}
