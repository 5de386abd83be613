"""Reads bench records, and refuses a file that is none before anything is made of it."""

import contextlib
import json
from collections import Counter
from pathlib import Path
from types import NoneType
from typing import Any

from jax_probe_mtp.drafting.mask_tokens import EARLIER_INIT
from jax_probe_mtp.drafting.spec import renewed_name
from jax_probe_mtp.files.json_lines import excerpt

FORMAT = 2
READABLE = (1, FORMAT)

_COUNT, _NUMBER, _TEXT = (int,), (int, float), (str,)
_MEASURE = (*_NUMBER, NoneType)  # null where nothing was measured
_PRINTED = (*_MEASURE, str, bool)  # only ever printed as it is
_VERSIONS = ("jax_probe_mtp", "git_commit", "jax", "jaxlib", "numpy", "python", "backend", "device", "dtype")
_ASKED = ("questions", "max_new_tokens", "temperature", "top_k", "top_p", "seed", "batch_size", "use_chat_template")
_RESULT = {
    **dict.fromkeys(("calls", "committed"), _COUNT),
    **dict.fromkeys(("seconds", "prefill_seconds"), _NUMBER),
    "accepted_by_depth": [_COUNT],
    "accepted_by_kind": {str: _COUNT},
    "difference": (str, NoneType),
}
_RUN = {
    "run": _TEXT,
    **dict.fromkeys(("rows_per_call", "calls", "ties"), _COUNT),
    **dict.fromkeys(
        ("tau", "call_reduction", "exact_match", "seconds", "tokens_per_second", "speedup_vs_ar"), _MEASURE
    ),
    "tau_by_category": {str: _MEASURE},
    "speedup_vs_ar_by_category": {str: _MEASURE},
    "speedup_quartiles": [_MEASURE] * 3,
    "ms_per_call_quartiles": [_MEASURE] * 3,
    "accepted_by_depth": [_COUNT],
    "accepted_by_source": {str: _COUNT},
    "differences": {str: _TEXT},
    "by_question": {str: _RESULT},
}
# What the report and `--resume` read, drawn as it lies in the file: a tuple holds the types that a value may have, a list of
# one item stands for any number of such items, and the key `str` for any keys. Nothing else of a record is looked at.
_RECORD = {
    "environment": dict.fromkeys(_VERSIONS, _PRINTED),
    "model": {"name": _TEXT},
    "settings": dict.fromkeys(_ASKED, _PRINTED),
    "is_complete": (bool,),
    "questions": [(int, str)],
    "categories": {str: _TEXT},
    "skipped": {str: _TEXT},
    "runs": [_RUN],
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
        if record.get("format") not in READABLE:
            raise ValueError(f"format is {excerpt(record.get('format'))}, and {FORMAT} is what can be read")
        _renew(record)
        _check(record, _RECORD, "")
        _check_consistent(record)
    except ValueError as fault:
        raise ValueError(f"{path} is not a bench record ({fault}); give a file that the bench wrote.") from None
    return record


def _renew(record: dict[str, Any]) -> None:
    """Gives a record of an earlier version today's names of draft sources, and its answers their drafts by kind."""
    without_init = EARLIER_INIT if record["format"] == 1 else None
    with contextlib.suppress(AttributeError, KeyError, TypeError):  # what has no such form is refused afterwards
        if isinstance(record["settings"].get("runs"), list):
            record["settings"]["runs"] = [
                renewed_name(name, without_init=without_init) for name in record["settings"]["runs"]
            ]
        for run in record["runs"]:
            run["run"] = renewed_name(run["run"], without_init=without_init)
            kinds = list(run["accepted_by_source"])
            for result in run["by_question"].values():
                result.setdefault("accepted_by_kind", dict.fromkeys(kinds, sum(result["accepted_by_depth"])))


def categories(record: dict[str, Any]) -> Counter[str]:
    """Counts the questions of each category; categories in the order of the questions."""
    return Counter(record["categories"][str(question)] for question in record["questions"])


def _check(value: Any, drawn: Any, where: str) -> None:
    """Raises a ValueError for the first place where a value is not as `_RECORD` draws it."""
    if isinstance(drawn, tuple):
        # Exact types: a bool is no int. What is larger than any measure would overflow later.
        if type(value) not in drawn or (isinstance(value, int | float) and abs(value) >= 1e15):
            raise ValueError(f"{where} is {excerpt(value)}")
    elif type(value) is not type(drawn):
        raise ValueError(f"{where} is no {'list' if isinstance(drawn, list) else 'object'}")
    elif isinstance(drawn, list):
        if len(drawn) not in (1, len(value)):
            raise ValueError(f"{where} holds {len(value)} values, not {len(drawn)}")
        for i, item in enumerate(value):
            _check(item, drawn[0], f"{where}[{i}]")
    elif str in drawn:
        for key, item in value.items():
            _check(item, drawn[str], f"{where}[{excerpt(key)}]")
    else:
        for key, inner in drawn.items():
            inside = f"{where}.{key}".lstrip(".")
            if key not in value:
                raise ValueError(f"{inside} is missing")
            _check(value[key], inner, inside)


def _check_consistent(record: dict[str, Any]) -> None:
    """Raises a ValueError where a record contradicts itself."""
    num_questions = len(record["questions"])
    if not record["runs"]:
        raise ValueError("runs is empty")
    ends = record["settings"].get("eos_token_ids")  # earlier versions did not write it
    if ends is not None and not isinstance(ends, list):
        raise ValueError(f"settings.eos_token_ids is {excerpt(ends)}")
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
