"""Builds SentencePiece BPE (`tokenizer.ggml.model` "llama"): merges follow from the tokens' scores."""

from typing import Any

from gguf.constants import TokenType
from tokenizers import Tokenizer, decoders, models, normalizers

from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.gguf.header import GGUFFields
from checkpoints_convert.gguf.vocabulary import Vocabulary

_SPACE = "▁"
_LONGEST = 256  # characters of a token: ways to cut it grow with its length, and each is as long


def sentencepiece_tokenizer(field: GGUFFields, vocabulary: Vocabulary) -> Tokenizer:
    """Builds the tokenizer without its special tokens, as Llama 2's tokenizer.json has it.

    SentencePiece joins the two neighbours whose union is the token of the highest score; a list of merges in order of
    score does the same. Text that no token covers becomes bytes.

    Args:
      field: the fields of the file.
      vocabulary: its tokens; those it marks as unused are left out.

    Returns:
      A `tokenizers.Tokenizer`.
    """
    for key in ("tokenizer.ggml.remove_extra_whitespaces", "tokenizer.ggml.precompiled_charsmap"):
        if field.values.get(key):
            raise CheckpointError(f"{field.where}: {key} is not supported; convert its Hugging Face folder.")
    scores = field.items("tokenizer.ggml.scores")
    if len(scores) != len(vocabulary.tokens):
        raise CheckpointError(f"{field.where}: {len(scores)} token scores for {len(vocabulary.tokens)} tokens.")
    ids = vocabulary.ids(*(kind for kind in TokenType if kind != TokenType.UNUSED))
    unknown = next(iter(vocabulary.ids(TokenType.UNKNOWN)), None)
    has_bytes = len(vocabulary.ids(TokenType.BYTE)) == 256
    tokenizer = Tokenizer(
        models.BPE(
            vocab=ids,
            merges=_merges(field.where, vocabulary.ids(TokenType.NORMAL), list(scores)),
            unk_token=unknown,
            fuse_unk=True,
            byte_fallback=has_bytes,
        )
    )
    has_prefix = field.flag("tokenizer.ggml.add_space_prefix", True)
    prepend: list[Any] = [normalizers.Prepend(_SPACE)] if has_prefix else []
    strip: list[Any] = [decoders.Strip(content=" ", left=1, right=0)] if has_prefix else []
    tokenizer.normalizer = normalizers.Sequence([*prepend, normalizers.Replace(" ", _SPACE)])
    steps = [decoders.Replace(_SPACE, " "), decoders.ByteFallback(), decoders.Fuse(), *strip]
    tokenizer.decoder = decoders.Sequence(steps)
    return tokenizer


def _merges(where: str, ids: dict[str, int], scores: list[float]) -> list[tuple[str, str]]:
    """Lists every way to put a token together from two others, best score first."""
    ranked = []
    for token, token_id in ids.items():
        if len(token) > _LONGEST:
            raise CheckpointError(f"{where}: token {token_id} has {len(token)} characters; {_LONGEST} are supported.")
        for i in range(1, len(token)):
            left, right = token[:i], token[i:]
            if left in ids and right in ids:
                ranked.append((-scores[token_id], token_id, ids[left], ids[right], left, right))
    ranked.sort(key=lambda entry: entry[:4])
    return [entry[4:] for entry in ranked]
