"""Which texts are tuned on, and where in them masks are run: all by hand."""

import pytest

from jax_probe_mtp.tuning.texts import MAX_PLACES, MIN_TEXTS, as_arrays, drawn, split

V = 1000


def pairs(num, prompt=3, answer=5):
    return [(range(number, number + prompt), range(50, 50 + answer)) for number in range(num)]


def test_every_tenth_text_is_held_back():
    found = split(pairs(25), num_masks=1, max_length=100, vocab_size=V)
    assert [text.token_ids[0] for text in found.held_back] == [9, 19]
    assert [text.token_ids[0] for text in found.tuned_on] == [i for i in range(25) if i not in (9, 19)]


def test_masks_run_from_the_last_prompt_token_to_the_last_with_two_behind_it():
    text = split(pairs(20), num_masks=1, max_length=100, vocab_size=V).tuned_on[0]
    assert text.token_ids == (0, 1, 2, 50, 51, 52, 53, 54)
    assert text.places == (2, 3, 4, 5)  # beside the token at 5 a mask guesses the one at 7, the last


def test_places_of_a_long_answer_are_spread_evenly():
    text = split(pairs(20, answer=3 * MAX_PLACES), num_masks=1, max_length=1000, vocab_size=V).tuned_on[0]
    assert len(text.places) <= MAX_PLACES
    assert text.places[:3] == (2, 5, 8)
    assert text.places[-1] > len(text.token_ids) - 6


def test_what_is_too_long_or_answered_too_shortly_is_left_out():
    texts = [*pairs(20), *pairs(2, answer=2), *pairs(3, prompt=90)]
    assert split(texts, num_masks=1, max_length=60, vocab_size=V).num_left_out == 3
    assert split(texts, num_masks=2, max_length=60, vocab_size=V).num_left_out == 5
    assert split(texts, num_masks=1, max_length=100, vocab_size=V).num_left_out == 0


def test_too_few_texts_are_refused():
    says = rf"\A{MIN_TEXTS - 1} of 22 texts have answers of more than 2 tokens [^\n]*give {MIN_TEXTS} or more\.\Z"
    with pytest.raises(ValueError, match=says):
        split([*pairs(MIN_TEXTS - 1), *pairs(3, answer=2)], num_masks=2, max_length=100, vocab_size=V)


def test_the_digest_knows_every_token_and_the_order():
    texts = pairs(20)
    digest = split(texts, num_masks=1, max_length=100, vocab_size=V).digest
    assert digest == split(texts, num_masks=1, max_length=100, vocab_size=V).digest
    assert digest != split(texts[::-1], num_masks=1, max_length=100, vocab_size=V).digest
    assert digest != split([*texts[:-1], ((1, 2), (3, 4, 5))], num_masks=1, max_length=100, vocab_size=V).digest
    moved = [
        *texts[:-1],
        ((*texts[-1][0], texts[-1][1][0]), texts[-1][1][1:]),
    ]  # a token goes from the answer to the prompt
    assert digest != split(moved, num_masks=1, max_length=100, vocab_size=V).digest


def test_arrays_hold_texts_and_padding():
    texts = split(pairs(20), num_masks=1, max_length=100, vocab_size=V).tuned_on[:1]
    arrays = as_arrays(texts, 2, 10, 6)
    assert arrays.token_BT.tolist() == [[0, 1, 2, 50, 51, 52, 53, 54, 0, 0], [0] * 10]
    assert arrays.length_B.tolist() == [8, 0]
    assert arrays.place_BQ[0, :4].tolist() == [2, 3, 4, 5]
    assert arrays.num_places_B.tolist() == [4, 0]


def test_each_text_is_drawn_once_before_one_comes_again():
    steps = [drawn(7, step, 3, seed=0) for step in range(7)]
    in_turn = [number for step in steps for number in step]
    for epoch in range(3):
        assert sorted(in_turn[7 * epoch : 7 * epoch + 7]) == list(range(7))
    assert in_turn[:7] != in_turn[7:14]
    assert steps[5] == drawn(7, 5, 3, seed=0)
    assert steps != [drawn(7, step, 3, seed=1) for step in range(7)]


@pytest.mark.parametrize("wrong", [-1, V])
def test_a_token_that_the_model_does_not_have_is_refused(wrong):
    with pytest.raises(
        ValueError, match=rf"\Aa text holds token id {wrong}, but ids are 0 to 999; give texts of this model\.\Z"
    ):
        split([*pairs(20), ((1, 2), (3, wrong, 4))], num_masks=1, max_length=100, vocab_size=V)
