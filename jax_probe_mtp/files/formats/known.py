"""The formats that can be read, by the names that `--format` takes, and which of them a line is in."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

from jax_probe_mtp.files.formats import hf_generate, lm_eval, openai_batch, openai_chat, openai_completion, ours, vllm
from jax_probe_mtp.files.formats.given import GivenOutput, Item
from jax_probe_mtp.files.json_lines import excerpt

AUTO = "auto"
OURS = "ours"
MAX_KEYS = 12  # of a line, that a message names


@dataclasses.dataclass(frozen=True, kw_only=True)
class Format:
    """A way to write outputs.

    Attributes:
      name: what `--format` calls it.
      says: what it is, for people.
      needs: the keys that tell it.
      matches: says whether a line's value is in it.
      read: gives the outputs of a line.
      copies_by: a key whose values tell apart lines that hold the same outputs; the first value's are read.
      has_servers_ids: True where ids may be a server's own, which no file of prompts knows.
    """

    name: str
    says: str
    needs: str
    matches: Callable[[Any], bool]
    read: Callable[[Item], Iterator[GivenOutput]]
    copies_by: str | None = None
    has_servers_ids: bool = False


def _format(name: str, says: str, module: Any, **more: Any) -> Format:
    return Format(name=name, says=says, needs=module.NEEDS, matches=module.matches, read=module.read, **more)


FORMATS = {
    each.name: each
    for each in (
        _format(OURS, "answers of generate", ours),
        _format("vllm", "vLLM's RequestOutput", vllm),
        _format("openai-chat", "chat completion responses", openai_chat, has_servers_ids=True),
        _format("openai-completion", "completion responses", openai_completion, has_servers_ids=True),
        _format("openai-batch", "output lines of a batch", openai_batch),
        _format("lm-eval", "samples of lm-evaluation-harness", lm_eval, copies_by="filter"),
        _format("transformers", "outputs of transformers' generate or pipeline", hf_generate),
    )
}
NAMES = (AUTO, *FORMATS)


def recognised(value: Any) -> Format | None:
    """Gives the format that a line's value is in; ours where it could be ours."""
    if isinstance(value, dict) and "token_ids" in value:
        return FORMATS[OURS]
    found = [form for form in FORMATS.values() if form.matches(value)]
    return found[-1] if found else None  # ours is the first: a prompt alone does not make it


def unknown(where: str, value: Any) -> str:
    """Says that a value is in no known format, with its keys and what each format needs."""
    has = excerpt(value)
    if isinstance(value, dict):
        names = [f"{name!r:.40}" for name in list(value)[:MAX_KEYS]]
        has = f"the keys {', '.join(names)}{', ...' if len(value) > MAX_KEYS else ''}" if names else "no keys"
    needs = "; ".join(f"{form.name} needs {form.needs}" for form in FORMATS.values())
    return f"{where} is in no known format: it has {has}, but {needs}."


def check_is(form: Format, item: Item) -> None:
    """Raises ValueError unless a line is in the file's format; it names the format that it is in."""
    other = recognised(item.value)
    if other is form or (
        form.name != OURS and form.matches(item.value)
    ):  # a prompt beside others' keys makes none of ours
        return
    if other is None:
        raise ValueError(unknown(item.where, item.value))
    way_out = "give files of one format, or the right --format"
    raise ValueError(f"{item.where} is {other.name}, but the file is read as {form.name}; {way_out}.")
