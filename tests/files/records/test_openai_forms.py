"""Records as OpenAI clients write them: messages of parts, tool calls, lines of batch files."""

import json

import pytest
from support.files.prompt_files import write

from jax_probe_mtp.files.prompt_file import PromptFile

ASKED = {"role": "user", "content": "x"}


def records(tmp_path, *lines):
    return list(PromptFile(write(tmp_path, "".join(json.dumps(line) + "\n" for line in lines))))


def call(arguments):
    return {"id": "c1", "type": "function", "function": {"name": "f", "arguments": arguments}}


@pytest.mark.parametrize(
    ("message", "plain"),
    [
        (ASKED, ASKED),
        ({"role": "user", "content": [{"type": "text", "text": "Hi"}]}, {"role": "user", "content": "Hi"}),
        (
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b "}], "name": "Eve"},
            {"role": "user", "content": "a\nb ", "name": "Eve"},
        ),
        ({"role": "system", "content": []}, {"role": "system", "content": ""}),
        (
            {"role": "assistant", "content": None, "tool_calls": [call('{"a": [1]}')]},
            {"role": "assistant", "content": "", "tool_calls": [call({"a": [1]})]},
        ),
        (
            {"role": "assistant", "tool_calls": [call({"b": 2}), call("")], "reasoning_content": "so"},
            {"role": "assistant", "content": "", "tool_calls": [call({"b": 2}), call({})], "reasoning_content": "so"},
        ),
        (
            {"role": "tool", "tool_call_id": "c1", "content": "3"},
            {"role": "tool", "tool_call_id": "c1", "content": "3"},
        ),
    ],
)
def test_messages_become_what_templates_read(tmp_path, message, plain):
    (record,) = records(tmp_path, {"messages": [message, ASKED]})
    assert record.messages == [plain, ASKED]


@pytest.mark.parametrize(
    ("message", "says"),
    [
        ({"role": "user", "content": None}, 'messages[1] has no content; give a text, "" where there is none.'),
        ({"role": "assistant", "tool_calls": []}, "messages[1] has no content;"),
        ({"role": "user", "content": 5}, "messages[1]: content must be a text or a list of text parts, got 5."),
        (
            {"role": "user", "content": [{"type": "image_url", "image_url": {"url": "u"}}]},
            'messages[1] holds a part of type "image_url"; models here read text alone, so leave it out.',
        ),
        ({"role": "user", "content": ["x"]}, 'messages[1]: each part must be {"type": "text", "text": ...}, got "x".'),
        ({"role": "user", "content": [{"type": "text"}]}, "messages[1]: each part must be"),
        ({"role": "user", "content": [{"text": "x"}]}, "messages[1]: each part must be"),
        ({"role": "assistant", "tool_calls": "f"}, 'messages[1]: tool_calls must be a list of objects, got "f".'),
        (
            {"role": "assistant", "tool_calls": [{"id": "c"}]},
            "messages[1]: tool_calls[0] must be an object with a function",
        ),
        (
            {"role": "assistant", "tool_calls": [call({}), call("{")]},
            "messages[1]: tool_calls[1]: arguments must be an object",
        ),
        ({"role": "assistant", "tool_calls": [call("[1]")]}, 'as a JSON text, got "[1]".'),
        ({"role": "assistant", "tool_calls": [call('{"a":' * 100_000)]}, "arguments must be an object"),
    ],
)
def test_a_message_without_text_is_named(tmp_path, message, says):
    with pytest.raises(ValueError, match=r"\A[^\n]*, line 2: [^\n]*\Z") as refusal:
        records(tmp_path, {"prompt": "x"}, {"messages": [ASKED, message]})
    assert says in str(refusal.value)


def batch_line(body, **more):
    return {"custom_id": "r-1", "method": "POST", "url": "/v1/chat/completions", "body": body} | more


def test_lines_of_a_batch_file_are_records(tmp_path):
    body = {
        "model": "m",
        "messages": [ASKED],
        "max_tokens": 7,
        "temperature": 0.5,
        "n": 1,
        "tools": [{"type": "function"}],
    }
    completion = {"model": "m", "prompt": "x", "max_completion_tokens": 3}
    lines = [batch_line(body), batch_line(completion, custom_id="r-2", url="/v1/completions")]
    path = write(tmp_path, "".join(json.dumps(line) + "\n" for line in lines))
    chat, plain = PromptFile(path)
    assert (chat.id, chat.messages, chat.max_new_tokens, chat.temperature) == ("r-1", [ASKED], 7, 0.5)
    assert chat.tools == [{"type": "function"}]
    assert (plain.id, plain.prompt, plain.max_new_tokens) == ("r-2", "x", 3)
    assert PromptFile(path).unused_fields == ("model",)


@pytest.mark.parametrize(
    ("line", "says"),
    [
        (
            batch_line({}, url="/v1/embeddings"),
            'line 1 asks for "/v1/embeddings"; give requests of /v1/chat/completions or',
        ),
        (batch_line([]), 'line 1: body must be an object without an "id", got [].'),
        (batch_line({"id": 1, "prompt": "x"}), "line 1: body must be an object without"),
        (batch_line({"prompt": "x"}, custom_id=None), "line 1: id must be a text or a whole number, got null."),
        (
            batch_line({"prompt": "x", "max_tokens": 3, "max_completion_tokens": 4}),
            "max_completion_tokens 4 would change",
        ),
    ],
)
def test_other_requests_are_refused(tmp_path, line, says):
    with pytest.raises(ValueError, match=r"\A[^\n]*\Z") as refusal:
        records(tmp_path, line)
    assert says in str(refusal.value)


def test_the_same_text_in_parts_is_the_same_record(tmp_path):
    in_parts = {"role": "user", "content": [{"type": "text", "text": "x"}]}
    one, other, with_tools = records(
        tmp_path, {"messages": [ASKED]}, {"messages": [in_parts], "tools": []}, {"messages": [ASKED], "tools": [{}]}
    )
    assert one.content == other.content != with_tools.content
