"""Flags that take addresses: packed files stay refused by name, there and here."""

import pytest
from support.files.job_runs import assert_refused

FLAGS = {
    "generate": ["--input", "--output"],
    "verify": ["--input", "--outputs"],
    "merge": ["--input", "--output"],
}


@pytest.mark.parametrize(("command", "flag"), [(name, flag) for name, flags in FLAGS.items() for flag in flags])
def test_packed_files_are_refused(run, command, flag):
    for name in ("gs://b/f.gz", "f.jsonl.zst"):
        assert_refused(run(command, flag, name), f"argument {flag}: {name} is packed, by its name")


@pytest.mark.parametrize("flag", ["--stats-json", "--masks"])
def test_other_flags_take_no_address(run, flag):
    assert_refused(run("generate", flag, "gs://b/f"), f"argument {flag}: gs://b/f is an address, and none is read")
