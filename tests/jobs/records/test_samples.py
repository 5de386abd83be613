"""Several answers to a prompt: drawn apart, kept, resumed, merged and verified each by itself."""

import hashlib
import json

import numpy as np
import pytest
import reference
from checkpoints import EOS
from support.files.job_runs import SIZES, assert_refused, files, read, write

from jax_probe_mtp.files import prompt_file

PROMPTS = [
    {"id": "a", "prompt_ids": [5, 9, 2], "n": 3},
    {"id": "b", "prompt_ids": [7]},
    {"prompt_ids": [44, 1], "n": 2, "seed": 9},
    {"prompt_ids": [44, 1], "n": 2},
]
HOW = [*SIZES, "--max-new-tokens", "6", "--temperature", "1.5", "--seed", "7"]
NAMES = [("a", 0), ("a", 1), ("a", 2), ("b", None), (3, 0), (3, 1), (4, 0), (4, 1)]


def answers_in(path):
    return [json.loads(line) for line in read(path)]


def named(answers):
    return {(answer["id"], answer.get("sample")): answer for answer in answers}


def name_of(answer):
    return answer["id"] + (f" (sample {answer['sample']})" if answer["sample"] else "")


def seed_of(name):
    return int.from_bytes(hashlib.sha256(name.encode()).digest()[:4], "little")


def drawn(tiny, prompt, seed):
    tokens, _ = reference.plain_decode(
        tiny.reference, prompt, max_new_tokens=6, eos=(EOS,), temperature=np.float32(1.5), seed=seed
    )
    return tokens


@pytest.fixture
def whole(generate, tmp_path):
    assert generate(*files(tmp_path, PROMPTS), *HOW)[0] == 0
    return read(tmp_path / "answers.jsonl")


def test_each_sample_draws_noise_of_its_own(whole, tiny):
    """The first one has the record's seed, the others the first 4 bytes of SHA-256 of that seed and their number."""
    answers = named(map(json.loads, whole))
    assert sorted(answers, key=NAMES.index) == NAMES
    first = seed_of("7:a")
    for sample, seed in enumerate([first, seed_of(f"{first}:sample 1"), seed_of(f"{first}:sample 2")]):
        assert answers["a", sample]["token_ids"] == drawn(tiny, [5, 9, 2], seed)
    assert answers["b", None]["token_ids"] == drawn(tiny, [7], seed_of("7:b"))
    assert [answers[3, sample]["token_ids"] for sample in (0, 1)] == [
        drawn(tiny, [44, 1], 9),
        drawn(tiny, [44, 1], seed_of("9:sample 1")),
    ]
    texts = [tuple(answer["token_ids"]) for answer in answers.values()]
    assert len(set(texts)) == len(texts)
    assert answers[4, 0]["seed"] == answers[4, 1]["seed"]  # that of the record, which draws the samples' own


def test_more_samples_are_added_to_those_that_are_there(generate, whole, tmp_path):
    one = [{name: value for name, value in record.items() if name != "n"} for record in PROMPTS]
    output = tmp_path / "one.jsonl"
    command = ["--input", write(tmp_path, one, "one"), "--output", output]
    assert generate(*command, *HOW)[0] == 0
    first = read(output)
    by_id = {
        name: answer["token_ids"] for (name, sample), answer in named(map(json.loads, whole)).items() if not sample
    }
    assert {answer["id"]: answer["token_ids"] for answer in map(json.loads, first)} == by_id
    code, _, err = generate("--input", write(tmp_path, PROMPTS), "--output", output, *HOW)
    assert (code, err.splitlines()[0]) == (0, f"{output} holds 4 of 8 records: going on")
    lines = read(output)
    assert lines[:4] == first
    assert sorted(lines[4:]) == sorted(line for line in whole if json.loads(line).get("sample"))
    assert generate(*command, "--n", "2", *HOW)[0] == 0  # fewer: one more for b, those that are too many stay
    assert {(answer["id"], answer.get("sample")) for answer in map(json.loads, read(output)[8:])} == {("b", 1)}


def test_a_run_that_was_cut_off_between_samples_goes_on(generate, whole, tmp_path):
    output = tmp_path / "answers.jsonl"
    for kept in (1, 5):
        output.write_text("".join(whole[:kept]), encoding="utf-8")
        assert generate(*files(tmp_path, PROMPTS), *HOW)[0] == 0
        assert read(output)[:kept] == whole[:kept]
        assert sorted(read(output)) == sorted(whole)


def test_a_limit_counts_lines(generate, tmp_path):
    assert generate(*files(tmp_path, PROMPTS), *HOW, "--limit", "1")[0] == 0
    assert sorted(named(answers_in(tmp_path / "answers.jsonl"))) == [("a", 0), ("a", 1), ("a", 2)]


def test_there_are_no_more_rows_than_answers_are_wanted(generate, tmp_path):
    def rows(*flags):
        (tmp_path / "answers.jsonl").unlink(missing_ok=True)
        (tmp_path / "answers.jsonl.run.json").unlink(missing_ok=True)
        stats = tmp_path / "stats.json"
        more = "--batch-size", "16", "--stats-json", stats, *flags
        assert generate(*files(tmp_path, PROMPTS), *HOW, *more)[0] == 0
        return json.loads(stats.read_text(encoding="utf-8"))["batch_size"]

    assert rows("--limit", "1") == 3
    wanted = rows()
    assert 3 < wanted < 16
    assert rows("--limit", "1", "--exact") == wanted  # so that the job can go on without the limit


def test_samples_are_merged_in_the_order_of_the_prompts(run, generate, tmp_path):
    prompts = [{"id": "a", "prompt_ids": [5, 9, 2]}, {"prompt_ids": [7]}]
    output = tmp_path / "answers.jsonl"
    assert generate(*files(tmp_path, prompts), *HOW, "--n", "3")[0] == 0
    lines = sorted(read(output))
    parts = [tmp_path / "part0.jsonl", tmp_path / "part1.jsonl"]
    for part, some in zip(parts, (lines[::2], lines[1::2]), strict=True):
        part.write_text("".join(some), encoding="utf-8")
        part.with_name(part.name + ".run.json").write_bytes(output.with_name("answers.jsonl.run.json").read_bytes())
    merged = tmp_path / "merged.jsonl"
    how = ["merge", *parts, "--output", merged, "--input", tmp_path / "prompts.jsonl"]
    assert_refused(run(*how), "has no id 'a' (sample ", "), or asks for fewer", "--n")
    assert run(*how, "--n", "3")[0] == 0
    assert [*named(answers_in(merged))] == [(name, sample) for name in ("a", 2) for sample in range(3)]
    assert run(*how, "--n", "4")[0] == 1  # two are missing
    assert run("merge", *parts, "--output", merged)[0] == 0
    assert len(read(merged)) == 6
    parts[1].write_text("".join(lines[:1]), encoding="utf-8")
    assert_refused(run(*how, "--n", "3"), "the id ", " is in ", parts[0], parts[1])


def test_samples_are_verified_by_the_noise_that_each_draws(run, whole, model, tmp_path):
    output = tmp_path / "answers.jsonl"
    how = [
        "verify",
        "--model",
        model,
        "--outputs",
        output,
        "--temperature",
        "1.5",
        "--seed",
        "7",
        "--max-new-tokens",
        "6",
    ]
    code, out, _ = run(*how, "--json", tmp_path / "v.json")
    assert (code, out.splitlines()[-1].startswith("8 same")) == (0, True), out
    told = [(verdict["id"], verdict["sample"]) for verdict in json.loads((tmp_path / "v.json").read_text())["records"]]
    assert sorted(told, key=str) == sorted(((name, sample or None) for name, sample in NAMES), key=str)
    answers = [json.loads(line) for line in whole]
    mine = [answer for answer in answers if answer["id"] == "a"]
    mine[0]["sample"], mine[1]["sample"] = mine[1]["sample"], mine[0]["sample"]
    output.write_text("".join(json.dumps(answer) + "\n" for answer in answers), encoding="utf-8")
    code, out, _ = run(*how)
    assert (code, out.splitlines()[-1].startswith("6 same")) == (1, True), out
    wrong = [line for line in out.splitlines() if "diverged" in line][:2]
    assert {line.split(": ")[0] for line in wrong} == {name_of(answer) for answer in mine[:2]}
    output.write_text("".join([*whole, whole[0]]), encoding="utf-8")
    assert_refused(run(*how), "line 9 has the id", "ids must differ")


def test_answers_of_a_prompt_are_all_shown(run, model):
    how = ["generate", "--model", model, "--prompt", "w5 w9", "--max-new-tokens", "4"]
    code, out, _ = run(*how, "--n", "3", "--temperature", "1")
    assert (code, out.splitlines()[::2]) == (0, [f"--- answer {number} of 3" for number in (1, 2, 3)])
    assert len(set(out.splitlines()[1::2])) == 3
    assert_refused(run(*how, "--n", "3"), "n = 3", "temperature 0", "or n 1")
    assert_refused(run("verify", *how[1:], "--n", "3"), "n = 3", "temperature 0", "or n 1")
    assert_refused(run(*how, "--n", "3", "--temperature", "1", "--stream"), "--stream", "--n 3")


@pytest.mark.parametrize("n", [0, -1, 1.5, True, "2", 10_001], ids=str)
def test_numbers_of_samples_that_make_no_sense_are_refused(generate, tmp_path, n):
    assert_refused(
        generate(*files(tmp_path, [{"prompt_ids": [7], "n": n}]), *HOW), "line 1", "n must be", json.dumps(n)
    )


def test_as_many_as_no_file_can_hold_are_refused(generate, tmp_path, monkeypatch):
    monkeypatch.setattr(prompt_file, "MAX_RECORDS", 9)
    code, _, err = generate(*files(tmp_path, PROMPTS), *HOW, "--n", "10001")
    assert (code, "--n: must be at most 10000, got 10001" in err) == (2, True)
    assert_refused(generate(*files(tmp_path, PROMPTS), *HOW, "--n", "3"), "line 4", "more than 9 answers", "split it")


def test_answers_to_another_prompt_go_though_fewer_samples_are_asked_for(generate, whole, tmp_path):
    """Sample 2 of `a` is no longer asked for, but its id now names another prompt."""
    output = tmp_path / "answers.jsonl"
    changed = [{"id": "a", "prompt_ids": [5, 9, 3], "n": 2}, *PROMPTS[1:]]
    for kept in (whole, [line for line in whole if json.loads(line).get("sample") == 2]):
        output.write_text("".join(kept), encoding="utf-8")
        refused = "'a'", "its prompt is another", "--redo-changed"
        assert_refused(generate(*files(tmp_path, changed), *HOW), "have changed since", *refused)
        assert generate(*files(tmp_path, changed), *HOW, "--redo-changed")[0] == 0
        answers = named(answers_in(output))
        assert sorted(answers, key=NAMES.index) == [*NAMES[:2], *NAMES[3:]]
        assert {tuple(answer["prompt_ids"]) for (name, _), answer in answers.items() if name == "a"} == {(5, 9, 3)}


def test_errors_of_samples_that_are_not_asked_for_are_none(generate, tmp_path):
    record = {"id": "a", "prompt_ids": [1] * 500, "n": 2}
    assert generate(*files(tmp_path, [record]), *HOW)[0] == 3
    code, _, err = generate(*files(tmp_path, [record | {"n": 1}, {"prompt_ids": [7]}]), *HOW)
    assert (code, "1 records could not run" in err) == (3, True)
    assert "beside 1 answers that " in err


def test_samples_that_would_all_be_the_same_are_refused(generate, tmp_path):
    record = {"id": "a", "prompt_ids": [7], "n": 2}
    greedy = [*SIZES, "--max-new-tokens", "6"]
    assert_refused(generate(*files(tmp_path, [record]), *greedy), "'a'", "n = 2", "temperature 0", "or n 1")
    assert_refused(generate(*files(tmp_path, [record | {"temperature": 0}]), *HOW), "'a'", "n = 2")
    assert_refused(generate(*files(tmp_path, [record | {"top_k": 1}]), *HOW), "'a'", "n = 2", "with top_k 1")
    assert not (tmp_path / "answers.jsonl").exists()
    assert generate(*files(tmp_path, [record | {"temperature": 1}]), *greedy)[0] == 0
