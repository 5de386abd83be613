"""Answers that are taken out of a file: all others stay, whatever comes in between."""

import errno
import os
import re
import stat
import subprocess
import sys

import pytest
from support.files.answer_files import ONE, RUN, THREE, TWO, failing, filled, ids_of, says

from jax_probe_mtp.files import answer_file
from jax_probe_mtp.files.answer_file import AnswerFile
from jax_probe_mtp.files.ids import id_key


def test_answers_are_taken_out_at_once(tmp_path, monkeypatch):
    path = filled(tmp_path / "answers.jsonl", ONE, TWO, THREE)
    before = path.read_bytes()
    lines = before.splitlines(keepends=True)
    link = tmp_path / "link.jsonl"
    link.symlink_to(path)
    with AnswerFile(link, RUN) as file:
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", failing(errno.ENOSPC, "no space"))
            with pytest.raises(OSError, match=says(path, "no space", "nothing was changed")):
                file.remove({id_key("one")})
        assert path.read_bytes() == before
        assert not list(tmp_path.glob("*.partial"))
        file.remove({id_key(2), id_key("other")})
        assert path.read_bytes() == lines[0] + lines[2]
        assert (file.num_written, file.num_errors, 2 in file.done, "three" in file.done) == (2, 0, False, True)
        with pytest.raises(ValueError, match="another run is writing"):
            AnswerFile(path, RUN)
        file.write([TWO])
    assert link.is_symlink()
    assert ids_of(path) == ["one", "three", 2]
    assert not list(tmp_path.glob("*.partial"))


NO_ROOM = """
import resource, sys
from pathlib import Path
from jax_probe_mtp.files.answer_file import AnswerFile
from jax_probe_mtp.files.ids import id_key
with AnswerFile(Path(sys.argv[1]), {"settings": {}}) as file:
    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))
    try:
        file.remove({id_key(0)})
    except OSError as error:
        print(error)
"""


def test_no_answer_is_lost_where_there_is_no_room_to_take_others_out(tmp_path):
    answers = [{"id": i, "text": "x" * 83} for i in range(4)]
    path = filled(tmp_path / "answers.jsonl", *answers, run={"settings": {}})
    before = path.read_bytes()
    for room in (0, 50, 250):  # of three answers that stay, not one fits, then two
        command = [sys.executable, "-c", NO_ROOM, str(path), str(room)]
        done = subprocess.run(command, capture_output=True, text=True, check=True)
        assert re.match(says(path, "File too large", "nothing was changed"), done.stdout.strip())
        assert path.read_bytes() == before
        assert sorted(each.name for each in tmp_path.iterdir()) == ["answers.jsonl", "answers.jsonl.run.json"]
    path.chmod(0o600)
    with AnswerFile(path, {"settings": {}}) as file:
        file.remove({id_key(0)})
    assert ids_of(path) == [1, 2, 3]
    assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_a_file_that_another_run_replaces_while_it_is_opened_is_opened_again(tmp_path, monkeypatch):
    path, honest = filled(tmp_path / "answers.jsonl", ONE, TWO), answer_file.lock

    def another_first(file, path, *, is_shared):
        monkeypatch.setattr(answer_file, "lock", honest)
        with AnswerFile(path, RUN) as other:
            other.remove({id_key("one")})
        honest(file, path, is_shared=is_shared)

    monkeypatch.setattr(answer_file, "lock", another_first)
    with AnswerFile(path, RUN) as file:
        assert file.num_kept == 1
        file.write([THREE])
    assert ids_of(path) == [2, "three"]


def test_what_a_killed_run_left_while_it_took_answers_out_goes(tmp_path):
    path = filled(tmp_path / "answers.jsonl", ONE)
    (tmp_path / "answers.jsonl.partial").write_text('{"id": "ha')
    with AnswerFile(path, RUN):
        assert sorted(each.name for each in tmp_path.iterdir()) == ["answers.jsonl", "answers.jsonl.run.json"]
