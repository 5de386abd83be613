"""Lists of runs: plain decoding first, each run once, and the run that cannot be read by its name."""

import pytest

from jax_probe_mtp.drafting import draft_name
from jax_probe_mtp.measuring.runs import parse_runs


def names(text):
    return [draft_name(source) for source in parse_runs(text)]


def test_plain_decoding_comes_first_named_or_not():
    assert names("probe:4; ngram:10;") == ["plain", "probe:4", "ngram:10"]
    assert names("probe:4;ar") == names("plain;probe:4") == ["plain", "probe:4"]
    assert names("") == ["plain"]


def test_names_of_the_version_before_are_read():
    old = "probe:4@init=last_k,ema=0.5,noise=0; probe:dynamic60k2; ngram:4@n=2"
    new = ["probe:4@mask_init=last_k,mask_ema=0.5,rank_with_noise=0", "dynamic:60", "ngram:4@max_ngram=2"]
    assert names(old) == ["plain", *new]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("magic", "the name is none of plain, probe, dynamic, ngram, recycle"),
        ("no_such_module:Source", "module no_such_module cannot be imported"),
        ("probe:", "cannot be read"),
        ("probe:4,5", "cannot be read"),
        ("probe:4@", "cannot be read"),
        ("probe:x", "widths cannot be 'x'"),
        ("probe:4+", "widths cannot be '4+'"),
        ("probe:0", "at least 1"),
        ("probe:1+1+1+1", "1 to 3 depths"),
        ("probe:dynamic60", "widths cannot be 'dynamic60'"),
        ("probe:dynamic8k2", "8"),
        ("probe:4@warm=1", "mask_init, mask_offset, mask_ema, prune, rank_with_noise after the @, got 'warm=1'"),
        ("probe:4@prune=2", "prune cannot be '2'"),
        ("probe:4@prune", "prune cannot be ''"),
        ("probe:4@ema=1.5", "mask_ema must be between 0 (frozen masks) and 1, got 1.5"),
        ("probe:4@ema=nan", "got nan"),
        ("probe:4@ema=0.1,ema=0.2", "it takes once"),
        ("probe:4@init=ones", "mask_init must be one of"),
        ("probe:4@init=offset,offset=nan", "got nan"),
        ("probe:4@offset=10", "mask_offset 10 is of mask_init offset"),
        ("ngram:x", "num_drafts cannot be 'x'"),
        ("ngram:0", "num_drafts must be a whole number from 1 to 64, got 0"),
        ("ngram:10@n=0", "max_ngram must be a whole number from 1 to 16, got 0"),
        ("ngram:10@n=x", "max_ngram cannot be 'x'"),
        ("ngram:10@match=last", "match must be one of recent, first"),
        ("recycle:static81", "or 'static80', got 'static81'"),
        ("recycle:1", "tree must be a whole number from 2 to 256, got 1"),
        ("recycle:60@warm=yes", "warm cannot be 'yes'"),
        ("ar:1", "'ar:1'"),
        ("plain:1", "no shape"),
        ("plain@ema=0.1", "it takes no options"),
        ("recycle:²", "²"),
    ],
)
def test_a_run_that_cannot_be_read_is_named(name, says):
    with pytest.raises(ValueError, match="draft") as caught:
        parse_runs(f"probe:14;{name}")
    assert repr(name) in str(caught.value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "names",
    [
        "probe:14;probe",
        "probe:4;probe:4",
        "probe:14@init=mean;probe:14@init=mean,ema=0.1",
        "ngram:10;ngram:10@n=5",
        "probe:dynamic60k2;dynamic:60@num_masks=2",
    ],
)
def test_the_same_run_under_two_names_is_refused(names):
    with pytest.raises(ValueError, match="are the same"):
        parse_runs(names)
