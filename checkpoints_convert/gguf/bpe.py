"""Builds byte-level BPE (`tokenizer.ggml.model` "gpt2"): the file only names the way text is cut before merging."""

import dataclasses
from typing import Any

from gguf.constants import TokenType
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers

from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.gguf.header import GGUFFields
from checkpoints_convert.gguf.vocabulary import Vocabulary

_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")


@dataclasses.dataclass(frozen=True)
class _Cut:
    """The steps of a family's tokenizer.json before merging.

    Attributes:
      regex: pieces it cuts out; None for GPT-2's own, which is built into the byte-level step.
      has_single_digits: each digit is a piece of its own, before the regex.
      has_nfc: text is composed (Unicode NFC) first.
      ignores_merges: a piece that is a token is taken whole.
      adds_bos: plain encoding puts BOS in front, where the file does not say.
    """

    regex: str | None = None
    has_single_digits: bool = False
    has_nfc: bool = False
    ignores_merges: bool = False
    adds_bos: bool = False


# By `tokenizer.ggml.pre`. A name is here only where the tokenizer.json it stands for is known, or where llama.cpp's table says
# that it cuts as one of these (deepseek-r1-qwen, falcon3, smaug-bpe); "default" and a missing
# name stand for none: llama.cpp itself warns that its cut is then a guess.
# Sources: the tokenizer.json of gpt2, HuggingFaceTB/SmolLM2, Qwen/Qwen2.5 and meta-llama/Meta-Llama-3; llama_vocab's
# table in llama.cpp's src/llama-vocab.cpp.
_QWEN2_CUT = _Cut(regex=_QWEN2, has_nfc=True)
_LLAMA3_CUT = _Cut(regex=_LLAMA3, ignores_merges=True, adds_bos=True)
_CUTS = {
    "gpt-2": _Cut(),
    "smollm": _Cut(has_single_digits=True),
    "qwen2": _QWEN2_CUT,
    "deepseek-r1-qwen": _QWEN2_CUT,
    "llama-bpe": _LLAMA3_CUT,
    "llama3": _LLAMA3_CUT,
    "llama-v3": _LLAMA3_CUT,
    "falcon3": _LLAMA3_CUT,
    "smaug-bpe": _Cut(regex=_LLAMA3),
}


def _cut(field: GGUFFields) -> _Cut:
    name = field.text("tokenizer.ggml.pre", None)
    if name not in _CUTS:
        raise CheckpointError(
            f"{field.where}: tokenizer.ggml.pre is {name!r}, a way to cut text that is not known here; "
            f"{', '.join(_CUTS)} are. Convert the model's Hugging Face folder instead."
        )
    return _CUTS[name]


def pre_adds_bos(field: GGUFFields) -> bool:
    """Says whether plain encoding starts with BOS, where the file does not say."""
    return _cut(field).adds_bos


def byte_level_tokenizer(field: GGUFFields, vocabulary: Vocabulary) -> Tokenizer:
    """Builds the tokenizer without its special tokens.

    Args:
      field: the fields of the file.
      vocabulary: its tokens. Those it marks as unused only fill up the embedding: they are left out, as they are in
        the model's own tokenizer.json.

    Returns:
      A `tokenizers.Tokenizer`.
    """
    cut = _cut(field)
    merges = field.items("tokenizer.ggml.merges")
    most = sum(map(len, vocabulary.tokens))  # ways to put tokens together of two others
    if len(merges) > most:
        raise CheckpointError(f"{field.where}: {len(merges)} tokenizer.ggml.merges; its tokens allow for {most}.")
    merges = [tuple(merge.split(" ")) for merge in merges]
    if any(len(pair) != 2 for pair in merges):
        raise CheckpointError(f"{field.where}: each of tokenizer.ggml.merges must be two texts with a space between.")
    ids = vocabulary.ids(*(kind for kind in TokenType if kind != TokenType.UNUSED))
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=cut.ignores_merges))
    steps: list[Any] = [pre_tokenizers.Digits(individual_digits=True)] if cut.has_single_digits else []
    if cut.regex is not None:
        steps.append(pre_tokenizers.Split(Regex(cut.regex), behavior="isolated"))
    steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=cut.regex is None))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(steps)
    if cut.has_nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer
