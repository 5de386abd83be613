"""Arguments that name files and folders: what is none on this machine is refused, with a way out."""

import argparse
import re
from pathlib import Path

import pytest

from jax_probe_mtp.errors import local_file, local_path


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("gs://b/f.jsonl", "gs://b/f.jsonl is an address, and none is read or written; give a path on this machine"),
        ("S3://b/f.jsonl", "S3://b/f.jsonl is an address, and none is read or written; give a path on this machine"),
        ("file:///f.jsonl", "file:///f.jsonl is an address, and none is read or written; leave file:// out"),
        ("-", "'-' is no file; name one"),
        ("", "'' is no file; name one"),
        ("a/f.jsonl.gz", "a/f.jsonl.gz is packed, by its name, and no such file is read or written; unpack it"),
        ("f.jsonl.ZST", "f.jsonl.ZST is packed, by its name, and no such file is read or written; unpack it"),
    ],
)
def test_no_file_that_is_elsewhere_or_packed(text, says):
    with pytest.raises(argparse.ArgumentTypeError, match=f"^{re.escape(says)}$"):
        local_file(text)


def test_folders_may_be_named_as_packed_files_are():
    assert local_path("run.zip") == Path("run.zip")


@pytest.mark.parametrize("text", ["a/f.jsonl", "gz", "a.gz/f.jsonl", "c:/f", "./-", "-f"])
def test_files_of_this_machine(text):
    assert local_file(text) == Path(text)
