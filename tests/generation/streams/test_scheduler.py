"""The stream through the rows: refills, own settings, refusals, a wish to stop. Expected values come from `reference.py`."""

import dataclasses
import itertools

import pytest
import reference
from checkpoints import EOS, SPECIAL, words
from support.generation.row_streams import PROBE, PROMPTS, SETTINGS, S, answers, refused, same_in_any_company

from jax_probe_mtp import Prompt
from jax_probe_mtp.generation import scheduler
from jax_probe_mtp.generation.decoder import Decoder
from jax_probe_mtp.generation.row import RowText
from jax_probe_mtp.generation.scheduler import ContinuousDecoder


@pytest.mark.parametrize("calls_per_chunk", [1, 2, 8])
def test_every_record_is_the_references_whatever_the_chunk(decode, expected, calls_per_chunk):
    updates, decoder = decode(PROMPTS, dataclasses.replace(SETTINGS, calls_per_chunk=calls_per_chunk))
    got = answers(updates)
    assert set(got) == set(expected)
    for prompt in PROMPTS:
        tokens, accepted = expected[prompt.id]
        generation = got[prompt.id]
        assert generation.token_ids == tokens
        assert generation.prompt_ids == prompt.token_ids
        assert generation.calls == len(accepted)
        assert generation.accepted_by_depth == [sum(count >= depth for count in accepted) for depth in (1, 2)]
        assert generation.text == words(*[token for token in tokens if token not in SPECIAL])
        assert generation.finish_reason == ("stop" if tokens[-1] == EOS else "length")
    assert {generation.finish_reason for generation in got.values()} == {"stop", "length"}
    assert any(generation.calls < generation.committed for generation in got.values()), "no draft was right"
    assert decoder.stats.records == len(PROMPTS)
    assert decoder.stats.new_tokens == sum(len(tokens) for tokens, _ in expected.values())
    # A row is busy in the calls of its text and in the one that belongs to its prefill.
    assert decoder.stats.busy_row_calls == sum(len(accepted) + 1 for _, accepted in expected.values())
    row_calls = counted_row_calls([len(expected[prompt.id][1]) + 1 for prompt in PROMPTS], 3, calls_per_chunk)
    assert decoder.stats.row_calls == row_calls >= decoder.stats.busy_row_calls


def counted_row_calls(calls_of_texts, rows, calls_per_chunk):
    """Rows times calls, chunk by chunk: a chunk ends early when no row has anything left, a row is refilled after it."""
    waiting, left, total = list(calls_of_texts), [], 0
    while waiting or left:
        while waiting and len(left) < rows:
            left.append(waiting.pop(0))
        made = min(calls_per_chunk, max(left))
        total += rows * made
        left = [calls - made for calls in left if calls > made]
    return total


def test_row_calls_are_counted_right_by_hand():
    # 2 rows, chunks of 2 calls: (3, 1) then (1, 5) then (3) then (1): 2 + 2 + 2 + 1 calls
    assert counted_row_calls([3, 1, 5], 2, 2) == 2 * 7


def test_a_record_is_the_same_bit_for_bit_beside_any_neighbour(decode):
    """Alone, in other company and in another order: all fields, log-probabilities to the last bit."""
    together = same_in_any_company(decode, dataclasses.replace(SETTINGS, logprobs=True))
    assert all(len(answer.logprobs) == len(answer.token_ids) for answer in together.values())


def test_refills_compile_nothing(decode, programs):
    decode(PROMPTS)
    before = len(programs)
    decode(PROMPTS[::-1] * 2)
    assert len(programs) == before


def test_what_cannot_run_costs_itself_alone(decode, expected):
    too_long = Prompt(id="long", token_ids=[5] * S)
    empty = Prompt(id="empty", token_ids=[])
    items = [PROMPTS[0], too_long, refused(0), PROMPTS[1], empty, PROMPTS[2]]
    updates, decoder = decode(items)
    got = answers(updates)
    for prompt in PROMPTS[:3]:
        assert got[prompt.id].token_ids == expected[prompt.id][0]
        assert got[prompt.id].error is None
    assert got["no 0"] == refused(0)
    for name, says in (
        ("long", f"cache holds {S} tokens, but prompt {S} + new 16"),
        ("empty", "prompt empty is empty"),
    ):
        assert (got[name].finish_reason, got[name].token_ids, got[name].calls) == ("error", [], 0)
        assert says in got[name].error
    assert (decoder.stats.records, decoder.stats.errors) == (6, 3)
    assert sorted(number for update in updates for number, _ in update.finished) == list(range(6))


def test_prompts_of_different_padded_lengths_share_the_rows(checkpoint, programs, tiny):
    """The capacity is the stream's, where the settings have none: what does not fit it is refused, and not cut short."""
    prompts = [Prompt(id=length, token_ids=[(7 * i + length) % 61 for i in range(length)]) for length in (8, 80, 3, 92)]
    settings = dataclasses.replace(SETTINGS, max_new_tokens=12, capacity=None)
    decoder = ContinuousDecoder(checkpoint, PROBE, settings, capacity=100, is_sampled=False, programs=programs)
    got = answers(decoder.run(enumerate(prompts)))
    for prompt in prompts[:3]:
        limits = {"max_new_tokens": 12, "eos": (EOS,)}
        tokens, gap = reference.plain_decode(tiny.reference, prompt.token_ids, **limits)
        assert gap > 1e-3
        assert got[prompt.id].token_ids == tokens
    assert "cache holds 100 tokens, but prompt 92 + new 12 need 103" in got[92].error


def test_refusals_are_handed_on_before_there_are_too_many(decode, expected, monkeypatch):
    monkeypatch.setattr(scheduler, "MOST_REFUSALS", 10)
    items = [
        *map(refused, range(40)),
        PROMPTS[0],
        *map(refused, range(40, 80)),
        PROMPTS[2],
        *map(refused, range(80, 90)),
    ]
    updates, _ = decode(items)
    assert max(len(update.finished) for update in updates) <= 2 * (10 + 3)
    got = answers(updates)
    assert len(got) == 92
    assert [got[prompt.id].token_ids for prompt in (PROMPTS[0], PROMPTS[2])] == [expected["p0"][0], expected["p2"][0]]
    last, _ = decode([PROMPTS[0], *map(refused, range(300)), PROMPTS[2]])  # all rows are empty when it is found
    assert len(answers(last)) == 302
    assert answers(last)["p2"].token_ids == expected["p2"][0]
    only, _ = decode([refused(i) for i in range(33)])
    assert len(answers(only)) == 33
    assert answers(decode([])[0]) == {}


def test_a_wish_to_stop_is_heard_after_the_chunk(checkpoint, programs, expected):
    decoder = ContinuousDecoder(checkpoint, PROBE, SETTINGS, capacity=S, is_sampled=True, programs=programs)
    asked = []

    def should_stop():
        asked.append(1)
        return len(asked) == 6

    updates = list(decoder.run(enumerate(PROMPTS), should_stop))
    assert len(asked) == 6  # of as many chunks
    got = answers(updates)
    assert 0 < len(got) < len(PROMPTS)
    assert all(got[name].token_ids == expected[name][0] for name in got)


@pytest.mark.parametrize("prompts", [[], PROMPTS[:1]], ids=["refusals alone", "after a prompt"])
def test_a_wish_to_stop_is_heard_among_refusals_without_end(checkpoint, programs, prompts, monkeypatch):
    monkeypatch.setattr(scheduler, "MOST_REFUSALS", 10)
    items = enumerate(itertools.chain(prompts, map(refused, range(10**4))))
    decoder = ContinuousDecoder(checkpoint, PROBE, SETTINGS, capacity=S, is_sampled=True, programs=programs)
    got = []
    for update in decoder.run(items, should_stop=lambda: len(got) > 500):
        got.extend(generation.id for _, generation in update.finished)
    assert 500 < len(got) < 600
    assert ("p0" in got) == bool(prompts)


def test_texts_are_made_while_the_device_is_busy(checkpoint, programs, expected, monkeypatch):
    decoder = ContinuousDecoder(checkpoint, PROBE, SETTINGS, capacity=S, is_sampled=True, programs=programs)
    honest, is_busy = RowText.finish, []

    def finish(*args):
        is_busy.append(decoder.chunk is not None)
        return honest(*args)

    monkeypatch.setattr(RowText, "finish", finish)
    updates = list(decoder.run(enumerate(PROMPTS)))
    assert {name: got.token_ids for name, got in answers(updates).items()} == {n: t for n, (t, _) in expected.items()}
    in_the_end = len(updates[-1].finished)
    assert 0 < in_the_end < len(PROMPTS)
    assert is_busy == [True] * (len(PROMPTS) - in_the_end) + [False] * in_the_end


def test_prompts_are_taken_as_rows_become_free(checkpoint, programs):
    """Of a file without end no more is read than is needed: a prompt a row, and one that waits for it."""
    taken = []

    def items():
        for number in itertools.count():
            taken.append(number)
            yield number, dataclasses.replace(PROMPTS[number % len(PROMPTS)], id=number)

    decoder = ContinuousDecoder(checkpoint, PROBE, SETTINGS, capacity=S, is_sampled=True, programs=programs)
    ended = []
    for update in decoder.run(items(), should_stop=lambda: len(ended) >= 9):
        ended.extend(update.finished)
        assert len(taken) <= len(ended) + 2 * 3
    assert len(ended) >= 9


def test_a_list_is_checked_before_it_starts_and_given_in_order(checkpoint, expected):
    decoder = Decoder(checkpoint, PROBE)
    with pytest.raises(ValueError, match=r"\Aprompt long has 600 tokens, .*\Z"):
        decoder.run([PROMPTS[0], Prompt(id="long", token_ids=[1] * 600)], SETTINGS)
    got = list(decoder.run(PROMPTS[:5], dataclasses.replace(SETTINGS, batch_size=2)))
    assert [generation.id for generation in got] == ["p0", "p1", "p2", "p3", "p4"]
    assert [generation.token_ids for generation in got] == [expected[f"p{i}"][0] for i in range(5)]


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"batch_size": 0}, "batch_size and calls_per_chunk must be at least 1, got 0 and 2"),
        ({"calls_per_chunk": 0}, "got 3 and 0"),
        ({"stop": ("x", "")}, "a stop text is empty"),
        ({"temperature": -1.0}, "temperature must be 0"),
        ({"top_p": 0.0}, "top_p"),
        ({"prompt_slots": 70}, "prompt_slots 70 must be at most 65"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_settings_that_no_record_can_make_right_are_refused_at_once(checkpoint, programs, changes, says):
    settings = dataclasses.replace(SETTINGS, **changes)
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as refusal:
        ContinuousDecoder(checkpoint, PROBE, settings, capacity=S, is_sampled=True, programs=programs)
    assert says in str(refusal.value)
