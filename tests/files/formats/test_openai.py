"""Responses of OpenAI's API and of vLLM's server, alone and as lines of batches.

Fixtures follow OpenAI's API reference (version 2.3.0): "The chat completion object", "The completion object" and, of Batch,
"The request output object"; and vLLM's vllm/entrypoints/openai/chat_completion/protocol.py and completion/protocol.py of 2026
for `token_ids`, `prompt_token_ids`, `stop_reason` and tokens named "token_id:7" (--return-tokens-as-token-ids).
"""

import pytest
from support.files.outputs import ITEM, read

from jax_probe_mtp.files.formats import openai_batch, openai_chat, openai_completion
from jax_probe_mtp.files.formats.given import GivenOutput
from jax_probe_mtp.files.records.record import Record

CHOICE = {
    "index": 0,
    "message": {"role": "assistant", "content": "Hello \u6d77", "refusal": None, "annotations": []},
    "logprobs": None,
    "finish_reason": "stop",
}
CHAT = {
    "id": "chatcmpl-B9",
    "object": "chat.completion",
    "created": 1741569952,
    "model": "m",
    "choices": [CHOICE],
    "usage": {"prompt_tokens": 19, "completion_tokens": 10, "total_tokens": 29},
    "service_tier": "default",
}
CONTENT = [
    {"token": "Hello", "logprob": -0.31725305, "bytes": [72, 101, 108, 108, 111], "top_logprobs": []},
    {"token": " \\xe6\\xb5", "logprob": -0.5, "bytes": [32, 230, 181], "top_logprobs": []},
    {"token": "\\xb7", "logprob": -1, "bytes": [183], "top_logprobs": []},
]
COMPLETION = {
    "id": "cmpl-uq",
    "object": "text_completion",
    "created": 1589478378,
    "model": "m",
    "system_fingerprint": "fp_44709d6fcb",
    "choices": [{"text": "\n\nThis", "index": 0, "logprobs": None, "finish_reason": "length"}],
    "usage": {"prompt_tokens": 5, "completion_tokens": 7, "total_tokens": 12},
}
TOKENS = {"text_offset": [0, 2], "token_logprobs": [-0.5, -0.25], "tokens": ["\n\n", "This"], "top_logprobs": [{}, {}]}
BATCH = {
    "id": "batch_req_wnaDys",
    "custom_id": "request-2",
    "response": {"status_code": 200, "request_id": "req_c187b3", "body": CHAT},
    "error": None,
}


def chat(**changes):
    return read(openai_chat, CHAT | {"choices": [CHOICE | changes]})


def test_a_chat_is_text_without_a_prompt():
    assert openai_chat.matches(CHAT)
    assert not openai_completion.matches(CHAT)
    [output] = read(openai_chat, CHAT)
    assert output == GivenOutput(record=Record(index=4, id="chatcmpl-B9"), text="Hello \u6d77", finish_reason="stop")
    assert not output.has_prompt


def test_choices_are_samples():
    second = CHOICE | {"index": 1, "message": {"role": "assistant", "content": "Ho"}, "finish_reason": "length"}
    outputs = read(openai_chat, CHAT | {"choices": [CHOICE, second]})
    assert [(each.record.sample, each.text, each.finish_reason) for each in outputs] == [
        (0, "Hello \u6d77", "stop"),
        (1, "Ho", "length"),
    ]


def test_tokens_of_a_chat_are_named_by_their_bytes():
    [output] = chat(logprobs={"content": CONTENT, "refusal": None})
    assert output.token_texts == [b"Hello", b" \xe6\xb5", b"\xb7"]
    assert output.logprobs == [-0.31725305, -0.5, -1.0]
    [output] = chat(logprobs={"content": [{"token": "Hello", "logprob": -0.5, "bytes": None}]})
    assert output.token_texts == ["Hello"]
    [output] = chat(logprobs={"content": []})
    assert (output.token_texts, output.logprobs) == (None, None)


def test_ids_that_vllm_adds():
    named = {"content": [{"token": "token_id:7", "logprob": -0.5, "bytes": [116]}]}
    [output] = chat(logprobs=named)
    assert (output.token_ids, output.token_texts, output.logprobs) == ([7], None, [-0.5])
    [output] = read(
        openai_chat,
        CHAT | {"prompt_token_ids": [1, 5], "choices": [CHOICE | {"token_ids": [7, 2], "stop_reason": 2}]},
    )
    assert (output.record.prompt_ids, output.token_ids) == ([1, 5], [7, 2])
    assert (output.says_stop_reason, output.stop_reason) == (True, 2)
    [output] = read(
        openai_completion,
        COMPLETION | {"choices": [COMPLETION["choices"][0] | {"prompt_token_ids": [1, 5], "token_ids": [7]}]},
    )
    assert (output.record.prompt_ids, output.token_ids) == ([1, 5], [7])


@pytest.mark.parametrize(
    ("message", "error"),
    [
        ({"content": None}, "the answer has neither text nor token ids."),
        (
            {"content": None, "tool_calls": [{"id": "call_abc"}]},
            "the answer has tool_calls, and without token ids its text is not all that the model wrote.",
        ),
        ({"content": "4", "reasoning_content": "2 and 2"}, "the answer has reasoning_content, and"),
    ],
)
def test_answers_whose_text_is_not_all(message, error):
    [output] = chat(message={"role": "assistant", **message})
    assert output.error.startswith(error)
    [output] = chat(message={"role": "assistant", **message}, token_ids=[7])
    assert output.error is None


def test_a_request_that_stands_beside_its_response_is_read():
    messages = [{"role": "user", "content": "Hi"}]
    [output] = read(openai_chat, CHAT | {"messages": messages, "temperature": 0.5, "max_tokens": 9, "seed": 2**40})
    record = output.record
    assert (record.messages, record.temperature, record.max_new_tokens, record.seed) == (messages, 0.5, 9, None)
    [output] = read(openai_chat, CHAT | {"messages": messages, "prompt_token_ids": [1]})
    assert (output.record.messages, output.record.prompt_ids) == (None, [1])


def test_a_completion():
    assert openai_completion.matches(COMPLETION)
    assert not openai_chat.matches(COMPLETION)
    [output] = read(openai_completion, COMPLETION | {"prompt": "Say this"})
    assert output == GivenOutput(
        record=Record(index=4, id="cmpl-uq", prompt="Say this"),
        is_plain_prompt=True,
        text="\n\nThis",
        finish_reason="length",
    )


def test_tokens_of_a_completion():
    def with_tokens(**changes):
        return read(
            openai_completion, COMPLETION | {"choices": [COMPLETION["choices"][0] | {"logprobs": TOKENS | changes}]}
        )[0]

    output = with_tokens()
    assert (output.token_texts, output.logprobs) == (["\n\n", "This"], [-0.5, -0.25])
    output = with_tokens(tokens=["token_id:7", "token_id:12"])
    assert (output.token_ids, output.logprobs) == ([7, 12], [-0.5, -0.25])
    output = with_tokens(token_logprobs=[None, -0.25])  # nobody knows the first
    assert (output.token_texts, output.logprobs) == (["\n\n", "This"], None)
    assert with_tokens(tokens=["token_id:x", "This"]).token_texts == ["token_id:x", "This"]


def test_lines_of_a_batch_have_their_own_ids():
    assert openai_batch.matches(BATCH)
    assert not openai_chat.matches(BATCH)
    [output] = read(openai_batch, BATCH)
    assert output == GivenOutput(record=Record(index=4, id="request-2"), text="Hello \u6d77", finish_reason="stop")
    [output] = read(openai_batch, BATCH | {"response": {"status_code": 200, "body": COMPLETION}, "category": "x"})
    assert (output.text, output.is_plain_prompt, output.category) == ("\n\nThis", True, "x")
    [output] = read(openai_batch, BATCH | {"body": {"prompt": "Hi", "temperature": 0}})
    assert (output.record.prompt, output.record.temperature) == ("Hi", 0.0)


@pytest.mark.parametrize(
    ("changes", "error"),
    [
        (
            {"response": None, "error": {"code": "batch_expired", "message": "It was too late."}},
            "the request failed: batch_expired, It was too late.",
        ),
        (
            {"response": {"status_code": 400, "body": {"error": {"message": "Bad.", "code": None}}}},
            "the request failed: status 400, Bad.",
        ),
        ({"response": None}, "the request failed: it has no response."),
    ],
)
def test_requests_that_failed(changes, error):
    [output] = read(openai_batch, BATCH | changes)
    assert (output.record.id, output.error) == ("request-2", error)


@pytest.mark.parametrize(
    ("form", "value", "says"),
    [
        (openai_chat, CHAT | {"choices": []}, "choices must be a list of objects, at least one, got []."),
        (openai_chat, CHAT | {"choices": [{"index": 0}]}, "message must be an object, got null."),
        (openai_chat, CHAT | {"choices": [CHOICE | {"message": {"content": 5}}]}, "content must be a text, got 5."),
        (openai_chat, CHAT | {"choices": [CHOICE | {"finish_reason": 5}]}, "finish_reason must be a text, got 5."),
        (
            openai_chat,
            CHAT | {"choices": [CHOICE | {"logprobs": {"content": [{"token": 5}]}}]},
            "each token of logprobs must be a text, got 5.",
        ),
        (
            openai_chat,
            CHAT | {"choices": [CHOICE | {"logprobs": {"content": [{"token": "a", "bytes": [256]}]}}]},
            "bytes of a token must be a list of numbers from 0 to 255, got [256].",
        ),
        (openai_chat, CHAT | {"best_of": 2}, "best_of 2 would change the answer"),
        (
            openai_completion,
            COMPLETION | {"choices": [{"text": "a", "logprobs": {"tokens": [5]}}]},
            "logprobs.tokens must be a list of texts, got [5].",
        ),
        (openai_batch, BATCH | {"custom_id": None}, "id must be a text or a whole number, got null."),
        (
            openai_batch,
            BATCH | {"response": {"status_code": 200, "body": {"object": "list"}}},
            "response.body must be a chat or a plain completion",
        ),
    ],
)
def test_what_is_refused(form, value, says):
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        read(form, value)
    assert str(refused.value).startswith(ITEM.where)
    assert says in str(refused.value)
