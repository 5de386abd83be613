"""A job whose prompts, settings or model changed since it began: an answer stays only where it is still the right one."""

import hashlib
import json

import pytest
import reference
from checkpoints import EOS, TEMPLATE, make_checkpoint, write_folder
from safetensors.numpy import load_file, save_file
from support.files.job_runs import SIZES, assert_refused, files, read, write

NAMELESS = [
    {"prompt_ids": [5, 9]},
    {"prompt_ids": [7]},
    {"prompt_ids": [5, 9]},
    {"prompt_ids": [7], "max_new_tokens": 3},
]
NAMED = [
    {"id": "a", "prompt_ids": [5, 9], "max_new_tokens": 4, "stop": ["w50"]},
    {"id": "b", "prompt_ids": [7], "max_new_tokens": 2},
]
SHORT = [*SIZES, "--max-new-tokens", "6"]


def answers_in(path):
    return [json.loads(line) for line in read(path)]


def plain(tiny, prompt, new, **draw):
    tokens, gap = reference.plain_decode(tiny.reference, prompt, max_new_tokens=new, eos=(EOS,), **draw)
    assert gap > 1e-3, "choose another prompt: rounding could decide this one"
    return tokens


def test_records_without_ids_keep_their_answers_wherever_they_stand(generate, tiny, tmp_path):
    output = tmp_path / "answers.jsonl"
    assert generate(*files(tmp_path, NAMELESS[1:]), *SHORT)[0] == 0
    first = read(output)
    assert [answer["id"] for answer in map(json.loads, first)] == [1, 2, 3]
    assert generate(*files(tmp_path, NAMELESS), *SHORT)[0] == 0
    assert read(output)[:3] == first
    (new,) = answers_in(output)[3:]
    assert (new["id"], new["prompt_ids"], new["token_ids"]) == (
        3,
        [5, 9],
        plain(tiny, [5, 9], 6),
    )  # the second of two equals
    code, _, err = generate(*files(tmp_path, NAMELESS[::-1]), *SHORT)
    assert (code, err.splitlines()) == (0, [f"{output} holds 4 of 4 records: going on", f"4 of 4 records in {output}"])
    assert read(output)[3:] == [json.dumps(new, ensure_ascii=False) + "\n"]


def test_a_record_without_an_id_draws_by_what_it_asks_for(generate, tiny, tmp_path):
    """The seed is that of the content: `blake2b` of its JSON, 8 bytes, and which of its equals it is."""
    records = [{"prompt_ids": [7], "temperature": 1}] * 2
    output = tmp_path / "answers.jsonl"
    assert generate(*files(tmp_path, records), *SHORT, "--seed", "7")[0] == 0
    asked = b'{"prompt_ids":[7],"temperature":1.0}'
    content = hashlib.blake2b(asked, digest_size=8, person=b"content").digest()[::-1].hex()
    drawn = sorted(answers_in(output), key=lambda answer: answer["id"])
    for number, answer in enumerate(drawn, start=1):
        seed = int.from_bytes(hashlib.sha256(f"7:{content}.{number}".encode()).digest()[:4], "little")
        assert (answer["content"], answer["occurrence"], answer["seed"]) == (content, number, seed)
        assert answer["token_ids"] == plain(tiny, [7], 6, seed=seed, temperature=1.0)
    assert drawn[0]["token_ids"] != drawn[1]["token_ids"]
    before = read(output)
    write(tmp_path, [{"prompt_ids": [3, 1]}, *records])
    assert generate("--input", tmp_path / "prompts.jsonl", "--output", output, *SHORT, "--seed", "7")[0] == 0
    assert read(output)[:2] == before


def test_verify_draws_as_the_records_without_ids_were_drawn(generate, run, model, tmp_path):
    draw = ["--temperature", "0.8", "--top-p", "0.9", "--seed", "5"]
    records = [*NAMELESS, *NAMED]
    assert generate(*files(tmp_path, records), *SHORT, *draw)[0] == 0
    command = ["verify", "--model", model, "--outputs", tmp_path / "answers.jsonl", *draw, "--max-new-tokens", "6"]
    code, out, _ = run(*command)
    assert (code, out.splitlines()[-1]) == (0, "6 same, 0 tie, 0 diverged"), out
    write(tmp_path, [{"prompt_ids": [3]}, *NAMELESS])
    again = ["--input", tmp_path / "prompts.jsonl", "--output", tmp_path / "answers.jsonl"]
    assert generate(*again, *SHORT, *draw)[0] == 0
    assert_refused(run(*command), "has the id 1 of line ", "merge --input gives each answer the number of its line")
    assert (
        run("merge", again[3], *again[:2], "--leave-out-others", "--output", again[3].with_name("merged.jsonl"))[0] == 0
    )
    command[4] = tmp_path / "merged.jsonl"
    assert run(*command)[1].splitlines()[-1] == "5 same, 0 tie, 0 diverged"
    assert run(*command[:-4], "--seed", "6", "--max-new-tokens", "6")[0] == 0  # each answer says its own seed


CHANGES = {
    "prompt": ({"prompt_ids": [5, 8]}, "its prompt is another"),
    "prompt and limit": (
        {"prompt_ids": [5, 8], "max_new_tokens": 5},
        "max_new_tokens 4 became 5, its prompt is another",
    ),
    "kind": ({"prompt_ids": None, "prompt": "w5 w9"}, "its prompt is another"),
    "limit": ({"max_new_tokens": 5}, "max_new_tokens 4 became 5"),
    "no limit": ({"max_new_tokens": None}, "max_new_tokens 4 became 'nothing of its own'"),
    "temperature": ({"temperature": 0.5}, "temperature 'nothing of its own' became 0.5"),
    "cuts": ({"top_k": 3, "top_p": 0.5}, "top_p 'nothing of its own' became 0.5, top_k 'nothing of its own' became 3"),
    "seed": ({"seed": 0}, "seed 'nothing of its own' became 0"),
    "stop": ({"stop": ["w51"]}, "stop ['w50'] became ['w51']"),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_record_that_changed_is_refused_or_answered_anew(generate, tiny, tmp_path, change):
    output, (fields, says) = tmp_path / "answers.jsonl", CHANGES[change]
    assert generate(*files(tmp_path, NAMED), *SHORT)[0] == 0
    before = {answer["id"]: answer for answer in answers_in(output)}
    command = files(tmp_path, [NAMED[0] | fields, NAMED[1], {"id": "c", "prompt_ids": [7]}])
    left = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    parts = (
        output,
        "answers 1 records of",
        "prompts.jsonl that have changed since, first the id 'a'",
        says,
        "--redo-changed",
    )
    assert_refused(generate(*command, *SHORT), *parts)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == left
    code, _, err = generate(*command, *SHORT, "--redo-changed")
    assert (code, err.splitlines()[0]) == (0, f"{output}: 1 records have changed: answered anew")
    after = {answer["id"]: answer for answer in answers_in(output)}
    assert len(answers_in(output)) == 3
    assert after["b"] == before["b"]
    assert after["a"] != before["a"]
    if change in ("prompt", "limit", "no limit"):
        record = NAMED[0] | fields
        assert after["a"]["token_ids"] == plain(tiny, record["prompt_ids"], record["max_new_tokens"] or 6)
    assert generate(*command, *SHORT)[0] == 0
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "answers.jsonl",
        "answers.jsonl.run.json",
        "prompts.jsonl",
    ]


def test_changed_records_and_errors_are_answered_anew_together(generate, tiny, tmp_path):
    output, failing = tmp_path / "answers.jsonl", {"id": "c", "prompt_ids": [61]}
    assert generate(*files(tmp_path, [*NAMED, failing]), *SHORT)[0] == 3
    before = {answer["id"]: answer for answer in answers_in(output)}
    command = files(tmp_path, [NAMED[0] | {"prompt_ids": [5, 8]}, NAMED[1], failing])
    code, _, err = generate(*command, *SHORT, "--redo-changed", "--retry-errors")
    says = ["1 records have changed: answered anew", "1 records could not run: tried again"]
    assert (code, err.splitlines()[:2]) == (3, [f"{output}: {each}" for each in says])
    assert sorted(answer["id"] for answer in answers_in(output)) == ["a", "b", "c"]
    after = {answer["id"]: answer for answer in answers_in(output)}
    assert after["a"]["token_ids"] == plain(tiny, [5, 8], 4)
    assert (after["b"], after["c"]) == (before["b"], before["c"])


def test_answers_to_records_that_were_taken_out_stay_and_are_counted(generate, tmp_path):
    output = tmp_path / "answers.jsonl"
    assert generate(*files(tmp_path, NAMED), *SHORT)[0] == 0
    before = read(output)
    code, _, err = generate(*files(tmp_path, NAMED[1:]), *SHORT)
    beside = f", beside 1 answers that {tmp_path / 'prompts.jsonl'} does not ask for"
    assert (code, err.splitlines()[-1]) == (0, f"1 of 1 records in {output}{beside}")
    assert read(output) == before


def change_template(folder):
    path = folder / "chat_template.jinja"
    path.write_text(path.read_text().replace("<bot>", "<bot> "))


def change_tokenizer(folder):
    path = folder / "tokenizer.json"
    decoder = {"type": "WordPiece", "prefix": "##", "cleanup": False}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"decoder": decoder}))


def change_eos(folder):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"eos_token_id": [EOS, 1]}))


def change_weight(folder):
    tensors = load_file(folder / "model.safetensors")
    tensors["model.layers.1.mlp.down_proj.weight"][11, 17] *= -1
    save_file(tensors, folder / "model.safetensors")


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (change_template, "chat_template"),
        (change_tokenizer, "tokenizer"),
        (change_eos, "eos_token_ids"),
        (change_weight, "weights"),
    ],
)
def test_a_model_folder_that_changed_is_refused(generate, tiny, tmp_path, change, name):
    model = write_folder(tmp_path / "model" / "tiny", make_checkpoint(tiny, template=TEMPLATE))
    command = [*files(tmp_path, NAMED), *SHORT]
    assert generate(*command, of=model)[0] == 0
    before = read(tmp_path / "answers.jsonl")
    assert generate(*command, of=model)[0] == 0
    change(model)
    assert_refused(
        generate(*command, of=model), f"was made with model.{name} ", "but this run has ", "; name another --output"
    )
    assert read(tmp_path / "answers.jsonl") == before


def test_a_template_prints_the_date_on_which_the_job_began(generate, tiny, tmp_path):
    dated = "{{ strftime_now('w%d w%m') }} " + TEMPLATE
    model = write_folder(tmp_path / "model" / "tiny", make_checkpoint(tiny, template=dated))
    output, beside = tmp_path / "answers.jsonl", tmp_path / "answers.jsonl.run.json"
    records = [{"id": "a", "prompt": "w5"}, {"id": "b", "prompt": "w6"}]
    assert generate(*files(tmp_path, records[:1]), *SHORT, of=model)[0] == 0
    run = json.loads(beside.read_text())
    run["started"] = "2026-11-23T23:59:59"
    beside.write_text(json.dumps(run))
    assert generate(*files(tmp_path, records), *SHORT, of=model)[0] == 0
    assert answers_in(output)[1]["prompt_ids"][:2] == [23, 11]
    beside.write_text(json.dumps(run | {"started": "yesterday"}))
    assert_refused(generate(*files(tmp_path, records), *SHORT, of=model), "does not say when the run began")


BY_LINE = ("format", "started")


def as_earlier_version(output):
    """Takes out of a run's files what earlier versions did not write."""
    beside = output.with_name(output.name + ".run.json")
    run = {name: value for name, value in json.loads(beside.read_text()).items() if name not in BY_LINE}
    run["model"] = {name: run["model"][name] for name in ("name", "fingerprint", "dtype")}
    beside.write_text(json.dumps(run, indent=1))
    known = ("content", "occurrence", "seed", "temperature", "max_new_tokens")
    lines = [{name: value for name, value in answer.items() if name not in known} for answer in answers_in(output)]
    output.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_what_an_earlier_version_began_goes_on_by_line_with_its_seeds(generate, tiny, tmp_path):
    records = [{"prompt": "w5 w9"}, {"prompt": "w50"}, {"prompt_ids": [7], "temperature": 1}]  # the second cannot run
    output = tmp_path / "answers.jsonl"
    assert generate(*files(tmp_path, records[:2]), *SHORT, "--seed", "7", "--mask-init", "mean")[0] == 3
    as_earlier_version(output)
    before = read(output)
    assert generate(*files(tmp_path, records), *SHORT, "--seed", "7", "--mask-init", "mean")[0] == 3
    assert read(output)[:2] == before
    (new,) = answers_in(output)[2:]
    seed = int.from_bytes(hashlib.sha256(b"7:3").digest()[:4], "little")  # of the run's seed and the line
    assert (new["id"], new["token_ids"]) == (3, plain(tiny, [7], 6, seed=seed, temperature=1.0))
    beside = output.with_name("answers.jsonl.run.json")
    assert "format" not in json.loads(beside.read_text())
    code, _, err = generate(
        *files(tmp_path, [{"prompt": "w1"}, *records]), *SHORT, "--seed", "7", "--mask-init", "mean"
    )
    assert (code, err.count("\n")) == (2, 1)
    assert "records of" in err
    assert "first the id 1: its prompt is another" in err
    assert read(output)[:2] == before
