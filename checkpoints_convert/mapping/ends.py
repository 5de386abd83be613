"""Checks the ids that end a text: those that a checkpoint names, and those that a user gives in their place."""

import argparse
from collections.abc import Iterable
from typing import Any

import numpy as np

from checkpoints_convert.errors import CheckpointError

HOW_TO_GIVE = "--eos-token-id (eos_token_ids=[...] in Python)"


def add_flag(parser: argparse.ArgumentParser) -> None:
    """Adds the flag that says which tokens end a text."""
    parser.add_argument(
        "--eos-token-id",
        type=int,
        action="append",
        metavar="N",
        help="a token that ends a text, in place of those that the model names; may be repeated",
    )


def checked_ids(ids: Iterable[Any], vocab_size: int, named: str) -> tuple[int, ...]:
    """Gives each id once, in order.

    Args:
      ids: the ids.
      vocab_size: V; ids are below it.
      named: who names them, for messages.

    Raises:
      CheckpointError: if one is no id of the vocabulary.
    """
    found: dict[int, None] = {}
    for token_id in ids:
        if not isinstance(token_id, int | np.integer) or isinstance(token_id, bool) or not 0 <= token_id < vocab_size:
            raise CheckpointError(f"{named} {token_id!r:.80} is no id below {vocab_size}.")
        found[int(token_id)] = None
    return tuple(found)


def given_ids(ids: Any, vocab_size: int) -> tuple[int, ...]:
    """Checks the ids that a user gives.

    Raises:
      CheckpointError: if they are no list, there is none or one is no id of the vocabulary.
    """
    if isinstance(ids, str) or not isinstance(ids, Iterable) or not (listed := list(ids)):
        raise CheckpointError(f"{HOW_TO_GIVE} must give at least one id in a list, got {ids!r:.80}; or leave it out.")
    return checked_ids(listed, vocab_size, HOW_TO_GIVE)
