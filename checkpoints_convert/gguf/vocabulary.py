"""Reads the tokens of a GGUF file: their texts and what each is."""

import dataclasses
import logging

from gguf.constants import TokenType

from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.gguf.header import GGUFFields
from checkpoints_convert.mapping.fields import first_repeated

_logger = logging.getLogger("jax_probe_mtp")


@dataclasses.dataclass(frozen=True)
class Vocabulary:
    """The tokens of a file: `tokens[i]` is the text of id i, `kinds[i]` what it is."""

    tokens: list[str]
    kinds: list[TokenType]

    def ids(self, *kinds: TokenType) -> dict[str, int]:
        """Gives text -> id of the tokens of these kinds."""
        return {token: i for i, (token, kind) in enumerate(zip(self.tokens, self.kinds, strict=True)) if kind in kinds}


def read_vocabulary(field: GGUFFields, vocab_size: int) -> Vocabulary:
    """Reads the tokens from the fields of a file.

    Where it does not say what each is, all are ordinary ones, as for llama.cpp, with a warning.

    Args:
      field: the fields.
      vocab_size: V; the file may name fewer tokens, never more.

    Raises:
      CheckpointError: if there are none or too many, one is no text or there twice, or a kind is unknown.
    """
    tokens = field.items("tokenizer.ggml.tokens")
    count = len(tokens)
    tokens = list(tokens) if 1 <= count <= vocab_size else []
    if not tokens or not all(isinstance(token, str) for token in tokens):
        raise CheckpointError(
            f"{field.where}: tokenizer.ggml.tokens must hold 1 to {vocab_size} texts, got {count} entries."
        )
    kinds = field.items("tokenizer.ggml.token_type", [int(TokenType.NORMAL)] * len(tokens))
    if len(kinds) != len(tokens):
        raise CheckpointError(f"{field.where}: {len(kinds)} token types for {len(tokens)} tokens.")
    try:
        vocabulary = Vocabulary(tokens, [TokenType(kind) for kind in kinds])
    except ValueError as error:
        raise CheckpointError(f"{field.where}: tokenizer.ggml.token_type: {error}") from None
    if len(set(tokens)) != len(tokens):
        raise CheckpointError(f"{field.where}: tokenizer.ggml.tokens holds {first_repeated(tokens)!r} twice.")
    if "tokenizer.ggml.token_type" not in field:
        _logger.warning(
            "%s has no tokenizer.ggml.token_type, so special tokens that it gives no id for may be cut as plain text is; "
            "convert its Hugging Face folder to be sure",
            field.where,
        )
    return vocabulary
