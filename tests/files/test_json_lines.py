"""Lines of JSON: which lines and which files are refused."""

import os

import pytest
from support.files.prompt_files import GOOD, peak, write

from jax_probe_mtp.files import json_lines
from jax_probe_mtp.files.prompt_file import PromptFile


def test_a_value_too_deep_to_be_shown_is_one_line(tmp_path, monkeypatch):
    def dumps(value):
        raise RecursionError

    monkeypatch.setattr(json_lines.json, "dumps", dumps)
    with pytest.raises(ValueError, match=r"\A[^\n]+line 1 [^\n]+ nested deeply\.\Z"):
        PromptFile(write(tmp_path, "[[]]"))


def test_the_limit_of_a_line_is_met_exactly(tmp_path, monkeypatch):
    monkeypatch.setattr(json_lines, "MAX_LINE_BYTES", 31)
    line = '{"id": "a", "prompt": "' + "x" * 6 + '"}'
    assert len(line) == 31
    for content in (line, line + "\n", line + "\n" + line.replace("a", "b") + "\n"):
        assert PromptFile(write(tmp_path, content)).num_records == content.count("id")
    for content in (line + " ", line + " \n"):
        with pytest.raises(ValueError, match="line 2 is longer than 31 bytes"):
            PromptFile(write(tmp_path, "\n" + content))


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        PromptFile(tmp_path / "none.jsonl")


def test_what_is_no_file_is_refused_without_opening_it(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    for path in (tmp_path, tmp_path / "pipe", tmp_path / "link"):
        with pytest.raises(ValueError, match="is not a file") as refusal:
            PromptFile(path)
        assert str(path) in str(refusal.value)


def test_a_line_of_100_mb_is_not_read(tmp_path):
    path = write(tmp_path, GOOD)
    with path.open("r+b") as file:
        file.truncate(100_000_000)  # NULs that take no room on the disk; the first line is whole

    def refused():
        with pytest.raises(ValueError, match="line 2 is longer than 16777216 bytes"):
            PromptFile(path)

    assert peak(refused) < 64 * 2**20
