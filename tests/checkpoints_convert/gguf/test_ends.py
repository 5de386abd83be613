"""Which tokens end a text in a GGUF file: its keys, its lists, and the names of its control tokens."""

import pytest
from gguf import TokenType
from support.checkpoints.gguf_files import write_gguf
from support.checkpoints.hf_folders import V, hf_config, hf_tensors

from checkpoints_convert import CheckpointError
from checkpoints_convert.gguf.ends import read_ends
from checkpoints_convert.gguf.header import GGUFFields
from checkpoints_convert.gguf.model import open_gguf

KEY = "tokenizer.ggml."
TOKENS = ["a", "</s>", "<|eot_id|>", "<|im_end|>", "<|end_of_text|>", "<|im_start|>"]  # ids 0 to 5


def ends(ids, kinds=None, tokens=TOKENS):
    kinds = [TokenType.NORMAL] + [TokenType.CONTROL] * (len(tokens) - 1) if kinds is None else kinds
    fields = {KEY + "tokens": tokens, KEY + "token_type": [int(kind) for kind in kinds]}
    return read_ends(GGUFFields(fields | {KEY + key: value for key, value in ids.items()}, "m.gguf"), 6)


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({}, (0,)),  # eos_token_id alone
        ({"eot_token_id": 9}, (0, 9)),
        ({"eom_token_id": 9}, (0, 9)),
        ({"eot_token_id": 9, "eom_token_id": 8}, (0, 9, 8)),
        ({"eot_token_id": 0}, (0,)),
        ({"eos_token_ids": [5, 0, 5, 6]}, (0, 5, 6)),
        ({"eot_token_ids": [5, 6], "eom_token_ids": [4]}, (0, 5, 6, 4)),
    ],
)
def test_keys_and_lists_of_a_file(tmp_path, fields, expected):
    named = {KEY + name: value for name, value in fields.items()}
    path = write_gguf(tmp_path / "m.gguf", "llama", hf_tensors(hf_config("llama")), fields=named)
    assert open_gguf(path).eos_token_ids == expected


@pytest.mark.parametrize("name", ["eot_token_id", "eom_token_id", "eos_token_ids"])
def test_an_id_beyond_the_vocabulary_is_named(tmp_path, name):
    fields = {KEY + name: [1, V] if name.endswith("s") else V}
    path = write_gguf(tmp_path / "m.gguf", "llama", hf_tensors(hf_config("llama")), fields=fields)
    with pytest.raises(CheckpointError, match=rf"m\.gguf: tokenizer\.ggml\.{name} {V} is no id below {V}\."):
        open_gguf(path)


def test_a_list_that_holds_no_ids_is_named():
    with pytest.raises(CheckpointError, match=r"m\.gguf: tokenizer\.ggml\.eos_token_ids '2' is no id below 6\."):
        ends({"eos_token_ids": ["2"]})
    with pytest.raises(
        CheckpointError, match=r"tokenizer\.ggml\.eos_token_ids holds 7 ids, more than there are tokens"
    ):
        ends({"eos_token_ids": [1] * 7})
    with pytest.raises(CheckpointError, match=r"tokenizer\.ggml\.eos_token_ids' must be a list, got '3'"):
        ends({"eos_token_ids": 3})


NORMAL = [TokenType.NORMAL] * 6


@pytest.mark.parametrize(
    ("ids", "kinds", "expected"),
    [
        ({"eos_token_id": 4}, None, (4, 2, 3)),  # as early files of Llama 3: the end of the text alone
        ({"eos_token_id": 3}, None, (3,)),  # its end of text is the end of a turn
        ({"eos_token_id": 4, "eot_token_id": 2}, None, (4, 2)),  # it names one itself
        ({"eos_token_ids": [4, 2]}, None, (4, 2)),
        ({"eos_token_id": 4, "eom_token_id": 5}, None, (4, 5)),
        ({"eos_token_id": 4}, NORMAL, (4,)),  # ordinary text that looks alike
        ({"eos_token_id": 4}, [*NORMAL[:3], TokenType.CONTROL, *NORMAL[:2]], (4, 3)),
        ({"eos_token_id": 4}, NORMAL[:5], (4,)),  # a type is missing: building the tokenizer says so
    ],
)
def test_control_tokens_with_the_name_of_an_end_of_turn(ids, kinds, expected):
    assert ends(ids, kinds) == expected


def test_more_tokens_than_the_model_has_are_left_to_the_tokenizer():
    assert ends({"eos_token_id": 4}, tokens=[*TOKENS, "<|end|>"]) == (4,)


def test_a_file_that_says_nothing(tmp_path):
    path = write_gguf(tmp_path / "m.gguf", "llama", hf_tensors(hf_config("llama")), without=["eos_token_id"])
    says = r"m\.gguf names no token that ends a text \(tokenizer\.ggml\.eos_token_id\); give its id with --eos-token-id"
    with pytest.raises(CheckpointError, match=says):
        open_gguf(path)
    assert open_gguf(path, [7]).eos_token_ids == (7,)
    with pytest.raises(CheckpointError, match="names no token that ends a text"):  # not even with a name
        ends({})
