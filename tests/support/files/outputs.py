"""What tests of formats share: a place for a line, a reader, and a line in each format."""

import dataclasses

import pytest

from jax_probe_mtp.files.formats.given import Item
from jax_probe_mtp.files.formats.known import FORMATS

ITEM = Item(index=4, number=7, where="f.jsonl, line 7", value=None)

OURS = {"id": "a", "prompt_ids": [1], "token_ids": [7]}
VLLM = {"request_id": "a", "prompt_token_ids": [1], "outputs": [{"index": 0, "token_ids": [7], "text": "x"}]}
CHAT = {"id": "a", "object": "chat.completion", "choices": [{"message": {"content": "x"}}]}
COMPLETION = {"id": "a", "object": "text_completion", "choices": [{"text": "x"}]}
BATCH = {"id": "b", "custom_id": "a", "response": {"status_code": 200, "body": CHAT}, "error": None}
SAMPLE = {"doc_id": "a", "arguments": [["p", {"until": ["\n"]}]], "resps": [["x"]], "filter": "none"}
GENERATED = {"id": "a", "generated_text": "x"}
ALL = dict(zip(FORMATS, [OURS, VLLM, CHAT, COMPLETION, BATCH, SAMPLE, GENERATED], strict=True))
PROMPTS = [{"id": "b", "prompt": "for b"}, {"id": "a", "prompt": "for a"}]


def read(form, value):
    return list(form.read(dataclasses.replace(ITEM, value=value)))


def refused(make):
    with pytest.raises(ValueError) as error:  # noqa: PT011
        make()
    assert "\n" not in str(error.value)
    return str(error.value)
