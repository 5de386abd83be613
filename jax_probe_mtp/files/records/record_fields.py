"""What the fields of a record may hold."""

import argparse
import math
import sys
from collections.abc import Callable
from typing import Any

from jax_probe_mtp.errors import positive
from jax_probe_mtp.files.records.foreign_settings import DO_SAMPLE

MAX_STOPS = 16
MAX_SAMPLES = 10_000  # of a line: each takes some bytes before anything runs


def num_samples(text: str) -> int:
    """Reads an argument that says how many answers each prompt gets."""
    value = positive(text)
    if value > MAX_SAMPLES:
        raise argparse.ArgumentTypeError(f"must be at most {MAX_SAMPLES}, got {value}")
    return value


def _is_whole(value: object, least: int, most: float = math.inf) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and least <= value <= most


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_message(value: Any) -> bool:
    return isinstance(value, dict) and isinstance(value.get("role"), str)


def _is_objects(value: Any) -> bool:
    return isinstance(value, list) and all(isinstance(item, dict) for item in value)


def _is_stop(value: object) -> bool:
    texts = [value] if isinstance(value, str) else value
    return isinstance(texts, list) and len(texts) <= MAX_STOPS and all(isinstance(text, str) and text for text in texts)


def _is_biases(value: object) -> bool:
    is_bias, _ = _between(-100, 100)
    return isinstance(value, dict) and all(map(_is_id, value)) and all(map(is_bias, value.values()))


def _is_id(text: str) -> bool:
    """Says whether a text is a token id as JSON writes numbers: no two texts are the same id."""
    return text.isascii() and text.isdecimal() and len(text) < 10 and str(int(text)) == text


def _between(least: float, most: float) -> tuple[Callable[[Any], object], str]:
    return lambda value: _is_number(value) and least <= value <= most, f"a number from {least} to {most}"


SOURCES = ("prompt", "messages", "prompt_ids")
# field -> what is asked of its value, and how a message says so
RULES: dict[str, tuple[Callable[[Any], object], str]] = {
    "prompt": (lambda value: isinstance(value, str), "a text"),
    "messages": (
        lambda value: isinstance(value, list) and value and all(map(_is_message, value)),
        'a list of objects, at least one, each with a text "role" and a "content"',
    ),
    "tools": (_is_objects, "a list of objects"),
    "documents": (_is_objects, "a list of objects"),
    "template_kwargs": (lambda value: isinstance(value, dict), "an object"),
    "prompt_ids": (
        lambda value: isinstance(value, list) and all(_is_whole(item, 0) for item in value),
        "a list of whole numbers from 0",
    ),
    "continue_final_message": (lambda value: isinstance(value, bool), "true or false"),
    "max_new_tokens": (lambda value: _is_whole(value, 1), "a whole number of at least 1"),
    "temperature": (lambda value: _is_number(value) and 0 <= value <= sys.float_info.max, "a number of at least 0"),
    "top_p": (lambda value: _is_number(value) and 0 < value <= 1, "a number above 0 and at most 1"),
    "top_k": (lambda value: _is_whole(value, 0), "a whole number of at least 0"),
    "seed": (lambda value: _is_whole(value, 0, 2**32 - 1), "a whole number from 0 to 2**32 - 1"),
    "repetition_penalty": _between(0.01, 100),
    "presence_penalty": _between(-2, 2),
    "frequency_penalty": _between(-2, 2),
    "min_tokens": (lambda value: _is_whole(value, 0), "a whole number of at least 0"),
    "ignore_eos": (lambda value: isinstance(value, bool), "true or false"),
    "stop_token_ids": (
        lambda value: isinstance(value, list) and all(_is_whole(item, 0) for item in value),
        "a list of whole numbers from 0",
    ),
    "logit_bias": (_is_biases, 'an object of token ids and numbers from -100 to 100, such as {"5": -100}'),
    "stop": (_is_stop, f"a text or a list of at most {MAX_STOPS} texts, none of them empty"),
    "n": (lambda value: _is_whole(value, 1, MAX_SAMPLES), f"a whole number from 1 to {MAX_SAMPLES}"),
}
NEUTRAL = {  # of the settings that need a program with penalties: with these values they do nothing
    "repetition_penalty": 1,
    "presence_penalty": 0,
    "frequency_penalty": 0,
    "min_tokens": 0,
    "ignore_eos": False,
    "stop_token_ids": (),
    "logit_bias": {},
}
LIMITS = ("max_tokens", "max_completion_tokens")
OF_TEMPLATE = ("tools", "documents", "template_kwargs")
OF_PROMPT = (*SOURCES, *OF_TEMPLATE, "continue_final_message")
SETTINGS = tuple(name for name in RULES if name not in {*OF_PROMPT, "n"})  # n changes no answer
FIELDS = {"id", DO_SAMPLE, *LIMITS, *RULES}
