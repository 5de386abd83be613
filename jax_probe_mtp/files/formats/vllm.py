"""Reads dumps of vLLM's `RequestOutput`, of which each holds the outputs of one prompt.

The names are those of vLLM's `vllm/outputs.py`, `vllm/logprobs.py` and `vllm/sampling_params.py`.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from jax_probe_mtp.files.formats.given import (
    GivenOutput,
    Item,
    all_numbers,
    category_of,
    objects,
    optional_text,
    record_of,
    sample_of,
    stop_reason_of,
    whole_numbers,
)
from jax_probe_mtp.files.json_lines import excerpt
from jax_probe_mtp.files.records.record_fields import SOURCES

NEEDS = '"outputs", a list of objects with "token_ids", and "request_id" or "prompt_token_ids"'
_UNUSED = {"seed", "skip_special_tokens", "include_stop_str_in_output"}  # of other noise, and of the text alone
_DEFAULTS = {"temperature": 1.0, "max_tokens": 16}  # of vLLM's SamplingParams, which leaves them out when it is dumped


def matches(value: Any) -> bool:
    """Says whether a value is such a dump."""
    return (
        isinstance(value, dict)
        and isinstance(value.get("outputs"), list)
        and bool({"request_id", "prompt_token_ids"} & value.keys())
    )


def read(item: Item) -> Iterator[GivenOutput]:
    """Gives all outputs of one request.

    Raises:
      ValueError: names the line, the field and what is wrong with it.
    """
    where, fields = item.where, item.value
    name = next((fields[key] for key in ("id", "request_id") if fields.get(key) is not None), None)
    prompt = {source: fields[source] for source in SOURCES if fields.get(source) is not None}
    if fields.get("prompt_token_ids") is not None:  # what the prompt was in the end
        prompt = {"prompt_ids": whole_numbers(where, "prompt_token_ids", fields["prompt_token_ids"])}
    settings = sampling(where, fields.get("sampling_params"))
    for place, output in enumerate(objects(where, "outputs", fields["outputs"])):
        token_ids = whole_numbers(where, "token_ids", output.get("token_ids"))
        yield GivenOutput(
            record=record_of(
                item,
                item.number if name is None else name,
                {**settings, **prompt},
                sample=sample_of(where, "index", output.get("index"), place),
            ),
            is_named=name is not None,
            is_plain_prompt="prompt" in prompt,
            token_ids=token_ids,
            text=optional_text(where, "text", output.get("text")),
            logprobs=_logprobs(output.get("logprobs"), token_ids),
            finish_reason=optional_text(where, "finish_reason", output.get("finish_reason")),
            says_stop_reason="stop_reason" in output,
            stop_reason=stop_reason_of(where, output),
            category=category_of(where, fields),
        )


def sampling(where: str, params: object) -> dict[str, Any]:
    """Gives the settings of dumped `SamplingParams` by the names of a prompt file; nothing where there are none.

    Raises:
      ValueError: if they are no object.
    """
    if params is None:
        return {}
    if not isinstance(params, Mapping):
        raise ValueError(f"{where}: sampling_params must be an object, got {excerpt(params)}.")
    settings = {name: value for name, value in params.items() if name not in _UNUSED}
    settings = {**_DEFAULTS, **settings}
    if settings.get("top_k") == -1:  # all tokens
        settings["top_k"] = 0
    return settings


def _logprobs(places: object, token_ids: list[int]) -> list[float] | None:
    """Gives the log-probability of each token, out of those that each place has for several tokens, by their ids."""
    if isinstance(places, dict):
        places = _places(places)
    if not isinstance(places, list) or len(places) != len(token_ids):
        return None
    pairs = zip(places, token_ids, strict=True)
    found = [place.get(str(token)) if isinstance(place, dict) else None for place, token in pairs]
    return all_numbers([each.get("logprob") if isinstance(each, dict) else each for each in found])


def _places(flat: dict[str, Any]) -> list[dict[str, Any]] | None:
    """Gives the places of `FlatLogprobs`, which keeps those of all places in one list; None where the lists do not fit.

    Place i has the tokens from `start_indices[i]` to the one before `end_indices[i]`.
    """
    starts, ends, ids, logprobs = (flat.get(n) for n in ("start_indices", "end_indices", "token_ids", "logprobs"))
    if not (
        isinstance(starts, list) and isinstance(ends, list) and isinstance(ids, list) and isinstance(logprobs, list)
    ):
        return None
    if len(starts) != len(ends) or len(ids) != len(logprobs):
        return None
    ranges = list(zip(starts, ends, strict=True))
    if not all(type(n) is int for pair in ranges for n in pair) or any(not 0 <= a <= b <= len(ids) for a, b in ranges):
        return None
    tokens = list(map(str, ids))
    return [dict(zip(tokens[a:b], logprobs[a:b], strict=True)) for a, b in ranges]
