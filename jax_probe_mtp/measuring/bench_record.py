"""Reads bench records, and refuses what is none before anything is made of it."""

import dataclasses
import json
from collections import Counter
from pathlib import Path
from types import NoneType
from typing import Any

from jax_probe_mtp.files.json_lines import excerpt

FORMAT = 1


@dataclasses.dataclass(frozen=True)
class _List:
    """A JSON list of values of one shape, as many as `length` where that is given."""

    each: Any
    length: int | None = None


@dataclasses.dataclass(frozen=True)
class _Named:
    """A JSON object with any keys, and values of one shape."""

    each: Any


# A shape is a tuple of the types that a value may have, a list, or an object with any keys or with these at least.
_TEXT = (str,)
_COUNT = (int,)
_MEASURE = (int, float, NoneType)  # null where nothing was measured
_PRINTED = (str, int, float, bool, NoneType)  # only ever printed as it is

# What the report and `--resume` read; nothing else of a record is looked at.
_RESULT = {
    "calls": _COUNT,
    "committed": _COUNT,
    "accepted_by_depth": _List(_COUNT),
    "seconds": (int, float),
    "prefill_seconds": (int, float),
    "difference": (str, NoneType),
}
_RUN = {
    "run": _TEXT,
    "rows_per_call": _COUNT,
    "tau": _MEASURE,
    "tau_by_category": _Named(_MEASURE),
    "call_reduction": _MEASURE,
    "calls": _COUNT,
    "accepted_by_depth": _List(_COUNT),
    "accepted_by_source": _Named(_COUNT),
    "exact_match": _MEASURE,
    "ties": _COUNT,
    "differences": _Named(_TEXT),
    "seconds": _MEASURE,
    "speedup_vs_ar": _MEASURE,
    "speedup_vs_ar_by_category": _Named(_MEASURE),
    "speedup_quartiles": _List(_MEASURE, length=3),
    "ms_per_call_quartiles": _List(_MEASURE, length=3),
    "by_question": _Named(_RESULT),
}
_RECORD = {
    "environment": {
        "jax_probe_mtp": _PRINTED,
        "git_commit": _PRINTED,
        "jax": _PRINTED,
        "jaxlib": _PRINTED,
        "numpy": _PRINTED,
        "python": _PRINTED,
        "backend": _PRINTED,
        "device": _PRINTED,
        "dtype": _PRINTED,
    },
    "model": {"name": _TEXT},
    "settings": {
        "questions": _PRINTED,
        "max_new_tokens": _PRINTED,
        "temperature": _PRINTED,
        "top_k": _PRINTED,
        "top_p": _PRINTED,
        "seed": _PRINTED,
        "batch_size": _PRINTED,
        "use_chat_template": _PRINTED,
    },
    "is_complete": (bool,),
    "questions": _List((int, str)),
    "categories": _Named(_TEXT),
    "skipped": _Named(_TEXT),
    "runs": _List(_RUN),
}


def read_record(path: Path) -> dict[str, Any]:
    """Reads a bench record; what the report reads of it has its type and does not contradict itself.

    Raises:
      ValueError: names the file and the first thing in it that no bench record has.
      OSError: if the file cannot be read.
    """
    try:
        record = json.loads(path.read_bytes(), parse_constant=lambda _: None)  # NaN is no measure either
    except (ValueError, RecursionError) as error:  # a number or a nesting too large for Python among them
        raise ValueError(f"{path} is not JSON that can be read ({error}).") from None
    try:
        _check(record, {}, "it")
        if record.get("format") != FORMAT:
            raise ValueError(f"format is {excerpt(record.get('format'))}, and {FORMAT} is what can be read")
        _check(record, _RECORD, "")
        _check_consistent(record)
    except ValueError as fault:
        raise ValueError(f"{path} is not a bench record ({fault}); give a file that the bench wrote.") from None
    return record


def categories(record: dict[str, Any]) -> Counter[str]:
    """How many questions each category has; categories in the order of the questions."""
    return Counter(record["categories"][str(question)] for question in record["questions"])


def _check(value: Any, shape: Any, where: str) -> None:
    """Raises a ValueError for the first place where a value is not of its shape."""
    if isinstance(shape, tuple):
        # Exact types: a bool is no int. What is larger than any measure would overflow later.
        is_too_large = isinstance(value, int | float) and abs(value) >= 1e15
        if type(value) not in shape or is_too_large:
            raise ValueError(f"{where} is {excerpt(value)}")
    elif isinstance(shape, _List):
        if not isinstance(value, list):
            raise ValueError(f"{where} is no list")
        if shape.length is not None and len(value) != shape.length:
            raise ValueError(f"{where} holds {len(value)} values, not {shape.length}")
        for i, item in enumerate(value):
            _check(item, shape.each, f"{where}[{i}]")
    elif not isinstance(value, dict):
        raise ValueError(f"{where} is no object")
    elif isinstance(shape, _Named):
        for key, item in value.items():
            _check(item, shape.each, f"{where}[{excerpt(key)}]")
    else:
        for key, inner in shape.items():
            inside = f"{where}.{key}" if where else key
            if key not in value:
                raise ValueError(f"{inside} is missing")
            _check(value[key], inner, inside)


def _check_consistent(record: dict[str, Any]) -> None:
    num_questions = len(record["questions"])
    if not record["runs"]:
        raise ValueError("runs is empty")
    if any(str(question) not in record["categories"] for question in record["questions"]):
        raise ValueError("a question has no category")
    for run in record["runs"]:
        name, num_different = excerpt(run["run"]), len(run["differences"])
        if run["rows_per_call"] < 1:
            raise ValueError(f"run {name} has {run['rows_per_call']} rows a call")
        if not 0 <= run["ties"] <= num_different:
            raise ValueError(f"run {name} has {run['ties']} ties among {num_different} differences")
        share_equal = 1 if run["exact_match"] is None else run["exact_match"]
        num_equal = num_questions - num_different
        if num_questions and abs(num_questions * share_equal - num_equal) > 0.5:  # nearer is the same whole number
            raise ValueError(
                f"run {name}: exact_match {run['exact_match']} of {num_questions}, but {num_different} differences"
            )
