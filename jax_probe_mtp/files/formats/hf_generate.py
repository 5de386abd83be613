"""Reads what transformers gives: sequences of `generate`, and texts of its text-generation pipeline.

The names are those of transformers' `generation/utils.py` (`GenerateDecoderOnlyOutput`) and
`pipelines/text_generation.py`. Both begin with the prompt unless `return_full_text` is false.
"""

from collections.abc import Iterator
from typing import Any

from jax_probe_mtp.files.formats.given import GivenOutput, Item, category_of, objects, record_of, whole_numbers
from jax_probe_mtp.files.json_lines import excerpt
from jax_probe_mtp.files.records.record_fields import SOURCES

NEEDS = '"sequences", "generated_token_ids" or "generated_text"'
_OUTPUTS = ("sequences", "generated_token_ids", "generated_text")
_NO_SETTINGS = {*_OUTPUTS, *SOURCES, "seed", "return_full_text"}  # the seed is of another noise


def matches(value: Any) -> bool:
    """Says whether a value is an output, or a list of several to one prompt."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(each, dict) and matches(each) for each in value)
    return isinstance(value, dict) and bool(set(_OUTPUTS) & value.keys())


def read(item: Item) -> Iterator[GivenOutput]:
    """Gives all outputs to one prompt.

    Raises:
      ValueError: names the line, the field and what is wrong with it.
    """
    sample = 0
    for fields in item.value if isinstance(item.value, list) else [item.value]:
        prompt, num_padding = _prompt(item.where, fields)
        settings = {name: value for name, value in fields.items() if name not in _NO_SETTINGS}
        for output in _outputs(item.where, fields, num_padding):
            own = prompt
            if "messages" in output:  # the pipeline's answer to a conversation, which holds all of it
                own = {"messages": output.pop("messages")}
            yield GivenOutput(
                record=record_of(item, fields.get("id", item.number), {**settings, **own}, sample=sample),
                is_named="id" in fields,
                is_plain_prompt="prompt" in own,
                category=category_of(item.where, fields),
                **output,
            )
            sample += 1


def _prompt(where: str, fields: dict[str, Any]) -> tuple[dict[str, Any], int]:
    """Gives the prompt, and how many tokens of padding are in front of it."""
    prompt = {source: fields[source] for source in SOURCES if fields.get(source) is not None}
    if (ids := fields.get("input_ids")) is None:
        return prompt, 0
    ids = whole_numbers(where, "input_ids", _only(where, "input_ids", ids))
    mask = fields.get("attention_mask")
    mask = [1] if mask is None else whole_numbers(where, "attention_mask", _only(where, "attention_mask", mask))
    num_padding = mask.index(1) if 1 in mask else 0
    return {"prompt_ids": ids[num_padding:]}, num_padding


def _outputs(where: str, fields: dict[str, Any], num_padding: int) -> Iterator[dict[str, Any]]:
    name = next((name for name in _OUTPUTS if fields.get(name) is not None), _OUTPUTS[-1])
    output = fields.get(name)
    includes_prompt = fields.get("return_full_text") is not False
    if name != "generated_text":
        rows = output if isinstance(output, list) and output and isinstance(output[0], list) else [output]
        for row in rows:
            token_ids = whole_numbers(where, name, row)[num_padding:]
            yield {"token_ids": token_ids, "includes_prompt": includes_prompt, "is_padded": True}
    elif isinstance(output, list):
        messages = objects(where, name, output)
        if len(messages) < 2 or not isinstance(messages[-1].get("content"), str):
            raise ValueError(f"{where}: generated_text must end with the answer to a message, got {excerpt(output)}.")
        yield {"text": messages[-1]["content"], "messages": messages[:-1]}
    elif isinstance(output, str):
        yield {"text": output, "includes_prompt": includes_prompt}
    else:
        raise ValueError(f"{where}: generated_text must be a text or a list of messages, got {excerpt(output)}.")


def _only(where: str, name: str, value: Any) -> Any:
    """Gives the one row of an array of one prompt, or the row itself."""
    if isinstance(value, list) and value and isinstance(value[0], list):
        if len(value) > 1:
            raise ValueError(f"{where}: {name} holds {len(value)} prompts; write one object for each.")
        return value[0]
    return value
