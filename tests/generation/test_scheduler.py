"""The stream through the rows: refills, own settings, stop strings, refusals. Expected values come from `reference.py`."""

import dataclasses
import itertools
import random

import pytest
import reference
from checkpoints import EOS, SPECIAL, make_checkpoint, words

from jax_probe_mtp.decoding.settings import Generation, Prompt, Settings
from jax_probe_mtp.drafting import Probe
from jax_probe_mtp.generation import scheduler
from jax_probe_mtp.generation.decoder import Decoder
from jax_probe_mtp.generation.programs import Programs
from jax_probe_mtp.generation.scheduler import ContinuousDecoder, InOrder

PROBE = Probe(widths=(7, 3))
OF_REFERENCE = {
    "tree": (7, 3),
    "num_masks": 2,
    "block_complexity": None,
    "prune": True,
    "mask_init": "mean",
    "mask_offset": 5.0,
}
S = 64  # capacity
SETTINGS = Settings(max_new_tokens=16, batch_size=3, calls_per_chunk=2, capacity=S)


def _prompts():
    """Prompts of 1 to 40 tokens; every third is drawn, some with cuts, some with a limit of their own."""
    draw = random.Random(1)
    prompts = []
    for i in range(14):
        own = {"token_ids": [draw.randrange(61) for _ in range(draw.choice([1, 2, 5, 9, 23, 40]))]}
        if i % 3 == 1:
            own |= {"temperature": 1.0, "seed": 100 + i}
        if i % 6 == 4:
            own |= {"top_k": 9, "top_p": 0.9}
        if i % 4 == 2:
            own |= {"max_new_tokens": draw.randrange(1, 12)}
        prompts.append(Prompt(id=f"p{i}", **own))
    return prompts


PROMPTS = _prompts()


@pytest.fixture(scope="module")
def checkpoint(tiny):
    return make_checkpoint(tiny)


@pytest.fixture(scope="module")
def programs(checkpoint):
    """Shared, so that each shape is compiled once in this file."""
    return Programs(checkpoint, PROBE)


@pytest.fixture(scope="module")
def decode(checkpoint, programs):
    """All updates of a stream, and the decoder they came from."""

    def run(prompts, settings=SETTINGS, **more):
        decoder = ContinuousDecoder(
            checkpoint, PROBE, settings, capacity=settings.capacity, is_sampled=True, programs=programs, **more
        )
        return list(decoder.run(enumerate(prompts))), decoder

    return run


def answers(updates):
    return {generation.id: generation for update in updates for _, generation in update.finished}


@pytest.fixture(scope="module")
def expected(tiny):
    """Tokens of plain decoding, and the drafts accepted in each call of the probe."""
    outputs = {}
    for prompt in PROMPTS:
        limits = {
            "max_new_tokens": prompt.max_new_tokens or 16,
            "eos": (EOS,),
            "temperature": prompt.temperature or 0.0,
            "top_k": prompt.top_k or 0,
            "top_p": prompt.top_p or 1.0,
            "seed": prompt.seed or 0,
        }
        tokens, gap = reference.plain_decode(tiny.reference, prompt.token_ids, **limits)
        assert gap > 1e-3, "choose another prompt: rounding could decide this one"
        outputs[prompt.id] = tokens, reference.probe_decode(tiny.reference, prompt.token_ids, OF_REFERENCE, **limits)[2]
    return outputs


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
    settings = dataclasses.replace(SETTINGS, logprobs=True)
    together = answers(decode(PROMPTS, settings)[0])
    shuffled = random.Random(4).sample(PROMPTS, len(PROMPTS))
    assert answers(decode(shuffled, settings)[0]) == together
    for prompt in PROMPTS[:6]:
        assert answers(decode([prompt], settings)[0]) == {prompt.id: together[prompt.id]}
    assert all(len(answer.logprobs) == len(answer.token_ids) for answer in together.values())


def test_refills_compile_nothing(decode, programs):
    decode(PROMPTS)
    before = len(programs)
    decode(PROMPTS[::-1] * 2)
    assert len(programs) == before


def stopped_by_hand(tokenizer, tokens, stop):
    """Token by token: how many tokens it takes until the text holds a stop string, and the text before it."""
    for count in range(1, len(tokens) + 1):
        text = tokenizer.decode(tokens[:count], skip_special_tokens=True)
        found = [text.find(one) for one in stop if one in text]
        if found:
            return count, text[: min(found)]
    return None


def test_stop_strings_cut_where_plain_decoding_would_have_stopped(checkpoint, decode, expected):
    prompts, places = [], {}
    for prompt in PROMPTS:
        tokens, accepted = expected[prompt.id]
        shown = [token for token in tokens if token not in SPECIAL]
        for place in range(1, len(shown) - 1):  # two words with the space between them, the second one cut short
            stop = (words(*shown[place : place + 2])[:-1], "never there")
            name = f"{prompt.id} {place}"
            prompts.append(dataclasses.replace(prompt, id=name, seed=prompt.seed or 0, stop=stop))
            count, text = stopped_by_hand(checkpoint.tokenizer, tokens, stop)
            places[name] = count, text, tokens, accepted
    inside = at_the_end = 0
    by_chunk = {}
    for calls_per_chunk in (1, 8):
        got = answers(decode(prompts, dataclasses.replace(SETTINGS, calls_per_chunk=calls_per_chunk, logprobs=True))[0])
        logprobs = {name: answer.logprobs for name, answer in got.items()}
        counts = {name: dataclasses.replace(answer, logprobs=None) for name, answer in got.items()}
        by_chunk[calls_per_chunk] = counts, logprobs
        assert set(got) == set(places)
        for name, (count, text, tokens, accepted) in places.items():
            answer = got[name]
            assert (answer.token_ids, answer.text, answer.finish_reason) == (tokens[:count], text, "stop"), name
            assert len(answer.logprobs) == count
            # The call that gave token `count` is the last that counts.
            ends = list(itertools.accumulate((number + 1 for number in accepted), initial=1))  # tokens after each call
            calls = next(i for i, end in enumerate(ends) if end >= count)
            assert answer.calls == calls
            assert answer.committed == count - 1
            if ends[calls] < len(tokens):  # else the last call was cut, by the end of the text
                depths = [sum(number >= depth for number in accepted[:calls]) for depth in (1, 2)]
                assert answer.accepted_by_depth == depths
            inside += count < ends[calls]
            at_the_end += count == len(tokens)
    assert by_chunk[1][0] == by_chunk[8][0]
    for name, logprobs in by_chunk[1][1].items():
        assert logprobs == pytest.approx(by_chunk[8][1][name], abs=1e-5)
    assert inside > 5, "no stop string was complete inside an accepted block"
    assert at_the_end


def test_the_device_makes_no_call_for_a_row_that_a_stop_string_ended(decode, expected):
    """The other text takes 7 calls, so that the last chunk of 2 ends after its first call: the stopped one would have more."""
    stopped = dataclasses.replace(PROMPTS[8], stop=(words(expected["p8"][0][0]),))
    assert [len(expected[name][1]) + 1 for name in ("p8", "p10")] == [12, 7]
    updates, decoder = decode([stopped, PROMPTS[10]])
    got = answers(updates)
    assert got["p8"].token_ids == expected["p8"][0][:1]
    assert got["p10"].token_ids == expected["p10"][0]
    assert decoder.stats.row_calls == 3 * 7
    assert decoder.stats.busy_row_calls == 2 + 7  # the stop is seen after the first chunk


def test_the_runs_stop_strings_are_those_of_records_without_own_ones(decode, checkpoint, expected):
    tokens = expected["p0"][0]
    stop = words(tokens[3])
    plain = [dataclasses.replace(PROMPTS[0], id="of the run"), dataclasses.replace(PROMPTS[0], id="own", stop=())]
    got = answers(decode(plain, dataclasses.replace(SETTINGS, stop=(stop,)))[0])
    count, text = stopped_by_hand(checkpoint.tokenizer, tokens, [stop])
    assert (got["of the run"].token_ids, got["of the run"].text) == (tokens[:count], text)
    assert got["own"].token_ids == tokens


def test_streamed_text_adds_up(decode, expected):
    prompts = PROMPTS[:7]
    shown = {prompt.id: [t for t in expected[prompt.id][0] if t not in SPECIAL] for prompt in prompts}
    # The last word may yet become a stop string when it comes: it is held back to the end of the text.
    waits = [dataclasses.replace(prompt, stop=(words(*shown[prompt.id][-1:]) + "!",)) for prompt in prompts]
    for records in (prompts, waits):
        updates, _ = decode(records, streams_text=True)
        texts, in_time = {}, 0
        for update in updates:
            for number, new in update.new_text:
                assert new
                texts[number] = texts.get(number, "") + new
            in_time += bool({number for number, _ in update.new_text} - {number for number, _ in update.finished})
        finished = answers(updates)
        assert {name: answer.text for name, answer in finished.items()} == {n: words(*shown[n]) for n in shown}
        assert texts == {i: finished[prompt.id].text for i, prompt in enumerate(prompts) if finished[prompt.id].text}
        assert max(len(update.new_text) for update in updates) > 1
        assert in_time > 5, "texts came when they were finished"
    assert not any(update.new_text for update in decode(waits)[0])  # not asked for


def _refused(i):
    return Generation(
        id=f"no {i}",
        prompt_ids=[],
        token_ids=[],
        text="",
        finish_reason="error",
        draft="",
        calls=0,
        committed=0,
        accepted_by_depth=[0, 0],
        error="its template failed",
    )


def test_what_cannot_run_costs_itself_alone(decode, expected):
    too_long = Prompt(id="long", token_ids=[5] * S)
    empty = Prompt(id="empty", token_ids=[])
    items = [PROMPTS[0], too_long, _refused(0), PROMPTS[1], empty, PROMPTS[2]]
    updates, decoder = decode(items)
    got = answers(updates)
    for prompt in PROMPTS[:3]:
        assert got[prompt.id].token_ids == expected[prompt.id][0]
        assert got[prompt.id].error is None
    assert got["no 0"] == _refused(0)
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
        *map(_refused, range(40)),
        PROMPTS[0],
        *map(_refused, range(40, 80)),
        PROMPTS[2],
        *map(_refused, range(80, 90)),
    ]
    updates, _ = decode(items)
    assert max(len(update.finished) for update in updates) <= 2 * (10 + 3)
    got = answers(updates)
    assert len(got) == 92
    assert [got[prompt.id].token_ids for prompt in (PROMPTS[0], PROMPTS[2])] == [expected["p0"][0], expected["p2"][0]]
    last, _ = decode([PROMPTS[0], *map(_refused, range(300)), PROMPTS[2]])  # all rows are empty when it is found
    assert len(answers(last)) == 302
    assert answers(last)["p2"].token_ids == expected["p2"][0]
    only, _ = decode([_refused(i) for i in range(33)])
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
    items = enumerate(itertools.chain(prompts, map(_refused, range(10**4))))
    decoder = ContinuousDecoder(checkpoint, PROBE, SETTINGS, capacity=S, is_sampled=True, programs=programs)
    got = []
    for update in decoder.run(items, should_stop=lambda: len(got) > 500):
        got.extend(generation.id for _, generation in update.finished)
    assert 500 < len(got) < 600
    assert ("p0" in got) == bool(prompts)


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


def test_in_order_gives_each_when_its_turn_comes():
    numbers = [3, 5, 6, 10, 11]
    for permutation in itertools.permutations(numbers):
        in_order = InOrder()
        assert list(in_order.watch((number, _refused(number)) for number in numbers)) == [
            (number, _refused(number)) for number in numbers
        ]
        got = []
        for count, number in enumerate(permutation, start=1):
            got += [n for n, _ in in_order.add([(number, _refused(number))])]
            early = set(permutation[:count])
            assert got == list(itertools.takewhile(early.__contains__, numbers))
