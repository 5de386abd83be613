"""What made the answers: kept beside them, and compared before a run goes on."""

import errno
import json
import re

import pytest
from support.files.answer_files import ONE, RUN, failing, filled, says

from jax_probe_mtp.files import run_file
from jax_probe_mtp.files.answer_file import AnswerFile
from jax_probe_mtp.files.run_file import run_path


@pytest.mark.parametrize(
    ("run", "then", "now"),
    [
        (
            {"model": {"name": "b", "fingerprint": "f00"}, "settings": {"temperature": 1.0, "seed": 7}},
            "model.name 'a', settings.temperature 0.0,",
            "'b', 1.0;",
        ),
        ({"model": RUN["model"], "settings": {"temperature": 0.0}}, "settings.seed 7,", "nothing;"),
        (RUN | {"version": 3}, "version nothing,", "3;"),
        (RUN | {"version": None}, "version nothing,", "None;"),
        (RUN | {"settings": {"temperature": 0.0, "seed": None}}, "settings.seed 7,", "None;"),
        (RUN | {"model": {"name": "x" * 200, "fingerprint": "f00"}}, "model.name 'a',", "'" + "x" * 59 + ";"),
        (
            {"settings": {"seed": 8}},
            "model.name 'a', model.fingerprint 'f00', settings.temperature 0.0,",
            "nothing, nothing, nothing;",
        ),
    ],
)
def test_answers_of_another_run_are_not_gone_on_with(tmp_path, run, then, now):
    path = filled(tmp_path / "answers.jsonl", ONE)
    with path.open("ab") as file:
        file.write(b'{"torn')
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    message = f"{path} was made with {then} but this run has {now} name another --output or give the same command."
    with pytest.raises(ValueError, match=r"\A" + re.escape(message) + r"\Z"):
        AnswerFile(path, run)
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before
    assert AnswerFile(path, RUN).num_kept == 1  # and the file is free


def test_a_run_is_compared_as_json_says_it(tmp_path):
    path = filled(tmp_path / "answers.jsonl", ONE, run={"stops": ("a", "b"), "lambda": 0.1})
    assert AnswerFile(path, {"lambda": 0.1, "stops": ("a", "b")}).num_kept == 1


def test_answers_whose_run_is_not_known_are_left_alone(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text("someone's notes")
    for content, message in [(None, "answers.jsonl.run.json"), ("", "no JSON object"), ("[]", "no JSON object")]:
        if content is not None:
            run_path(path).write_text(content)
        with pytest.raises(ValueError, match=says(path, message)):
            AnswerFile(path, RUN)
        assert path.read_text() == "someone's notes"


def test_an_empty_file_starts_anew(tmp_path):
    path = tmp_path / "answers.jsonl"
    run_path(path).write_text('{"of": "another run"}')
    with AnswerFile(path, RUN):
        pass
    assert json.loads(run_path(path).read_text()) == RUN
    with AnswerFile(path, RUN | {"settings": {}}) as file:
        assert file.num_kept == 0
    assert json.loads(run_path(path).read_text()) == RUN | {"settings": {}}


def test_no_room_for_what_the_run_is(tmp_path, monkeypatch):
    monkeypatch.setattr(run_file, "write_json", failing(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match=says(tmp_path / "answers.jsonl.run.json", "No space left", "free some space")):
        AnswerFile(tmp_path / "answers.jsonl", RUN)
