"""One line of a prompt file: what it may hold, and what it asks for."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from jax_probe_mtp.files.ids import content_digest
from jax_probe_mtp.files.json_lines import check_id, excerpt, json_lines
from jax_probe_mtp.files.records.foreign_settings import DO_SAMPLE, refuse_foreign
from jax_probe_mtp.files.records.openai_forms import of_batch_line, plain_messages
from jax_probe_mtp.files.records.record_fields import LIMITS, NEUTRAL, OF_PROMPT, OF_TEMPLATE, RULES, SETTINGS, SOURCES


@dataclasses.dataclass(frozen=True, kw_only=True)
class Record:
    """One line of a prompt file, or one of the answers that it asks for. One of `prompt`, `messages` and `prompt_ids` is set.

    Of the others, None leaves the choice to the run. A record without an id is known by what it asks for.
    """

    index: int  # among the lines of the file that are not blank, or among the answers that they ask for, from 0
    id: str | int  # the line's number where it has none
    content: int = dataclasses.field(default=0, compare=False)  # digest of all that it asks for, its id left out
    occurrence: int | None = None  # of a record without an id: which of its equals in the file it is, from 1
    n: int = 1  # answers that the line asks for
    sample: int = 0  # which of them, from 0
    prompt: str | None = None
    messages: list[dict[str, Any]] | None = None
    continue_final_message: bool | None = None
    tools: list[dict[str, Any]] | None = None
    documents: list[dict[str, Any]] | None = None
    template_kwargs: dict[str, Any] | None = None
    prompt_ids: list[int] | None = None
    max_new_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    seed: int | None = None
    stop: tuple[str, ...] | None = None
    repetition_penalty: float | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    min_tokens: int | None = None
    ignore_eos: bool | None = None
    stop_token_ids: tuple[int, ...] | None = None
    logit_bias: dict[str, float] | None = None

    @property
    def own_settings(self) -> dict[str, Any]:
        """Gives what the record sets in place of the run, as JSON has it."""
        own = {name: getattr(self, name) for name in SETTINGS if getattr(self, name) is not None}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in own.items()}

    @property
    def is_penalized(self) -> bool:
        """Says whether the record needs a program with penalties."""
        return any(getattr(self, name) not in (None, nothing) for name, nothing in NEUTRAL.items())

    @property
    def noise_name(self) -> str | None:
        """Gives the name that the record's noise is drawn by; None where that is its id."""
        return None if self.occurrence is None else f"{self.content:016x}.{self.occurrence}"

    def as_answered(self) -> dict[str, Any]:
        """Gives what an answer says of the record, so that it stays the answer to this record alone."""
        of_nameless = {} if self.occurrence is None else {"occurrence": self.occurrence}
        of_several = {} if self.n == 1 else {"sample": self.sample}
        return {"content": f"{self.content:016x}", **of_nameless, **of_several, **self.own_settings}

    def differs_from(self, answer: Mapping[str, Any]) -> str:
        """Says in what the record differs from the one of this id that was answered."""
        own, nothing = self.own_settings, "nothing of its own"
        then = {name: answer[name] for name in SETTINGS if name in answer}
        changed = [name for name in SETTINGS if then.get(name) != own.get(name)] if "content" in answer else []
        says = [f"{name} {then.get(name, nothing)!r} became {own.get(name, nothing)!r}" for name in changed]
        asked = {name: getattr(self, name) for name in OF_PROMPT}
        with_then = {name: value for name, value in asked.items() if value is not None} | then
        if answer.get("content") != f"{content_digest(with_then):016x}":
            says.append("its prompt is another")
        return ", ".join(says)[:200]


def parsed_records(
    path: Path, is_wanted: Callable[[int], bool] | None = None, *, num_samples: int = 1, are_answers: bool = False
) -> Iterator[tuple[Record, dict[str, Any], int, str]]:
    """Reads a file line by line.

    Args:
      path: the file.
      is_wanted: as in `json_lines`.
      num_samples: answers to a line that does not say how many it asks for.
      are_answers: True where each line holds one answer: what it says of `sample` is read, and how many were asked for is not.

    Yields:
      The record, its JSON object, the line's number, and its name for messages.
    """
    for index, number, where, line in json_lines(path, is_wanted):
        fields = of_batch_line(where, line)
        if not isinstance(fields, dict) or all(fields.get(source) is None for source in SOURCES):
            asked = 'an object with a text "prompt", or "messages" or "prompt_ids"'
            raise ValueError(f"{where} must be {asked}, got {excerpt(fields)}.")
        name = fields.get("id", number)
        check_id(where, name)
        values = checked_values(where, fields)
        n, sample = values.pop("n", num_samples), 0
        if are_answers:
            stated = fields.get("sample")
            n, sample = 1, stated if type(stated) is int else 0  # else it is another tool's
            if sample < 0:
                raise ValueError(f"{where}: sample must be a whole number of at least 0, got {excerpt(sample)}.")
        content = content_digest(values)
        yield Record(index=index, id=name, content=content, n=n, sample=sample, **values), fields, number, where


def checked_values(where: str, fields: Mapping[str, Any]) -> dict[str, Any]:
    """Checks what an object says of a record, by the names of a prompt file, and gives it as a `Record` holds it.

    Args:
      where: the record's name for messages.
      fields: the object; what a prompt file does not know is left out, or refused where it would change the answer.

    Raises:
      ValueError: names the record, the field and what is wrong with it.
    """
    values = {field: value for field, value in fields.items() if field in RULES and value is not None}
    given = [field for field in SOURCES if field in values]
    if len(given) > 1:
        raise ValueError(f"{where} has {' and '.join(given)}; give one of them.")
    for field, value in values.items():
        is_good, rule = RULES[field]
        if not is_good(value):
            raise ValueError(f"{where}: {field} must be {rule}, got {excerpt(value)}.")
    is_limit, _ = RULES["max_new_tokens"]
    for limit in LIMITS:
        if is_limit(fields.get(limit)):
            values.setdefault("max_new_tokens", fields[limit])
    refuse_foreign(where, {**fields, **values})  # two limits that differ, among others
    if "messages" in values:
        values["messages"] = plain_messages(where, values["messages"])
    for field in [name for name in OF_TEMPLATE if name in values]:
        if "prompt_ids" in values:
            raise ValueError(f"{where}: {field} is for the chat template, which prompt_ids do not pass; leave it out.")
        if not values[field]:
            del values[field]
    if fields.get(DO_SAMPLE) is False:
        values["temperature"] = 0.0  # also where the run has another
    if values.get("continue_final_message"):
        _check_continues(where, values.get("messages"))
    for field in values.keys() & {"temperature", "top_p"}:
        values[field] = float(values[field])
    if isinstance(values.get("stop"), str):
        values["stop"] = (values["stop"],)
    for field in values.keys() & {"stop", "stop_token_ids"}:
        values[field] = tuple(values[field])
    return values


def _check_continues(where: str, messages: list[dict[str, Any]] | None) -> None:
    if messages is None or messages[-1]["role"] != "assistant":
        there = "there are no messages" if messages is None else f"the last one is {excerpt(messages[-1]['role'])}'s"
        raise ValueError(
            f'{where}: continue_final_message is for messages that end with one of "assistant", but {there}; leave it out.'
        )
