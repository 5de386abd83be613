"""The text of rows that come and go: stop strings, and text as it grows. Expected values come from `reference.py`."""

import dataclasses
import itertools

import pytest
from checkpoints import SPECIAL, words
from support.generation.row_streams import PROMPTS, SETTINGS, answers, stopped_by_hand


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
        settings = dataclasses.replace(SETTINGS, calls_per_chunk=calls_per_chunk, logprobs=True, top_logprobs=3)
        got = answers(decode(prompts, settings)[0])
        logprobs = {name: answer.logprobs for name, answer in got.items()}
        counts = {name: dataclasses.replace(answer, logprobs=None, top_logprobs=None) for name, answer in got.items()}
        by_chunk[calls_per_chunk] = counts, logprobs
        assert set(got) == set(places)
        for name, (count, text, tokens, accepted) in places.items():
            answer = got[name]
            assert (answer.token_ids, answer.text, answer.finish_reason) == (tokens[:count], text, "stop"), name
            assert len(answer.logprobs) == len(answer.top_logprobs) == count
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
