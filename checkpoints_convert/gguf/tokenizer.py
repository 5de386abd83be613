"""Rebuilds the tokenizer of a GGUF file with `tokenizers` from the file's fields."""

import logging
from typing import Any

from gguf.constants import TokenType
from tokenizers import AddedToken, Tokenizer

from checkpoints_convert.errors import CheckpointError, is_failure
from checkpoints_convert.gguf.bpe import byte_level_tokenizer, pre_adds_bos
from checkpoints_convert.gguf.header import GGUFFields
from checkpoints_convert.gguf.spm import sentencepiece_tokenizer
from checkpoints_convert.gguf.vocabulary import Vocabulary, read_vocabulary
from checkpoints_convert.mapping.surroundings import set_surroundings
from checkpoints_convert.mapping.tokenizer_class import tokenizer_class
from jax_probe_mtp.errors import one_line

_logger = logging.getLogger("jax_probe_mtp")


def build_tokenizer(fields: dict[str, Any], where: str, *, vocab_size: int, context_length: int) -> Any:
    """Builds a `transformers.PreTrainedTokenizerFast` that tokenizes as the model was trained.

    Args:
      fields: the fields of a GGUF file.
      where: the file, for messages.
      vocab_size: V; the file may name fewer tokens, never more.
      context_length: positions of the model, recorded with the tokenizer.

    Returns:
      The tokenizer, with its special tokens and chat template; plain encoding adds BOS where the file says so.

    Raises:
      CheckpointError: if a field is missing or malformed, or asks for something not supported.
    """
    field = GGUFFields(fields, where)
    vocabulary = read_vocabulary(field, vocab_size)
    kind = field.text("tokenizer.ggml.model")
    try:
        if kind == "gpt2":
            tokenizer = byte_level_tokenizer(field, vocabulary)
            adds_bos = pre_adds_bos(field)
        elif kind == "llama":
            tokenizer = sentencepiece_tokenizer(field, vocabulary)
            adds_bos = True
        else:
            raise CheckpointError(f"{where}: tokenizer model {kind!r} is not supported; gpt2 and llama are.")
        _add_special_tokens(tokenizer, vocabulary)
        special = _special_tokens(field, vocabulary)
        adds_bos = field.flag("tokenizer.ggml.add_bos_token", adds_bos)
        adds_eos = field.flag("tokenizer.ggml.add_eos_token", False)
        _set_template(tokenizer, field, special, adds_bos=adds_bos, adds_eos=adds_eos)
    except BaseException as error:  # tokenizers raises plain Exception
        if isinstance(error, CheckpointError) or not is_failure(error):
            raise
        raise CheckpointError(f"{where}: its tokenizer cannot be built ({one_line(error)}).") from None
    return _wrap(tokenizer, special, field.text("tokenizer.chat_template", None), context_length)


def _add_special_tokens(tokenizer: Tokenizer, vocabulary: Vocabulary) -> None:
    """Adds the tokens that are found in a text before anything else is done to it."""
    for kind in (TokenType.CONTROL, TokenType.UNKNOWN, TokenType.USER_DEFINED):
        is_special = kind != TokenType.USER_DEFINED  # special: left out by decode(skip_special_tokens=True)
        added = [AddedToken(token, special=is_special, normalized=False) for token in vocabulary.ids(kind)]
        (tokenizer.add_special_tokens if is_special else tokenizer.add_tokens)(added)


def _special_tokens(field: GGUFFields, vocabulary: Vocabulary) -> dict[str, str]:
    """Gives transformers' name -> text of the special tokens that the file names; what is no id names none."""
    names = {"bos_token": "bos", "eos_token": "eos", "unk_token": "unknown", "pad_token": "padding"}
    special = {}
    for ours, theirs in names.items():
        key = f"tokenizer.ggml.{theirs}_token_id"
        token_id = field.integer(key, None)
        if token_id is None:
            continue
        if 0 <= token_id < len(vocabulary.tokens):
            special[ours] = vocabulary.tokens[token_id]
        elif ours == "eos_token":
            raise CheckpointError(f"{field.where}: {key} {token_id} is no id below {len(vocabulary.tokens)}.")
        else:  # some writers mean none by -1, or by the largest number of 32 bits
            _logger.warning("%s: %s %d is no id, taken as none", field.where, key, token_id)
    return special


def _set_template(
    tokenizer: Tokenizer, field: GGUFFields, special: dict[str, str], *, adds_bos: bool, adds_eos: bool
) -> None:
    before, after = ["bos_token"] if adds_bos else [], ["eos_token"] if adds_eos else []
    for name in before + after:
        if name not in special:
            raise CheckpointError(f"{field.where}: texts are to get a {name}, but tokenizer.ggml names no id for it.")
    template = field.text("tokenizer.chat_template", None) or ""
    if "bos_token" in template and "bos_token" not in special and "tokenizer.ggml.bos_token_id" in field:
        raise CheckpointError(
            f"{field.where}: its chat template begins texts with bos_token, but tokenizer.ggml.bos_token_id is no id."
        )
    if before or after:
        set_surroundings(tokenizer, [special[name] for name in before], [special[name] for name in after])


def _wrap(tokenizer: Tokenizer, special: dict[str, str], chat_template: str | None, context_length: int) -> Any:
    wrapped = tokenizer_class()(
        tokenizer_object=tokenizer,
        model_max_length=context_length,
        clean_up_tokenization_spaces=False,
        **special,
    )
    if chat_template is not None:
        wrapped.chat_template = chat_template
    return wrapped
