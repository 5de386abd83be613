"""Importing transformers says nothing where torch is missing, and leaves the environment as it was."""

import os
import subprocess
import sys

import pytest

from checkpoints_convert.mapping.tokenizer_class import tokenizer_class

NO_TORCH = """
import importlib.util
find = importlib.util.find_spec
importlib.util.find_spec = lambda name, *more: None if name == "torch" else find(name, *more)
"""


def stderr_of(code):
    env = {name: text for name, text in os.environ.items() if not name.startswith("TRANSFORMERS_")}
    command = [sys.executable, "-c", NO_TORCH + code]
    return subprocess.run(command, env=env, capture_output=True, text=True, check=True).stderr


def test_nothing_is_said_of_a_missing_torch():
    assert "PyTorch was not found" in stderr_of("import transformers")
    assert stderr_of("from checkpoints_convert.mapping.tokenizer_class import tokenizer_class; tokenizer_class()") == ""


@pytest.mark.parametrize("asked", [None, "0"])
def test_the_variable_that_hushes_it_stays_as_it_was(monkeypatch, asked):
    monkeypatch.delenv("TRANSFORMERS_NO_ADVISORY_WARNINGS", raising=False)
    if asked is not None:
        monkeypatch.setenv("TRANSFORMERS_NO_ADVISORY_WARNINGS", asked)
    assert hasattr(tokenizer_class(), "from_pretrained")
    assert os.environ.get("TRANSFORMERS_NO_ADVISORY_WARNINGS") == asked
