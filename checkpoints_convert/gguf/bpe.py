"""Builds byte-level BPE (`tokenizer.ggml.model` "gpt2"): the file only names the way text is cut before merging."""

import logging

from gguf.constants import TokenType
from tokenizers import Tokenizer, decoders, models, normalizers

from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.gguf.cuts import read_cut
from checkpoints_convert.gguf.header import GGUFFields
from checkpoints_convert.gguf.vocabulary import Vocabulary

_logger = logging.getLogger("jax_probe_mtp")


def pre_adds_bos(field: GGUFFields) -> bool:
    """Says whether plain encoding starts with BOS, where the file does not say."""
    return read_cut(field).adds_bos


def byte_level_tokenizer(field: GGUFFields, vocabulary: Vocabulary) -> Tokenizer:
    """Builds the tokenizer without its special tokens.

    A file that does not say how the model cuts text gets llama.cpp's own cut, and a warning.

    Args:
      field: the fields of the file.
      vocabulary: its tokens. Those it marks as unused only fill up the embedding: they are left out, as they are in
        the model's own tokenizer.json.

    Returns:
      A `tokenizers.Tokenizer`.
    """
    cut = read_cut(field)
    merges = field.items("tokenizer.ggml.merges")
    most = sum(map(len, vocabulary.tokens))  # ways to put tokens together of two others
    if len(merges) > most:
        raise CheckpointError(f"{field.where}: {len(merges)} tokenizer.ggml.merges; its tokens allow for {most}.")
    merges = [tuple(merge.split(" ")) for merge in merges]
    if any(len(pair) != 2 for pair in merges):
        raise CheckpointError(f"{field.where}: each of tokenizer.ggml.merges must be two texts with a space between.")
    ids = vocabulary.ids(*(kind for kind in TokenType if kind != TokenType.UNUSED))
    tokenizer = Tokenizer(models.BPE(vocab=ids, merges=merges, ignore_merges=cut.ignores_merges))
    tokenizer.pre_tokenizer = cut.pre_tokenizer()
    if cut.has_nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.decoder = decoders.ByteLevel()
    if cut.is_guess:
        _logger.warning(
            "%s: tokenizer.ggml.pre is %r, so text is cut in llama.cpp's default way, which may be another than the model's; "
            "convert its Hugging Face folder to be sure",
            field.where,
            field.text("tokenizer.ggml.pre", None),
        )
    return tokenizer
