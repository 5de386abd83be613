"""Reads what transformers gives: sequences of `generate`, and texts of its text-generation pipeline.

The names are those of transformers' `generation/utils.py` (`GenerateDecoderOnlyOutput`) and
`pipelines/text_generation.py`. Both begin with the prompt unless `return_full_text` is false. A batch of prompts is one object:
`sequences` [B n, T], of which rows i n to i n + n - 1 are prompt i's, `input_ids` [B, P] and, where it is padded in front,
`attention_mask` [B, P].
"""

from collections.abc import Iterator
from typing import Any

from jax_probe_mtp.files.formats.given import GivenOutput, Item, category_of, objects, record_of, whole_numbers
from jax_probe_mtp.files.json_lines import check_id, excerpt
from jax_probe_mtp.files.records.record_fields import SOURCES

NEEDS = '"sequences", "generated_token_ids" or "generated_text"'
_OUTPUTS = ("sequences", "generated_token_ids", "generated_text")
_NO_SETTINGS = {*_OUTPUTS, *SOURCES, "num_return_sequences", "seed", "return_full_text"}  # the seed is of another noise


def matches(value: Any) -> bool:
    """Says whether a value is an output, or a list of several to one prompt."""
    if isinstance(value, list):
        return bool(value) and all(isinstance(each, dict) and matches(each) for each in value)
    return isinstance(value, dict) and bool(set(_OUTPUTS) & value.keys())


def read(item: Item) -> Iterator[GivenOutput]:
    """Gives all outputs to one prompt, or to each prompt of a batch, which has as many for each, one prompt after the other.

    Raises:
      ValueError: names the line, the field and what is wrong with it.
    """
    where, first = item.where, 0
    for fields in item.value if isinstance(item.value, list) else [item.value]:
        prompts, outputs = _prompts(where, fields), list(_outputs(where, fields))
        each = _outputs_each(where, fields, len(outputs), len(prompts))
        names = _names(item, fields, len(prompts))
        settings = {name: value for name, value in fields.items() if name not in _NO_SETTINGS}
        for place, output in enumerate(outputs):
            own, num_padding = prompts[place // each]
            if "messages" in output:  # the pipeline's answer to a conversation, which holds all of it
                own = {"messages": output.pop("messages")}
            elif "token_ids" in output and output["includes_prompt"]:
                output["token_ids"] = output["token_ids"][num_padding:]
            yield GivenOutput(
                record=record_of(item, names[place // each], {**settings, **own}, sample=first + place % each),
                is_named="id" in fields,
                is_plain_prompt="prompt" in own,
                category=category_of(where, fields),
                **output,
            )
        first += each


def _prompts(where: str, fields: dict[str, Any]) -> list[tuple[dict[str, Any], int]]:
    """Gives each prompt, and how many tokens of padding are in front of it."""
    if fields.get("input_ids") is None:
        return [({source: fields[source] for source in SOURCES if fields.get(source) is not None}, 0)]
    prompts = _rows(where, "input_ids", fields["input_ids"])
    if fields.get("attention_mask") is None:
        return [({"prompt_ids": ids}, 0) for ids in prompts]
    masks = _rows(where, "attention_mask", fields["attention_mask"])
    sizes, own = ([len(row) for row in rows] for rows in (masks, prompts))
    if sizes != own:
        says = f"has rows of {excerpt(sizes)} numbers, but input_ids of {excerpt(own)}"
        raise ValueError(f"{where}: attention_mask {says}; give a number for each token.")
    found = []
    for ids, mask in zip(prompts, masks, strict=True):
        num_padding = mask.count(0)
        if mask != [0] * num_padding + [1] * (len(mask) - num_padding):
            asked = "0 for padding in front of a prompt and 1 for its tokens"
            raise ValueError(f"{where}: attention_mask must be {asked}, got {excerpt(mask)}; pad on the left.")
        found.append(({"prompt_ids": ids[num_padding:]}, num_padding))
    return found


def _names(item: Item, fields: dict[str, Any], num_prompts: int) -> list[Any]:
    """Gives an id for each prompt: a list's, else the one there is or the line's number, in a batch with .1, .2, ... behind."""
    name = fields.get("id", item.number)
    if isinstance(name, list):
        if len(name) != num_prompts:
            raise ValueError(
                f"{item.where}: id holds {len(name)} ids, but there are {num_prompts} prompts; give as many."
            )
        return name
    check_id(item.where, name)
    return [name] if num_prompts == 1 else [f"{name}.{place}" for place in range(1, num_prompts + 1)]


def _outputs_each(where: str, fields: dict[str, Any], num_outputs: int, num_prompts: int) -> int:
    """Counts the outputs to each prompt of a batch, which `num_return_sequences` may state; all of them where there is one."""
    if num_prompts == 1:
        return num_outputs
    stated = fields.get("num_return_sequences")
    each = num_outputs // num_prompts if stated is None else stated
    if type(each) is not int or each * num_prompts != num_outputs:
        of_each = "" if stated is None else f" with num_return_sequences {excerpt(stated)}"
        counts = f"there are {num_outputs} outputs to {num_prompts} prompts of input_ids{of_each}"
        raise ValueError(f"{where}: {counts}; give as many rows of sequences for each.")
    return each


def _outputs(where: str, fields: dict[str, Any]) -> Iterator[dict[str, Any]]:
    name = next((name for name in _OUTPUTS if fields.get(name) is not None), _OUTPUTS[-1])
    output = fields.get(name)
    includes_prompt = fields.get("return_full_text") is not False
    if name != "generated_text":
        for token_ids in _rows(where, name, output):
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


def _rows(where: str, name: str, value: Any) -> list[list[int]]:
    """Gives the rows of an array of token ids, or the one row itself."""
    rows = value if isinstance(value, list) and value and isinstance(value[0], list) else [value]
    return [whole_numbers(where, name, row) for row in rows]
