"""Flags of the penalties, and of what ends a text besides the model's own tokens."""

import argparse
import json

from jax_probe_mtp.errors import one_line
from jax_probe_mtp.files.records.record_fields import RULES


def add_penalties(parser: argparse.ArgumentParser) -> None:
    """Adds what changes the model's distribution besides sampling, and what ends a text besides the model's own tokens."""
    of_text = "tokens that the answer holds"
    numbers = {
        "--repetition-penalty": "divides the logits of tokens that prompt or answer hold (default: 1, none)",
        "--presence-penalty": f"taken from the logits of {of_text} (default: 0)",
        "--frequency-penalty": "the same for each time that it holds them (default: 0)",
    }
    for flag, says in numbers.items():
        parser.add_argument(flag, type=float, metavar="P", help=says)
    parser.add_argument("--min-tokens", type=int, metavar="N", help="tokens before one that ends the text (default: 0)")
    parser.add_argument(
        "--ignore-eos", action="store_true", default=None, help="the model's end-of-text tokens end nothing"
    )
    parser.add_argument(
        "--stop-token-id",
        type=int,
        action="append",
        metavar="N",
        help="a token that ends an answer besides; may be repeated (default: none)",
    )
    parser.add_argument(
        "--logit-bias",
        metavar="JSON",
        help="what is added to the logits of tokens, such as '{\"5\": -100}' (default: none)",
    )


def logit_bias(text: str | None) -> dict[int, float] | None:
    """Reads the value of `--logit-bias`.

    Raises:
      ValueError: if it is no JSON object of ids and biases.
    """
    if text is None:
        return None
    is_biases, rule = RULES["logit_bias"]
    try:
        values = json.loads(text)
    except (ValueError, RecursionError):
        values = None
    if not is_biases(values):
        raise ValueError(f"--logit-bias must be {rule}, got {one_line(text)[:60]!r}.")
    return {int(token): bias for token, bias in values.items()}
