"""Texts that the model cut otherwise than its tokenizer does: honest ones are the same, wrong ones are found."""

import dataclasses
import math

import jax.numpy as jnp
import numpy as np
import pytest
import reference
from checkpoints import make_checkpoint
from conftest import BASE, make_tiny
from support.generation.byte_level import AA, AAB, AB, EOS, byte_level_tokenizer

from jax_probe_mtp.decoding.settings import Prompt, Settings
from jax_probe_mtp.jobs.text_ids import TextIds, cut_with, ids_of_text
from jax_probe_mtp.sameness import given_outputs
from jax_probe_mtp.sameness.first_difference import Difference
from jax_probe_mtp.sameness.given_outputs import examine
from jax_probe_mtp.sameness.output import Examined, Output
from jax_probe_mtp.sameness.verdicts import Verdict

SAID = [*map(ord, "abcd "), AB, AA, AAB]  # tokens that the model says: many texts of them have several cuts
NUM_NEW = 24


@pytest.fixture(scope="module")
def model():
    tiny = make_tiny(dataclasses.replace(BASE, vocab_size=EOS + 2), seed=3)
    head_VD = np.array(tiny.params["head"])
    head_VD[[token for token in range(len(head_VD)) if token not in SAID]] = 0  # below the best of eight
    return dataclasses.replace(tiny, params=tiny.params | {"head": jnp.asarray(head_VD)})


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_tokenizer()


@pytest.fixture(scope="module")
def checkpoint(model, tokenizer):
    return dataclasses.replace(make_checkpoint(model), tokenizer=tokenizer, eos_token_ids=(EOS,))


@pytest.fixture(scope="module")
def answers(model):
    return said(model, NUM_NEW)


def said(model, num_new):
    """Prompts and what the reference says behind them, where the model's best is surely its best."""
    found = []
    for first in map(ord, "abcdefghijklmnop"):
        tokens, gap = reference.plain_decode(
            reference.Model(model.params, model.cfg), [first, 9], max_new_tokens=num_new
        )
        if gap > 0.01 and set(tokens) <= set(SAID):
            found.append(([first, 9], tokens))
    assert len(found) > 4
    return found


def text_outputs(checkpoint, answers):
    for number, (prompt_ids, tokens) in enumerate(answers):
        text = checkpoint.tokenizer.decode(tokens)
        found = ids_of_text(checkpoint.tokenizer, prompt_ids, text)
        limit = len(found.token_ids)  # as of a text that says that it reached its limit
        prompt = Prompt(id=number, token_ids=prompt_ids)
        yield Output(prompt=prompt, token_ids=found.token_ids, limit=limit, is_from_text=True)


def examined(checkpoint, answers):
    return list(examine(checkpoint, text_outputs(checkpoint, answers), Settings(batch_size=4)))


def test_an_honest_text_is_read_in_the_models_own_cut(checkpoint, answers, monkeypatch):
    others = [
        tokens
        for prompt, tokens in answers
        if tokens not in [[*o.token_ids] for o in text_outputs(checkpoint, answers)]
    ]
    assert len(others) > 3, "some answers are cut otherwise than their texts"
    found = examined(checkpoint, answers)
    assert {each.verdict.kind for each in found} == {"same"}
    assert any([*each.output.token_ids] == tokens for each in found for tokens in others)
    monkeypatch.setattr(given_outputs, "MOST_CUTS", 0)
    assert "diverged" in {each.verdict.kind for each in examined(checkpoint, answers)}


def test_a_wrong_text_is_found_where_it_is_wrong(checkpoint, answers):
    """A letter that the model did not write, in each answer at some place: no cut explains it away."""
    wrong = []
    for prompt_ids, tokens in answers:
        letter = next(place for place in range(NUM_NEW // 2, NUM_NEW) if tokens[place] in map(ord, "cd"))
        swapped = {ord("c"): ord("d"), ord("d"): ord("c")}[tokens[letter]]
        wrong.append((prompt_ids, [*tokens[:letter], swapped, *tokens[letter + 1 :]]))
    for each, (_, tokens), (_, honest) in zip(examined(checkpoint, wrong), wrong, answers, strict=True):
        assert each.verdict.kind == "diverged"
        letter = next(place for place, pair in enumerate(zip(tokens, honest, strict=True)) if pair[0] != pair[1])
        place = each.verdict.difference.position
        assert checkpoint.tokenizer.decode(each.output.token_ids[:place]) == checkpoint.tokenizer.decode(
            tokens[:letter]
        )
        assert each.verdict.difference.other_token == tokens[letter]


def test_a_long_text_has_many_cuts(checkpoint, model, monkeypatch):
    long = said(model, 100)[:4]
    assert {each.verdict.kind for each in examined(checkpoint, long)} == {"same"}
    monkeypatch.setattr(given_outputs, "MOST_CUTS", 3)
    few = [each.verdict for each in examined(checkpoint, long) if each.verdict.kind == "diverged"]
    assert few
    assert {each.more for each in few} == {"; its text was cut in 3 other ways, and there are more: ask for token ids"}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [("diverged", 4), ("tie", math.inf), ("incomplete", math.inf), ("same", math.inf), ("unchecked", -1)],
)
def test_which_of_two_cuts_agrees_longer(checkpoint, kind, expected):
    """By bytes up to where a cut diverged: one with a tie did not, one that does not fit the model is none."""
    place = Difference(
        position=3, plain_token=97, other_token=98, plain_score=1.0, other_score=0.0, tolerance=1e-3, step=1e-6
    )
    difference = place if kind in ("diverged", "tie", "incomplete") else None
    output = Output(prompt=Prompt(token_ids=[9]), token_ids=[AB, 99, 100, 98], is_from_text=True)
    verdict = Verdict(id=0, kind=kind, num_tokens=4, difference=difference)
    found = Examined(output=output, verdict=verdict)
    assert given_outputs._bytes_alike(checkpoint, found) == expected


@pytest.mark.parametrize(
    ("text", "place", "other", "expected"),
    [
        ("abab", 0, ord("a"), [ord("a"), ord("b"), AB]),
        ("ab\u00e9", 1, 0xC3, [AB, 0xC3, 0xA9]),  # a character that the token cuts through
        ("ab\u6d77", 1, 0xE6, [AB, 0xE6, 0xB5, 0xB7]),
        ("ab", 0, ord("b"), None),
        ("a", 0, AB, None),  # more than the text has
    ],
)
def test_a_text_with_another_token_in_a_place(tokenizer, text, place, other, expected):
    found = ids_of_text(tokenizer, [7], text)
    ended = TextIds([*found.token_ids, EOS], [*found.is_ambiguous, True])
    if expected is None:
        assert cut_with(tokenizer, found, place, other) is None
        return
    assert cut_with(tokenizer, found, place, other).token_ids == expected
    assert cut_with(tokenizer, ended, place, other) == TextIds([*expected, EOS], [False] * len(expected) + [True])


def test_what_was_unsure_stays_so_in_another_cut(tokenizer):
    found = ids_of_text(tokenizer, [7], "abc\ufffd")
    assert found == TextIds([AB, ord("c"), 0xEF, 0xBF, 0xBD], [False, False, True, True, True])
    cut = cut_with(tokenizer, found, 0, ord("a"))
    assert cut == TextIds([ord("a"), ord("b"), ord("c"), 0xEF, 0xBF, 0xBD], [False] * 3 + [True] * 3)
