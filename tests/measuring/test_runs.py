"""Lists of runs to compare, as `bench` takes them."""

import pytest

from jax_probe_mtp.drafting.spec import parse_runs


def test_plain_decoding_comes_first_named_or_not():
    assert [run.name for run in parse_runs("probe:4; ngram:10;")] == ["ar", "probe:4", "ngram:10"]
    assert [run.name for run in parse_runs("probe:4;ar")] == ["ar", "probe:4"]
    assert [run.name for run in parse_runs("")] == ["ar"]


@pytest.mark.parametrize("names", ["probe:4;probe:4", "probe:14;probe:14@ema=0.1", "ngram:10;ngram:10@n=5"])
def test_the_same_run_under_two_names_is_refused(names):
    with pytest.raises(ValueError, match="are the same"):
        parse_runs(names)
