"""Files that are written whole or not at all."""

import json
import os

import pytest
from support.files.prompt_files import GOOD, write

from jax_probe_mtp.files import whole_files
from jax_probe_mtp.files.whole_files import check_files, write_files, write_json


def test_files_that_cannot_be_written_are_named_with_their_option(tmp_path):
    read = write(tmp_path, GOOD)
    os.mkfifo(tmp_path / "pipe")
    os.link(read, tmp_path / "twin")
    for path, says in [
        (tmp_path, "not a file"),
        (tmp_path / "pipe", "not a file"),
        (tmp_path / "no" / "out.json", "does not exist"),
        (read, "is read by this command"),
        (tmp_path / "twin", "is read by this command"),
        (tmp_path / "first.json", "is written as --json by this command"),
    ]:
        with pytest.raises(ValueError, match=rf"\A--output {path} .*{says}.*; (name|make)[^\n]+\Z"):
            check_files({"--json": tmp_path / "first.json", "--output": path}, [None, read])
    check_files({"--json": None, "--output": tmp_path / "out.json"}, [read])


def test_what_cannot_be_written_leaves_nothing(tmp_path, monkeypatch):
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OSError, match="pipe is not a file"):
        write_json(tmp_path / "pipe", {})
    assert (tmp_path / "pipe").is_fifo()
    monkeypatch.setattr(whole_files.secrets, "token_hex", lambda size: "x")
    (tmp_path / "second.x.partial").mkdir()
    with pytest.raises(OSError, match=r"second cannot be written \(Is a directory\); free some space"):
        write_files(tmp_path, {"first": "1", "second": "2"})
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "second.x.partial"}


def test_json_is_replaced_whole_or_not_at_all(tmp_path):
    (tmp_path / "real.json").write_text("old")
    (tmp_path / "link.json").symlink_to("real.json")
    with pytest.raises(ValueError, match="JSON"):
        write_json(tmp_path / "link.json", {"a": float("nan")})
    assert (tmp_path / "real.json").read_text() == "old"
    write_json(tmp_path / "link.json", {"a": "é"})
    assert (tmp_path / "link.json").is_symlink()
    assert json.loads((tmp_path / "real.json").read_text(encoding="utf-8")) == {"a": "é"}
    assert "é" in (tmp_path / "real.json").read_text(encoding="utf-8")
    assert {path.name for path in tmp_path.iterdir()} == {"real.json", "link.json"}


def test_two_processes_that_write_one_file_share_no_unfinished_one(tmp_path, monkeypatch):
    replace, path = os.replace, tmp_path / "r.json"

    def another_writes_first(source, target):
        monkeypatch.setattr(os, "replace", replace)
        write_json(path, {"of": "another"})
        assert json.loads(path.read_text()) == {"of": "another"}
        replace(source, target)

    monkeypatch.setattr(os, "replace", another_writes_first)
    write_json(path, {"of": "this one"})
    assert json.loads(path.read_text()) == {"of": "this one"}
    assert list(tmp_path.iterdir()) == [path]
