"""Reads and sets which tokens a tokenizer puts around plain text."""

from collections.abc import Sequence

from tokenizers import Tokenizer, models, processors


def read_surroundings(tokenizer: Tokenizer) -> tuple[list[str], list[str]]:
    """Gives the tokens that plain encoding puts before and after a text; `tokenizer` is a `tokenizers.Tokenizer`."""
    if tokenizer.post_processor is None:
        return [], []
    # Of another tokenizer: this one may cut texts short or fill them up, and must not be changed to see what it adds.
    text = Tokenizer(models.WordLevel({"text": 0}, unk_token="text")).encode("text")
    encoded = tokenizer.post_processor.process(text)
    at = encoded.sequence_ids.index(0)
    return encoded.tokens[:at], encoded.tokens[at + 1 :]


def set_surroundings(tokenizer: Tokenizer, before: Sequence[str], after: Sequence[str]) -> None:
    """Makes plain encoding put these special tokens before and after a text, and no others."""
    tokenizer.post_processor = processors.TemplateProcessing(
        single=[*before, "$A", *after],
        pair=[*before, "$A", *after, *before, "$B", *after],
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in dict.fromkeys([*before, *after])],
    )
