"""transformers' tokenizer class, imported without a word."""

import os
from typing import Any

_HUSH = "TRANSFORMERS_NO_ADVISORY_WARNINGS"


def tokenizer_class() -> Any:
    """Gives `PreTrainedTokenizerFast`.

    Importing it takes a second, which `info` does without. Where there is no torch, transformers would say so, though nothing
    here needs it.
    """
    asked = os.environ.get(_HUSH)
    os.environ[_HUSH] = "1"
    try:
        from transformers import PreTrainedTokenizerFast
    finally:
        if asked is None:
            del os.environ[_HUSH]
        else:
            os.environ[_HUSH] = asked
    return PreTrainedTokenizerFast
