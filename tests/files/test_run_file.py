"""What made the answers: kept beside them, and compared before a run goes on."""

import datetime
import errno
import json
import os
import re

import pytest
from support.files.answer_files import ONE, RUN, failing, filled, says

from jax_probe_mtp.files import run_file
from jax_probe_mtp.files.answer_file import AnswerFile
from jax_probe_mtp.files.run_file import Begun, begun, differences, run_path


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
    way_out = "give the same command" + (" with the same model" if then.startswith("model.") else "")
    message = f"{path} was made with {then} but this run has {now} name another --output or {way_out}."
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


def test_a_run_says_when_it_began(tmp_path):
    path, beside = tmp_path / "answers.jsonl", tmp_path / "answers.jsonl.run.json"
    assert begun(path) is None
    path.write_text("")
    assert begun(path) is None  # without answers a run begins now
    filled(path, ONE, run=RUN | {"format": 2, "started": "2026-11-25T23:59:59"})
    assert begun(path) == Begun(datetime.datetime(2026, 11, 25, 23, 59, 59), is_by_line=False)
    for started in (None, 7, "yesterday", "2026-11-25T23:59:59+01:00", "9999-01-01T00:00:00", [], "0001-01-01"):
        beside.write_text(json.dumps(RUN | {"format": 2, "started": started}))
        with pytest.raises(ValueError, match=says(beside, "does not say when the run began")):
            begun(path)
    beside.write_text(json.dumps(RUN))
    os.utime(beside, (1_600_000_000, 1_600_000_000))
    assert begun(path) == Begun(
        datetime.datetime.fromtimestamp(1_600_000_000), is_by_line=True
    )  # when that file was written


def test_the_moment_of_the_start_is_no_difference():
    run = RUN | {"format": 2}
    assert differences(run | {"started": "2026-11-25T23:59:59"}, run | {"started": "2026-11-26T00:00:00"}) is None
    assert differences(run, RUN) == ("format 2", "nothing")
