import pytest

from jax_probe_mtp.drafting import DynamicProbe, Ngram, Plain, Probe, Recycle
from jax_probe_mtp.drafting.spec import draft_name, parse_run, parse_runs


@pytest.mark.parametrize(
    ("name", "draft", "mask_ema", "rows"),
    [
        ("ar", Plain(), 0.1, 1),
        ("probe:4", Probe(widths=(4,)), 0.1, 10),
        ("probe:15+4", Probe(widths=(15, 4)), 0.1, 60),
        ("probe:dynamic60k2", DynamicProbe(rows=60, num_masks=2), 0.1, 60),
        (
            "probe:14@init=last_k,ema=0.5,prune=0",
            Probe(widths=(14,), mask_init="last_k", prune=False),
            0.5,
            30,
        ),
        ("probe:14@init=offset,offset=-2.5", Probe(widths=(14,), mask_init="offset", mask_offset=-2.5), 0.1, 30),
        ("probe:14@noise=0,prune=1", Probe(widths=(14,), rank_with_noise=False), 0.1, 30),
        ("probe:14@ema=0", Probe(widths=(14,)), 0.0, 30),
        ("ngram:10", Ngram(num_drafts=10), 0.1, 11),
        ("ngram:4@n=2,match=first", Ngram(num_drafts=4, max_ngram=2, match="first"), 0.1, 5),
        ("recycle:60", Recycle(tree=60), 0.1, 60),
        ("recycle:static80", Recycle(tree="static80"), 0.1, 81),
        ("recycle:30@warm=1", Recycle(tree=30, warm=True), 0.1, 30),
    ],
)
def test_a_name_says_how_to_draft(name, draft, mask_ema, rows):
    run = parse_run(name)
    assert (run.name, run.draft, run.mask_ema) == (name, draft, mask_ema)
    assert run.draft.num_rows == rows
    assert run.method == name.split(":")[0]


@pytest.mark.parametrize(
    ("draft", "mask_ema", "name"),
    [
        (Plain(), 0.1, "ar"),
        (ProbeConfig(prune=False), 0.5, "ar"),  # without masks nothing else has an effect
        (Probe(widths=(14,)), 0.1, "probe:14"),
        (Probe(widths=(15, 4)), 0.1, "probe:15+4"),
        (DynamicProbe(rows=60, num_masks=2), 0.1, "probe:dynamic60k2"),
        (Probe(widths=(4,), mask_init="last_k", prune=False), 0.5, "probe:4@init=last_k,prune=0,ema=0.5"),
        (Probe(widths=(4,), mask_init="offset", mask_offset=-2.5), 0.1, "probe:4@init=offset,offset=-2.5"),
        (Probe(widths=(4,), mask_offset=-2.5, rank_with_noise=False), 0.0, "probe:4@noise=0,ema=0.0"),
        (Ngram(), 0.5, "ngram:10"),
        (Ngram(num_drafts=4, max_ngram=2, match="first"), 0.1, "ngram:4@n=2,match=first"),
        (Recycle(), 0.1, "recycle:60"),
        (Recycle(tree="static80", warm=True), 0.1, "recycle:static80@warm=1"),
    ],
)
def test_a_way_of_drafting_has_the_name_that_is_read_as_it(draft, mask_ema, name):
    assert draft_name(draft, mask_ema) == name
    run = parse_run(name)
    assert (draft_name(run.draft, run.mask_ema), run.draft.num_rows) == (name, draft.num_rows)


def test_plain_decoding_comes_first_named_or_not():
    assert [run.name for run in parse_runs("probe:4; ngram:10;")] == ["ar", "probe:4", "ngram:10"]
    assert [run.name for run in parse_runs("probe:4;ar")] == ["ar", "probe:4"]
    assert [run.name for run in parse_runs("")] == ["ar"]


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("magic:3", "methods ar, probe, ngram, recycle"),
        ("probe", "got none"),
        ("probe:", "cannot be read"),
        ("probe:4,5", "cannot be read"),
        ("probe:4@", "cannot be read"),
        ("probe:x", "14, 15+4 or dynamic60k2, got x"),
        ("probe:4+", "got 4+"),
        ("probe:0", "at least 1"),
        ("probe:1+1+1+1", "at most 3 depths"),
        ("probe:dynamic60", "got dynamic60"),
        ("probe:dynamic8k2", "block_complexity 8"),
        ("probe:4@warm=1", "probe takes init, offset, ema, prune, noise after the @, got 'warm=1'"),
        ("probe:4@prune=2", "prune cannot be '2'"),
        ("probe:4@prune", "prune cannot be ''"),
        ("probe:4@ema=1.5", "ema cannot be '1.5'"),
        ("probe:4@ema=nan", "ema cannot be 'nan'"),
        ("probe:4@ema=0.1,ema=0.2", "probe takes once"),
        ("probe:4@init=zero", "mask_init must be one of"),
        ("probe:4@init=offset,offset=nan", "got nan"),
        ("probe:4@offset=10", "offset is of init=offset"),
        ("ngram:x", "length of its chain"),
        ("ngram:0", "num_drafts must be a whole number from 1 to 64, got 0"),
        ("ngram:10@n=0", "max_ngram must be a whole number from 1 to 16, got 0"),
        ("ngram:10@n=x", "n cannot be 'x'"),
        ("ngram:10@match=last", "match must be one of recent, first"),
        ("recycle:static81", "or static80, got static81"),
        ("recycle:1", "tree must be a whole number from 2 to 256, got 1"),
        ("recycle:60@warm=yes", "warm cannot be 'yes'"),
        ("ar:1", "no shape"),
        ("ar@ema=0.1", "ar takes no options"),
        ("recycle:²", "²"),
    ],
)
def test_a_run_that_cannot_be_read_is_named(name, says):
    with pytest.raises(ValueError, match="run") as caught:
        parse_runs(f"probe:14;{name}")
    assert repr(name) in str(caught.value)
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("names", ["probe:4;probe:4", "probe:14;probe:14@ema=0.1", "ngram:10;ngram:10@n=5"])
def test_the_same_run_under_two_names_is_refused(names):
    with pytest.raises(ValueError, match="are the same"):
        parse_runs(names)
