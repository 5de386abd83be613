"""Reads which tokens end a text in a GGUF file."""

from gguf.constants import Keys, TokenType

from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.gguf.header import GGUFFields
from checkpoints_convert.mapping.ends import HOW_TO_GIVE, checked_ids

# End of text, of turn and of message: a model that was trained on turns says the second where a plain text has the first.
_KEYS = (Keys.Tokenizer.EOS_ID, Keys.Tokenizer.EOT_ID, Keys.Tokenizer.EOM_ID)

# How the chat templates of our families call the end of a turn: llama.cpp stops at them whatever the file says.
_TURN_ENDS = frozenset({"<|eot_id|>", "<|eom_id|>", "<|im_end|>", "<|end|>", "<end_of_turn>"})


def read_ends(field: GGUFFields, vocab_size: int) -> tuple[int, ...]:
    """Reads the ids that end a text.

    They are those of `tokenizer.ggml.eos_token_id`, `eot_token_id` and `eom_token_id`, and of lists under the same names
    with an s. Where the file names no end of a turn, its control tokens with the usual names of one are added.

    Raises:
      CheckpointError: if there are none, or one is no id of the vocabulary.
    """
    found: list[int] = []
    for key in _KEYS:
        single = field.integer(key, None)
        found += checked_ids([] if single is None else [single], vocab_size, f"{field.where}: {key}")
        several = field.items(key + "s", ())
        if len(several) > vocab_size:
            raise CheckpointError(f"{field.where}: {key}s holds {len(several)} ids, more than there are tokens.")
        found += checked_ids(several, vocab_size, f"{field.where}: {key}s")
    if not found:
        raise CheckpointError(
            f"{field.where} names no token that ends a text ({_KEYS[0]}); give its id with {HOW_TO_GIVE}."
        )
    says_turn = any(key in field or key + "s" in field for key in _KEYS[1:])
    by_name = [] if says_turn else _named_turn_ends(field, vocab_size)
    return tuple(dict.fromkeys(found if set(by_name) & set(found) else [*found, *by_name]))


def _named_turn_ends(field: GGUFFields, vocab_size: int) -> list[int]:
    tokens, kinds = field.items("tokenizer.ggml.tokens", ()), field.items("tokenizer.ggml.token_type", ())
    if len(tokens) != len(kinds) or len(tokens) > vocab_size:  # building the tokenizer refuses it
        return []
    pairs = enumerate(zip(tokens, kinds, strict=True))
    return [i for i, (token, kind) in pairs if kind == TokenType.CONTROL and token in _TURN_ENDS]
