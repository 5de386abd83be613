"""Messages of one line, whatever a file puts into them."""

import struct

import pytest
from support.checkpoints.gguf_files import header, text
from support.checkpoints.hf_folders import hf_config, write_hf

from checkpoints_convert import CheckpointError
from checkpoints_convert.errors import LONGEST
from checkpoints_convert.gguf.header import read_header
from checkpoints_convert.huggingface.model import open_hf


@pytest.mark.parametrize("character", ["\n", "\r", "\u2028", "\x1b", "\0", "\ud800", "\x85"])
def test_a_message_is_one_line_whatever_a_file_puts_into_it(tmp_path, character):
    config = hf_config("llama", hidden_act=f"a{character}b")
    with pytest.raises(CheckpointError, match=r"hidden_act = a\\.*b is not supported") as error:
        open_hf(write_hf(tmp_path / "hf", config, {}))
    assert str(error.value).isprintable()
    key = f"a{character}b".encode("utf-8", "replace")
    (tmp_path / "m.gguf").write_bytes(header(text(key) + struct.pack("<I", 77), 1))
    with pytest.raises(CheckpointError, match="unknown type 77") as error:
        read_header(tmp_path / "m.gguf")
    assert str(error.value).isprintable()


def test_a_long_message_keeps_its_beginning_and_its_end(tmp_path):
    folder = write_hf(tmp_path / "hf", hf_config("llama", model_type="x" * 10**6), {})
    with pytest.raises(CheckpointError, match=r"config\.json: model_type 'xxx.* \[\.\.\.\] x.*not belong") as error:
        open_hf(folder)
    assert len(str(error.value)) < LONGEST
