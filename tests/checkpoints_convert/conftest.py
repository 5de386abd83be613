"""Folders that the tests of the converter share."""

import pytest
from support.checkpoints.hf_folders import hf_config, hf_tensors, write_hf

from checkpoints_convert import convert_hf


@pytest.fixture
def hf_folder(tmp_path):
    config = hf_config("qwen2")
    return write_hf(tmp_path / "hf", config, hf_tensors(config))


@pytest.fixture
def converted(tmp_path):
    config = hf_config("qwen2")
    convert_hf(write_hf(tmp_path / "hf", config, hf_tensors(config)), tmp_path / "ours", note=lambda text: None)
    return tmp_path / "ours"
