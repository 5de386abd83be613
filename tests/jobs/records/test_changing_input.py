"""A file of prompts that is rewritten while a job runs: nothing is lost, nothing doubled, nothing under another prompt."""

import json

import pytest
from support.files.job_runs import SIZES, assert_refused, read

from jax_probe_mtp.files.answer_file import AnswerFile

RECORDS = [{"id": f"record {i}", "prompt_ids": [(i * 7) % 58, i], "max_new_tokens": 2 + i % 3} for i in range(12)]
EXTRA = {"id": "extra", "prompt_ids": [4, 4], "max_new_tokens": 2}


def line(record, **more):
    return json.dumps(record | more) + "\n"


LINES = [line(record) for record in RECORDS]
REWRITTEN = {  # what the file holds as soon as the first answers are on the disk, and whether they are still right then
    "put in front": [line(EXTRA), *LINES],
    "put in the middle": [*LINES[:9], line(EXTRA), *LINES[9:]],
    "appended": [*LINES, line(EXTRA)],
    "appended, not whole": [*LINES, line(EXTRA)[:9]],
    "taken out": LINES[:9] + LINES[10:],
    "cut": LINES[:8],
    "reordered": LINES[::-1],
    "the last edited": [*LINES[:-1], line(RECORDS[-1], prompt_ids=[5])],
    "the first edited": [line(RECORDS[0], prompt_ids=[5]), *LINES[1:]],
    "an id edited": [*LINES[:-1], line(RECORDS[-1], id="other")],
    "ids taken out": [line({name: record[name] for name in ("prompt_ids", "max_new_tokens")}) for record in RECORDS],
}


@pytest.mark.parametrize("rewritten", REWRITTEN)
def test_a_run_stops_and_the_same_command_goes_on(generate, tmp_path, monkeypatch, rewritten):
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text("".join(LINES))
    command = ["--input", prompts, "--output", output, *SIZES]
    honest = AnswerFile.write

    def write(self, answers):
        honest(self, answers)
        prompts.write_text("".join(REWRITTEN[rewritten]))  # in place

    with monkeypatch.context() as patch:
        patch.setattr(AnswerFile, "write", write)
        code, out, err = generate(*command, "--log-level", "error")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert str(prompts) in err
    if "is not JSON" in err:  # it read on in the middle of a line
        assert rewritten != "appended, not whole"
    else:
        assert "give the same command to go on" in err
    if rewritten.startswith("appended"):
        assert "which wrote 12 of 12 records" in err
    if rewritten == "appended, not whole":
        prompts.write_text("".join([*LINES, line(EXTRA)]))  # the other program ends its line
    kept = read(output)
    again = generate(*command)
    if "edited" in rewritten and again[0] == 2:  # the record was answered as it was before
        assert_refused(again, "answers 1 records of", "first the id 'record ", "its prompt is another")
        assert read(output) == kept
        again = generate(*command, "--redo-changed")
    assert again[0] == 0, again[2]
    asked = [json.loads(text) for text in prompts.read_text().splitlines()]
    answered = [json.loads(text) for text in read(output)]
    assert len({json.dumps(answer) for answer in answered}) == len(answered)
    for number, record in enumerate(asked, start=1):
        name = (record["id"], None) if "id" in record else (number, 1)
        mine = [answer["prompt_ids"] for answer in answered if (answer["id"], answer.get("occurrence")) == name]
        assert mine == [record["prompt_ids"]]


def test_a_file_that_is_written_anew_as_it_was_has_not_changed(generate, tmp_path, monkeypatch):
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    prompts.write_text("".join(LINES))
    honest = AnswerFile.write

    def write(self, answers):
        honest(self, answers)
        (tmp_path / "new").write_text("\n" + "".join(LINES))
        (tmp_path / "new").replace(prompts)

    monkeypatch.setattr(AnswerFile, "write", write)
    assert generate("--input", prompts, "--output", output, *SIZES)[0] == 0
    assert len(read(output)) == 12
