"""Makes files of outputs."""

import pytest
from support.commands import write

from jax_probe_mtp.files.output_file import OutputFile
from jax_probe_mtp.files.prompt_file import PromptFile


@pytest.fixture
def outputs(tmp_path):
    def outputs(*values, form="auto", prompts=None):
        joined = None if prompts is None else PromptFile(write(tmp_path / "p.jsonl", prompts))
        return OutputFile(write(tmp_path / "o.jsonl", values), form, joined)

    return outputs
