"""Files of answers, and what a test says of them."""

import json
import re

from jax_probe_mtp.files.answer_file import AnswerFile

RUN = {"model": {"name": "a", "fingerprint": "f00"}, "settings": {"temperature": 0.0, "seed": 7}}
ONE = {"id": "one", "text": "été \u2028 \n", "finish_reason": "stop"}
TWO = {"id": 2, "text": "", "finish_reason": "error"}
THREE = {"id": "three", "text": "海", "finish_reason": "length"}


def ids_of(path):
    text = path.read_text(encoding="utf-8")
    assert text == "" or text.endswith("\n")
    return [json.loads(line)["id"] for line in text.split("\n")[:-1]]


def filled(path, *answers, run=RUN):
    with AnswerFile(path, run) as file:
        file.write(answers)
    return path


def counts(merged):
    """The answers that a merge wrote, and the records that have none."""
    return merged.num_written, merged.num_missing


def says(*parts):
    """Matches one line that holds the parts in this order."""
    return r"\A[^\n]*" + r"[^\n]*".join(re.escape(str(part)) for part in parts) + r"[^\n]*\Z"


def failing(number, reason):
    def fail(*_):
        raise OSError(number, reason)

    return fail
