"""What decides the tokens of a checkpoint's texts, as digests: two that agree in all of them are one model."""

import hashlib
from typing import Any

from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.fingerprint import model_identity, weights_digest


def identity(checkpoint: Checkpoint) -> dict[str, Any]:
    """Gives the model's name, its end-of-text ids, and digests of its shape, every weight, the tokenizer and its template."""
    return {
        **model_identity(checkpoint),
        "weights": weights_digest(checkpoint.params),
        "eos_token_ids": sorted(checkpoint.eos_token_ids),
        **text_identity(checkpoint.tokenizer),
    }


def text_identity(tokenizer: Any) -> dict[str, str]:
    """Gives digests of what decides the tokens of a text: the tokenizer, and its chat template with what it may print."""
    tokenizer("a")  # a tokenizer.json may bring padding or truncation, which the first call takes away
    template = [tokenizer.chat_template, sorted(map(repr, tokenizer.special_tokens_map.items()))]
    parts = {"tokenizer": tokenizer.backend_tokenizer.to_str(), "chat_template": repr(template)}
    return {name: hashlib.sha256(text.encode()).hexdigest()[:16] for name, text in parts.items()}
