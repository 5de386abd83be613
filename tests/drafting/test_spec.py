"""The text form of a draft source: read, written, and refused in one line that names the text."""

import dataclasses

import pytest

from jax_probe_mtp.drafting import DynamicProbe, Merged, Ngram, Plain, Probe, Recycle
from jax_probe_mtp.drafting.spec import (
    SOURCES,
    draft_name,
    parse_draft,
    renewed_name,
    source_fields,
)

OWN = """
import dataclasses
import jax.numpy as jnp
from jax_probe_mtp.drafting import NO_TOKEN, DraftSource, chain

@dataclasses.dataclass(frozen=True)
class Echo(DraftSource):
    num_drafts: int = 3
    share: float = 0.5
    is_far: bool = False

    @property
    def num_candidates(self):
        return self.num_drafts

    def propose(self, state, text):
        return chain(jnp.broadcast_to(text.root_B[:, None], (text.root_B.size, self.num_drafts)))

@dataclasses.dataclass(frozen=True)
class Silent(DraftSource):
    num_candidates: int = 3

class Loose(DraftSource):
    num_candidates = 3
    def propose(self, state, text): ...

@dataclasses.dataclass
class Melting(DraftSource):
    num_candidates: int = 3
    def propose(self, state, text): ...

@dataclasses.dataclass(frozen=True)
class Needy(DraftSource):
    num_candidates: int
    def propose(self, state, text): ...

@dataclasses.dataclass(frozen=True)
class Stranger:
    num_candidates: int = 3

number = 3
"""


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """A user's module with sources, good and bad, and one that raises."""
    folder = tmp_path / "sources_of_a_user"
    folder.mkdir()
    (folder / "__init__.py").write_text("")
    (folder / "good.py").write_text(OWN)
    (folder / "broken.py").write_text("raise RuntimeError('first line\\nsecond line')")
    monkeypatch.syspath_prepend(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "source", "rows"),
    [
        ("plain", Plain(), 1),
        ("probe:14", Probe(widths=(14,)), 30),
        ("probe:15+4", Probe(widths=(15, 4)), 60),
        ("probe:5+4+2", Probe(widths=(5, 4, 2)), 48),
        ("dynamic:60", DynamicProbe(rows=60, num_masks=2), 60),
        ("dynamic:30@num_masks=1", DynamicProbe(rows=30, num_masks=1), 30),
        (
            "probe:4@mask_init=last_k,mask_ema=0.5,prune=0",
            Probe(widths=(4,), mask_init="last_k", prune=False, mask_ema=0.5),
            10,
        ),
        ("probe:4@mask_init=offset,mask_offset=-2.5", Probe(widths=(4,), mask_init="offset", mask_offset=-2.5), 10),
        ("probe:4@mask_ema=0.0,rank_with_noise=0", Probe(widths=(4,), rank_with_noise=False, mask_ema=0.0), 10),
        ("dynamic:16@mask_init=sample,num_masks=3", DynamicProbe(rows=16, num_masks=3, mask_init="sample"), 16),
        ("ngram:10", Ngram(), 11),
        ("ngram:4@max_ngram=2,match=first", Ngram(num_drafts=4, max_ngram=2, match="first"), 5),
        ("recycle:60", Recycle(), 60),
        ("recycle:30@warm=1", Recycle(tree=30, warm=True), 30),
        ("recycle:static80", Recycle(tree="static80"), 81),
        ("recycle:static80@warm=1", Recycle(tree="static80", warm=True), 81),
        ("merged:64", Merged(), 64),
        ("merged:32@mask_owners=2,warm=1", Merged(rows=32, mask_owners=2, warm=True), 32),
        ("merged:16@mask_owners=0,without=pairs+ngrams", Merged(rows=16, mask_owners=0, without="pairs+ngrams"), 16),
        ("merged:64@is_learning=0,mask_init=tuned", Merged(is_learning=False, mask_init="tuned"), 64),
    ],
)
def test_a_source_has_one_name_that_is_read_as_it(name, source, rows):
    assert parse_draft(name) == source
    assert draft_name(source) == name
    assert source.num_rows == rows


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("probe", "probe:14"),  # without a shape: the class's own
        ("dynamic", "dynamic:60"),
        ("ngram@match=first", "ngram:10@match=first"),
        ("recycle", "recycle:60"),
        ("probe:4@prune=1,mask_ema=0.1,mask_init=mean", "probe:4@mask_init=mean"),  # defaults
        ("probe:4@mask_ema=1e-2", "probe:4@mask_ema=0.01"),
        ("probe:4@prune=0,mask_init=sample", "probe:4@mask_init=sample,prune=0"),  # in the order of the fields
        # As an earlier version wrote them:
        ("ar", "plain"),
        ("probe:dynamic60k2", "dynamic:60"),
        ("probe:dynamic30k1", "dynamic:30@num_masks=1"),
        ("probe:dynamic60k2@init=sample,prune=0", "dynamic:60@mask_init=sample,prune=0"),
        ("probe:14@init=last_k,ema=0.5,prune=0", "probe:14@mask_init=last_k,mask_ema=0.5,prune=0"),
        ("probe:14@init=offset,offset=-2.5", "probe:14@mask_init=offset,mask_offset=-2.5"),
        ("probe:14@noise=0,ema=0", "probe:14@mask_ema=0.0,rank_with_noise=0"),
        ("ngram:4@n=2,match=first", "ngram:4@max_ngram=2,match=first"),
    ],
)
def test_other_ways_to_write_a_source_and_old_names_are_read(text, name):
    assert draft_name(parse_draft(text)) == name
    assert renewed_name(text) == name


def test_what_cannot_be_read_keeps_its_name_in_files():
    assert renewed_name("magic:3") == "magic:3"
    assert renewed_name("probe:0") == "probe:0"


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("", "cannot be read"),
        ("magic:3", "none of plain, probe, dynamic, ngram, recycle, merged, auto, and no module:Class"),
        ("magic", "none of plain, probe, dynamic, ngram, recycle, merged, auto, and no module:Class"),
        ("probe:", "cannot be read"),
        ("probe:4,5", "cannot be read"),
        ("probe:4@", "cannot be read"),
        ("probe:x", "widths cannot be 'x'"),
        ("probe:4+", "widths cannot be '4+'"),
        ("probe:-4", "cannot be read"),
        ("probe:0", "at least 1"),
        ("probe:1+1+1+1", "1 to 3 depths"),
        ("probe:dynamic60", "widths cannot be 'dynamic60'"),
        ("probe:dynamic8k2", "8 rows leave no room"),
        ("dynamic:8", "raise rows to 9"),
        ("dynamic:15+4", "rows cannot be '15+4'"),
        ("dynamic:60@num_masks=4", "num_masks must be 1 to 3"),
        (
            "probe:4@warm=1",
            "takes mask_init, mask_offset, mask_ema, prune, rank_with_noise after the @, got 'warm=1'",
        ),
        ("probe:4@widths=3", "takes once mask_init"),
        ("probe:4@prune=2", "prune cannot be '2'"),
        ("probe:4@prune", "prune cannot be ''"),
        ("probe:4@mask_ema=1.5", "mask_ema must be between 0"),
        ("probe:4@mask_ema=nan", "got nan"),
        ("probe:4@mask_ema=1_0", "mask_ema cannot be '1_0'"),
        ("probe:4@mask_ema=0.1,mask_ema=0.2", "takes once"),
        ("probe:4@ema=0.1,mask_ema=0.2", "takes once"),
        ("probe:4@mask_init=ones", "mask_init must be one of"),
        ("probe:4@mask_init=", "mask_init cannot be ''"),
        ("probe:4@mask_offset=inf", "got inf"),
        ("probe:4@mask_offset=10", "mask_offset 10 is of mask_init offset"),
        ("probe:4@mask_init=offset,mask_offset=nan", "got nan"),
        ("ngram:x", "num_drafts cannot be 'x'"),
        ("ngram:0", "num_drafts must be a whole number from 1 to 64, got 0"),
        ("ngram:10@max_ngram=0", "max_ngram must be a whole number from 1 to 16, got 0"),
        ("ngram:10@n=x", "max_ngram cannot be 'x'"),
        ("ngram:10@match=last", "match must be one of recent, first"),
        ("recycle:static81", "or 'static80', got 'static81'"),
        ("recycle:1", "tree must be a whole number from 2 to 256, got 1"),
        ("recycle:60@warm=yes", "warm cannot be 'yes'"),
        ("ar:1", "none of plain, probe"),
        ("plain:1", "it has no shape, got '1'"),
        ("plain@mask_ema=0.1", "it takes no options after the @, got 'mask_ema=0.1'"),
        ("recycle:²", "²"),
    ],
)
def test_a_text_that_cannot_be_read_is_named(name, says):
    _assert_refused(name, says)


def _assert_refused(name, says):
    with pytest.raises(ValueError, match=r"\Adraft [^\n]+\Z") as caught:
        parse_draft(name)
    assert repr(name) in str(caught.value)
    assert says in str(caught.value)


GOOD = "sources_of_a_user.good"


@pytest.mark.parametrize(
    ("name", "changes"),
    [
        (f"{GOOD}:Echo", {}),
        (f"{GOOD}:Echo@num_drafts=5", {"num_drafts": 5}),
        (f"{GOOD}:Echo@num_drafts=1,share=0.25,is_far=1", {"num_drafts": 1, "share": 0.25, "is_far": True}),
    ],
)
def test_a_users_own_source_takes_its_fields_as_options(own_module, name, changes):
    source = parse_draft(name)
    assert dataclasses.asdict(source) == {"num_drafts": 3, "share": 0.5, "is_far": False} | changes
    assert draft_name(source) == name
    assert parse_draft(draft_name(source)) == source


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("no_such_module:Echo", "module no_such_module cannot be imported: No module named 'no_such_module'"),
        ("sources_of_a_user.broken:Echo", "cannot be imported: first line second line"),
        (f"{GOOD}:Missing", f"module {GOOD} has no class Missing"),
        (f"{GOOD}:Stranger", f"{GOOD}:Stranger is no DraftSource"),
        (f"{GOOD}:number", f"{GOOD}:number is no DraftSource"),
        (f"{GOOD}:Loose", "is no frozen dataclass"),
        (f"{GOOD}:Melting", "is no frozen dataclass"),
        (f"{GOOD}:Silent", "propose"),
        (f"{GOOD}:Needy", "num_candidates"),
        (f"{GOOD}:Echo@size=3", "takes num_drafts, share, is_far after the @, got 'size=3'"),
        (f"{GOOD}:Echo@num_drafts=x", "num_drafts cannot be 'x'"),
        (f"{GOOD}:Echo@share=much", "share cannot be 'much'"),
    ],
)
def test_a_users_source_that_is_none_is_refused(own_module, name, says):
    _assert_refused(name, says)


def test_the_fields_of_a_source_are_named():
    assert source_fields("ngram") == {"num_drafts", "max_ngram", "match"}
    assert source_fields("plain") == frozenset()
    assert source_fields("magic") == frozenset()
    assert {"widths", "mask_ema", "mask_init", "prune"} <= source_fields("probe")
    assert all(draft_name(parse_draft(name)).split(":")[0] == name for name in SOURCES)
