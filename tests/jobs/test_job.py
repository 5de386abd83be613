"""A file of prompts in, a file of answers out: what each record gets, and in which order."""

import json

import pytest
import reference
from checkpoints import EOS, SPECIAL, words
from support.files.job_runs import ERRORS, IDS, NEW, SIZES, files, ids_of, read


def text_of(tokens):
    return words(*[token for token in tokens if token not in SPECIAL])


def cut_at(tokens, stop):
    """Tokens and text up to the first of the stop texts, found by looking at every beginning of the answer."""
    for size in range(1, len(tokens) + 1):
        text = text_of(tokens[:size])
        places = [text.index(each) for each in stop if each in text]
        if places:
            return tokens[:size], text[: min(places)]
    return tokens, text_of(tokens)


def seed_of(digits):
    """The seed that the first 8 digits of a SHA-256 stand for."""
    return int.from_bytes(bytes.fromhex(digits), "little")


def test_every_record_has_its_own_settings(generate, tiny, tmp_path):
    of_run = {"temperature": 0.8, "top_p": 0.95}
    greedy, run_stop = {"temperature": 0}, ["w33"]
    cuts = {"top_k": 5, "top_p": 0.7}
    own = {"seed": 9, "temperature": 1.0}
    cases = [  # record, its tokens, how it is drawn, its stop texts
        ({"id": "text", "prompt": words(5, 9), **greedy}, [0, 59, 5, 9, 60], greedy, run_stop),
        ({"id": "turns", "messages": [{"role": "user", "content": "w7"}], **greedy}, [0, 59, 7, 60], greedy, run_stop),
        ({"id": "short", "prompt_ids": [3, 1], "max_new_tokens": 5, **greedy}, [3, 1], greedy, run_stop),
        ({"id": "ends", "prompt_ids": [7], **greedy}, [7], greedy, run_stop),
        # Seeds of the run's and the id: `printf '7:own cuts' | sha256sum`.
        ({"id": "own cuts", "prompt_ids": [3, 1], **cuts}, [3, 1], {"seed": seed_of("1898b1e7")} | cuts, run_stop),
        ({"id": "of the run", "prompt_ids": [3, 1]}, [3, 1], {"seed": seed_of("a3738e8c")}, run_stop),
        ({"id": 6, "prompt_ids": [3, 1], **own}, [3, 1], own, run_stop),
        ({"id": 7, "prompt_ids": [5, 9, 2], "stop": ["no such", ". w3"], **greedy}, [5, 9, 2], greedy, [". w3"]),
        ({"id": 8, "prompt_ids": [0, 59, 5, 9, 60], "stop": [], **greedy}, [0, 59, 5, 9, 60], greedy, []),
    ]
    expected = {}
    for record, prompt, draw, stop in cases:
        new = record.get("max_new_tokens", NEW)
        draw = of_run | draw
        tokens, gap = reference.plain_decode(tiny.reference, prompt, max_new_tokens=new, eos=(EOS,), **draw)
        assert gap > 1e-3, "choose another prompt: rounding could decide this one"
        tokens, text = cut_at(tokens, stop)
        reason = "stop" if tokens[-1] == EOS or text != text_of(tokens) else "length"
        expected[record["id"]] = {"prompt_ids": prompt, "token_ids": tokens, "text": text, "finish_reason": reason}
    assert expected[7]["text"] == "w17 w36 w36 . "  # and w37 was the token that completed the stop text
    reasons = " ".join(expected[name]["finish_reason"] for name in ("text", "turns", "ends", 7, 8))
    assert reasons == "stop length stop stop length"
    flags = ["--temperature", "0.8", "--seed", "7", "--top-p", "0.95", "--stop", "w33", *SIZES]
    code, out, err = generate(*files(tmp_path, [record for record, *_ in cases]), *flags)
    assert (code, out, err.splitlines()[-1]) == (0, "", f"9 of 9 records in {tmp_path / 'answers.jsonl'}")
    answers = [json.loads(line) for line in read(tmp_path / "answers.jsonl")]
    names = ("prompt_ids", "token_ids", "text", "finish_reason")
    assert {answer["id"]: {name: answer[name] for name in names} for answer in answers} == expected
    others = {"id", "draft", "calls", "committed", "accepted_by_depth", "content"}
    own = {"max_new_tokens", "temperature", "top_k", "top_p", "seed", "stop"}
    for answer, record in (
        (answer, record) for answer in answers for record, *_ in cases if record["id"] == answer["id"]
    ):
        assert {name: answer[name] for name in answer.keys() - {*names, *others}} == {
            name: record[name] for name in record.keys() & own
        }


def test_a_record_is_drawn_where_the_run_is_greedy(whole, tiny):
    answer = json.loads(whole[ids_of(whole).index("drawn")])
    draw = {"temperature": 1.0, "seed": 4}
    tokens, gap = reference.plain_decode(tiny.reference, [1, 2, 3], max_new_tokens=9, eos=(EOS,), **draw)
    assert gap > 1e-3
    assert answer["token_ids"] == tokens


@pytest.mark.parametrize("kept", [0, 4])
def test_ordered_answers_are_in_the_order_of_the_prompts(generate, leave, whole, tmp_path, kept):
    by_id = dict(zip(ids_of(whole), whole, strict=True))
    in_order = [by_id[name] for name in IDS]
    leave(in_order[:kept])
    assert generate(*files(tmp_path), "--ordered")[0] == 0
    assert read(tmp_path / "answers.jsonl") == in_order


REASONS = {
    "too long": "prompt too long has 500 tokens, with 24 new ones more than the model's context of 512; ",
    "asks too much": "prompt asks too much has 1 tokens, with 512 new ones more than the model's context of 512; ",
    "empty": "prompt empty is empty: it needs at least one token.",
    "no such token": "prompt no such token holds token id 61, but ids are 0 to 60.",
    "bad turn": "the chat template failed (no such turn); pass --no-chat-template.",
}


def test_records_that_cannot_run_get_an_error_each_and_the_others_their_answer(generate, tiny, tmp_path):
    command, output = (*files(tmp_path, ERRORS), *SIZES), tmp_path / "answers.jsonl"
    code, out, err = generate(*command, "--ordered")
    assert (code, out) == (3, "")
    assert err.splitlines() == [
        f"7 of 7 records in {output}",
        f'5 records could not run; their "error" in {output} says why: mend that and give --retry-errors to try them again',
    ]
    lines = read(output)
    assert ids_of(lines) == [record["id"] for record in ERRORS]
    tokens, _ = reference.plain_decode(tiny.reference, [7], max_new_tokens=2, eos=(EOS,))
    for record, line in zip(ERRORS, lines, strict=True):
        answer = json.loads(line)
        if record["id"] not in REASONS:
            assert (answer["token_ids"], answer["finish_reason"], "error" in answer) == (tokens, "length", False)
            continue
        assert answer.pop("error").startswith(REASONS[record["id"]])
        assert len(answer.pop("content")) == 16
        own = {name: record[name] for name in ("temperature", "max_new_tokens") if name in record}
        assert answer == own | {
            "id": record["id"],
            "prompt_ids": record.get("prompt_ids", []),
            "token_ids": [],
            "text": "",
            "finish_reason": "error",
            "draft": "probe:7+3",
            "calls": 0,
            "committed": 0,
            "accepted_by_depth": [0, 0],
        }
    code, _, err = generate(*command)  # nothing is left to do, but the errors are still there
    assert (code, read(output)) == (3, lines)
    assert (
        err.splitlines()[-1]
        == f'5 records could not run; their "error" in {output} says why: mend that and give --retry-errors to try them again'
    )
    output.write_text("".join(lines[:1] + lines[3:4]), encoding="utf-8")
    assert generate(*command)[0] == 3
    assert sorted(read(output)) == sorted(lines)


def test_errors_are_tried_again_if_asked(generate, tmp_path):
    """One of the two errors was made by hand, so that it can end well."""
    command, output = (*files(tmp_path, ERRORS[3:5]), *SIZES, "--ordered"), tmp_path / "answers.jsonl"
    assert generate(*command)[0] == 3
    good, bad = read(output)
    failed = {"token_ids": [], "text": "", "finish_reason": "error", "error": "out of luck", "calls": 0, "committed": 0}
    output.write_text(json.dumps(json.loads(good) | failed) + "\n" + bad, encoding="utf-8")
    before = read(output)
    assert generate(*command)[0] == 3
    assert read(output) == before
    code, _, err = generate(*command, "--retry-errors")
    assert (code, read(output)) == (3, [good, bad])
    assert err.splitlines()[:2] == [f"{output}: 2 records could not run: tried again", f"2 of 2 records in {output}"]


@pytest.mark.parametrize("limit", [1, 4])
def test_a_limit_leaves_the_rest_for_later(generate, whole, tmp_path, limit):
    output = tmp_path / "answers.jsonl"
    code, _, err = generate(*files(tmp_path), "--limit", limit)
    assert (code, err) == (0, f"{limit} of 10 records in {output} (--limit {limit})\n")
    assert sorted(ids_of(read(output)), key=IDS.index) == IDS[:limit]
    assert set(read(output)) <= set(whole)
    assert generate(*files(tmp_path), "--limit", 10)[0] == 0
    assert sorted(read(output)) == sorted(whole)
