"""Token ids of outputs that are text alone, or that begin with their prompts."""

from jax_probe_mtp.jobs.text_ids.given_ids import given_ids, without_prompt, without_second_bos
from jax_probe_mtp.jobs.text_ids.of_text import TextIds, cut_with, ids_of_text, is_other_cut, shown_bytes
from jax_probe_mtp.jobs.text_ids.of_tokens import ids_of_token_texts

__all__ = [
    "TextIds",
    "cut_with",
    "given_ids",
    "ids_of_text",
    "ids_of_token_texts",
    "is_other_cut",
    "shown_bytes",
    "without_prompt",
    "without_second_bos",
]
