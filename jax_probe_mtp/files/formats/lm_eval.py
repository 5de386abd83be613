"""Reads samples of lm-evaluation-harness (`--log_samples`) of tasks that generate text.

The names are those of its `lm_eval/evaluator.py` (what a sample holds), `lm_eval/loggers/evaluation_tracker.py` (how it is
written) and `lm_eval/models/huggingface.py` (what settings mean).
"""

import json
from collections.abc import Iterator
from typing import Any

from jax_probe_mtp.files.formats.given import GivenOutput, Item, category_of, record_of
from jax_probe_mtp.files.json_lines import excerpt

NEEDS = '"doc_id", "arguments" and "resps"'
_RENAMED = {"until": "stop", "max_gen_toks": "max_new_tokens"}


def matches(value: Any) -> bool:
    """Says whether a value is such a sample."""
    return isinstance(value, dict) and {"doc_id", "arguments", "resps"} <= value.keys()


def read(item: Item) -> Iterator[GivenOutput]:
    """Gives the outputs of one document, of which `resps` has several where a task asks several times.

    The prompt is the text that the model was given, its chat template and examples included.

    Raises:
      ValueError: names the line, the field and what is wrong with it.
    """
    where, fields = item.where, item.value
    prompt, settings = _request(where, fields["arguments"])
    texts = fields["resps"]
    if isinstance(texts, list) and len(texts) == 1 and isinstance(texts[0], list):
        texts = texts[0]
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{where}: resps must be one list of texts, got {excerpt(fields['resps'])}.")
    for sample, text in enumerate(texts):
        yield GivenOutput(
            record=record_of(item, fields["doc_id"], {**settings, **prompt}, sample=sample),
            is_plain_prompt=True,
            text=text,
            category=category_of(where, fields),
        )


def _request(where: str, arguments: Any) -> tuple[dict[str, Any], dict[str, Any]]:
    """Gives prompt and settings of the one request of a document: a list or, in files, an object of numbered keys."""
    requests = list(arguments.values()) if isinstance(arguments, dict) else arguments
    if isinstance(requests, list) and len(requests) == 2 and isinstance(requests[1], dict) and "until" in requests[1]:
        requests = [requests]
    if not isinstance(requests, list) or len(requests) != 1:
        raise ValueError(f"{where}: arguments must be those of one request, got {excerpt(arguments)}.")
    request = list(requests[0].values()) if isinstance(requests[0], dict) else requests[0]
    if not isinstance(request, list) or len(request) != 2 or not isinstance(request[1], dict):
        asked = "a prompt and the settings of generate_until"
        raise ValueError(
            f"{where}: arguments must be {asked}, got {excerpt(request)}; leave tasks of another kind out."
        )
    return _prompt(where, request[0]), _settings(where, request[1])


def _prompt(where: str, prompt: Any) -> dict[str, Any]:
    """Gives the prompt: a text or, for models behind a chat API, a conversation as JSON in a list of one text."""
    if isinstance(prompt, str):
        return {"prompt": prompt}
    try:
        return {"messages": json.loads(prompt[0])}
    except (ValueError, TypeError, LookupError, RecursionError):
        raise ValueError(f"{where}: the prompt must be a text, got {excerpt(prompt)}.") from None


def _settings(where: str, given: dict[str, Any]) -> dict[str, Any]:
    settings = {_RENAMED.get(name, name): value for name, value in given.items()}
    if isinstance(settings.get("stop"), list):  # an empty one stops nothing there
        settings["stop"] = [text for text in settings["stop"] if text != ""]
    if settings.get("do_sample") is False or settings.get("temperature") == 0:  # a temperature is then not read
        settings |= {"do_sample": False, "temperature": 0.0}
    return settings
