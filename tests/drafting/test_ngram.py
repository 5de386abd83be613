"""Prompt lookup's drafts: drawn by hand, by a plain-Python rule over many texts, and transformers' own."""

import functools

import jax
import numpy as np
import pytest
import reference

from jax_probe_mtp.drafting import Ngram
from jax_probe_mtp.drafting.candidates import NO_PARENT, NO_TOKEN
from jax_probe_mtp.drafting.ngram import ACCEPTED
from jax_probe_mtp.drafting.shown import Text
from jax_probe_mtp.drafting.source import SourceState

WIDTH = 14
JUNK = 99


@functools.partial(jax.jit, static_argnames="source")
def jit_propose(token_BT, root_position_B, source):
    return source.propose(SourceState(), Text(token_BT=token_BT, root_position_B=root_position_B))


def drafts(text, *, behind=JUNK, **settings):
    """What is drafted for one text, in an array of `WIDTH` tokens that all are `behind` after it."""
    token_BT = np.full((1, WIDTH), behind, np.int32)
    token_BT[0, : len(text)] = text
    got = jit_propose(token_BT, np.asarray([len(text) - 1]), Ngram(num_drafts=4, **settings))
    return got.token_BP[0].tolist()


def padded(chain, num_drafts=4):
    return chain + [NO_TOKEN] * (num_drafts - len(chain))


LONGER_BEFORE_RECENT = [7, 1, 2, 4, 0, 1, 2, 5, 8, 2, 6, 7, 1, 2]


@pytest.mark.parametrize(
    ("max_ngram", "match", "expected"),
    [
        (5, "recent", [4, 0, 1, 2]),  # 7 1 2 was there before, 6 7 1 2 was not
        (3, "recent", [4, 0, 1, 2]),
        (2, "recent", [5, 8, 2, 6]),  # 1 2
        (2, "first", [4, 0, 1, 2]),
        (1, "recent", [6, 7, 1, 2]),  # 2
        (1, "first", [4, 0, 1, 2]),
    ],
)
def test_the_longest_match_wins_and_then_the_recent_or_the_first(max_ngram, match, expected):
    assert len(LONGER_BEFORE_RECENT) == WIDTH, "the text fills its array"
    assert drafts(LONGER_BEFORE_RECENT, max_ngram=max_ngram, match=match) == expected


@pytest.mark.parametrize(
    ("text", "recent", "first"),
    [
        ([3, 4, 3, 5, 3], [5, 3], [4, 3, 5, 3]),  # the chain stops where the text does
        ([5, 6, 7, 5], [6, 7, 5], [6, 7, 5]),  # the text's first token has none before it to compare
        ([1, 2, 9, 2], [9, 2], [9, 2]),
        ([1, 2, 8, 0, 2, 6, 1, 2], [8, 0, 2, 6], [8, 0, 2, 6]),  # 1 2, from the start of the text
        ([1, 1], [1], [1]),
        ([1, 1, 1, 1], [1], [1]),  # 1 1 1, which overlaps the newest three
        ([4, 5, 4, 5, 4], [5, 4], [5, 4]),  # 4 5 4 overlaps itself, and is longer than 4
        ([1, 2, 3, 4], [], []),
        ([7], [], []),
    ],
    ids=str,
)
def test_chains_drawn_by_hand(text, recent, first):
    for behind in (JUNK, *set(text)):  # also tokens that would go on with a match, or be one
        assert drafts(text, behind=behind) == padded(recent)
        assert drafts(text, behind=behind, match="first") == padded(first)


def test_nothing_is_compared_across_the_ends_of_the_array():
    # 7 5 would be there if the array's last token, behind the text, stood before its first
    text = [5, 6, 8, 5, 1, 7, 5]
    assert drafts(text, behind=7) == padded([1, 7, 5])


def test_a_chain_hangs_token_under_token():
    got = jit_propose(np.asarray([[3, 4, 3, 5, 3], [3, 4, 5, 5, 5]]), np.asarray([4, 2]), Ngram(num_drafts=3))
    assert got.token_BP.tolist() == [[5, 3, NO_TOKEN], [NO_TOKEN] * 3]
    assert got.parent_BP.tolist() == [[NO_PARENT, 0, 1]] * 2
    assert got.depth_BP.tolist() == [[1, 2, 3]] * 2


def test_scores_are_the_shares_that_were_measured():
    """After the tenth draft each is accepted as often as the tenth after the ninth; NO_TOKEN never is."""
    got = jit_propose(np.asarray([[3, *range(20, 33), 3]]), np.asarray([14]), Ngram(num_drafts=15))
    shares = list(ACCEPTED)
    while len(shares) < 14:
        shares.append(shares[-1] * (ACCEPTED[9] / ACCEPTED[8]))
    np.testing.assert_allclose(got.score_BP[0], [*np.log(shares), -np.inf], rtol=1e-5)
    assert got.token_BP[0].tolist() == [*range(20, 33), 3, NO_TOKEN]
    assert Ngram().kinds == ("ngram",)


def random_texts(alphabet, count=400, width=20, seed=0):
    """Arrays of random tokens, and the lengths of the texts in them: what is behind is from the same alphabet."""
    rng = np.random.default_rng(seed)
    length_B = rng.integers(1, width + 1, count)
    length_B[:20] = width
    return rng.integers(0, alphabet, (count, width), dtype=np.int32), length_B


@pytest.mark.parametrize("match", ["recent", "first"])
@pytest.mark.parametrize(("num_drafts", "max_ngram"), [(1, 1), (4, 3), (30, 16)])
def test_random_texts_get_the_plain_rules_chains(num_drafts, max_ngram, match):
    settings = {"num_drafts": num_drafts, "max_ngram": max_ngram, "match": match}
    for alphabet in (2, 3, 8):
        token_BT, length_B = random_texts(alphabet)
        got = np.asarray(jit_propose(token_BT, length_B - 1, Ngram(**settings)).token_BP)
        for row, length in enumerate(length_B):
            chain = reference.ngram_chain(token_BT[row, :length].tolist(), **settings)
            assert got[row].tolist() == padded(chain, num_drafts)


def test_two_tokens_and_the_first_match_is_transformers_rule():
    torch = pytest.importorskip("torch")
    from transformers.generation.candidate_generator import PromptLookupCandidateGenerator

    theirs = PromptLookupCandidateGenerator(num_output_tokens=10, max_matching_ngram_size=2, max_length=1000)
    num_found = 0
    for alphabet in (2, 5, 12):
        token_BT, length_B = random_texts(alphabet, count=100, seed=1)
        got = jit_propose(token_BT, length_B - 1, Ngram(num_drafts=10, max_ngram=2, match="first")).token_BP
        for text, length, ours in zip(token_BT, length_B, np.asarray(got), strict=True):
            ids, _ = theirs.get_candidates(torch.tensor(text[None, :length], dtype=torch.long))
            chain = ids[0, length:].tolist()
            assert ours.tolist() == padded(chain, 10)
            num_found += bool(chain)
    assert 0 < num_found < 300
