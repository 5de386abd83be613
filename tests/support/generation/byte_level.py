"""A byte-level tokenizer with some tokens of more than one byte, for tests of growing texts."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from support.generation.texts import SYMBOL

# Whole characters, a part of 海, a space with a part of “ (as SmolLM2 has, too).
MERGED = [b"ab", b"aa", b"aab", "é".encode(), "海".encode()[:2], b" \xe2"]
AB, AA, AAB, E_ACUTE, PART_OF_SEA, SPACE_AND_PART = range(256, 262)
EOS, USER = 262, 263


def _symbols(data):
    return "".join(SYMBOL[byte] for byte in data)


def byte_level_tokenizer():
    """Makes byte-level BPE as GPT-2, Llama 3 and Qwen have it: ids 0 to 255 are the bytes, </s> and <user> are special."""
    vocab = {SYMBOL[byte]: byte for byte in range(256)} | {_symbols(data): 256 + i for i, data in enumerate(MERGED)}
    merges = [(_symbols(data[:-1]), _symbols(data[-1:])) for data in MERGED]
    vocab |= {"</s>": EOS, "<user>": USER}
    backend = Tokenizer(models.BPE(vocab, merges))
    backend.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    backend.decoder = decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend, eos_token="</s>", additional_special_tokens=["<user>"]
    )
    assert tokenizer("ab é海").input_ids == [AB, ord(" "), E_ACUTE, PART_OF_SEA, 0xB7]
    assert tokenizer.convert_tokens_to_ids(["</s>", "<user>"]) == [EOS, USER]
    return tokenizer
