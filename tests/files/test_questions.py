"""Questions of a benchmark: what is read and what is refused.

Made by hand after the formats' own pages: github.com/hemingkx/Spec-Bench (data/spec_bench/question.jsonl), the data card of
huggingface.co/datasets/nvidia/SPEED-Bench, github.com/ShishirPatil/gorilla (berkeley-function-call-leaderboard/bfcl_eval/data),
and OpenAI's API reference ("Create chat completion", "Batch").
"""

import json

import pytest

from jax_probe_mtp.files.questions import Question, read_questions

GOOD = '{"question_id": 81, "category": "writing", "turns": ["first", "second"]}\n'
WEATHER = {
    "name": "weather.get",
    "description": "Says what the weather is.",
    "parameters": {"type": "dict", "properties": {"city": {"type": "string"}}, "required": ["city"]},
}
TOOL = {"type": "function", "function": WEATHER}


def write(folder, content):
    path = folder / "questions.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def read(folder, *lines):
    return read_questions(write(folder, "".join(json.dumps(line) + "\n" for line in lines)))


def user(text):
    return [{"role": "user", "content": text}]


def test_reads_the_first_turn_of_each_question(tmp_path):
    more = '\n{"question_id": "b", "category": "math", "turns": ["été"], "reference": ["x"]}\r\n'
    got = read_questions(write(tmp_path, GOOD + more))
    assert got == [
        Question(id=81, category="writing", messages=user("first")),
        Question(id="b", category="math", messages=user("été")),
    ]
    assert [question.text for question in got] == ["first", "été"]


def test_reads_speed_bench(tmp_path):
    line = {
        "question_id": "9f2c",
        "category": "coding",
        "sub_category": "python",
        "turns": ["Sort a list.", "And backwards?"],
        "source": "hand",
        "src_id": "1",
        "difficulty": "easy",
        "multiturn": True,
    }
    assert read(tmp_path, line) == [Question(id="9f2c", category="coding", messages=user("Sort a list."))]
    line["turns"] = ["FULL BENCHMARK DATA SHOULD BE FETCHED FROM THE SOURCE USING SPECDEC_BENCH"]
    with pytest.raises(ValueError, match=r"line 1: the turns are SPEED-Bench's placeholder, .*prepare_data\.py\.$"):
        read(tmp_path, line)


def test_reads_bfcl_with_its_functions_as_tools(tmp_path):
    system = {"role": "system", "content": "Be short."}
    lines = [
        {"id": "multiple_0", "question": [user("Rain in Oslo?"), user("And Bergen?")], "function": [WEATHER]},
        {"id": "live_simple_3-2-0", "question": [[system, *user("Hi")]], "function": [WEATHER, {"name": "f"}]},
        {"id": "mine", "question": [user("Hi")], "function": []},
    ]
    tools = [TOOL, {"type": "function", "function": {"name": "f"}}]
    assert read(tmp_path, *lines) == [
        Question(id="multiple_0", category="multiple", messages=user("Rain in Oslo?"), tools=[TOOL]),
        Question(id="live_simple_3-2-0", category="live_simple", messages=[system, *user("Hi")], tools=tools),
        Question(id="mine", category="tools", messages=user("Hi")),
    ]


def test_reads_messages_and_tools_without_the_answer_at_their_end(tmp_path):
    call = {"id": "c1", "type": "function", "function": {"name": "weather.get", "arguments": '{"city": "Oslo"}'}}
    asked = [
        *user("Rain?"),
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "yes"},
    ]
    answer = {"role": "assistant", "content": "It rains."}
    lines = [
        {"messages": [*asked, answer], "tools": [TOOL]},
        {"id": "q", "category": "chat", "messages": user("Hi"), "tools": []},
        {"custom_id": "r", "method": "POST", "url": "/v1/chat/completions", "body": {"messages": user("Hi")}},
    ]
    first, second, third = read(tmp_path, *lines)
    assert (first.id, first.category, first.tools) == (1, "tools", [TOOL])
    assert [message["role"] for message in first.messages] == ["user", "assistant", "tool"]
    assert first.messages[1]["tool_calls"][0]["function"]["arguments"] == {"city": "Oslo"}
    assert second == Question(id="q", category="chat", messages=user("Hi"))
    assert third == Question(id="r", category="messages", messages=user("Hi"))


@pytest.mark.parametrize(
    "question",
    [
        Question(id=1, category="a", messages=user("a"), tools=[TOOL]),
        Question(id=1, category="a", messages=[{"role": "system", "content": "s"}, *user("a")]),
    ],
)
def test_a_conversation_is_no_plain_text(question):
    with pytest.raises(ValueError, match="this is a conversation or has tools, which need the chat template; leave"):
        _ = question.text


def test_takes_so_many_of_each_category_in_the_files_order(tmp_path):
    lines = [(1, "a"), (2, "b"), (3, "a"), (4, "a"), (5, "b"), (6, "b")]
    content = "".join(json.dumps({"question_id": i, "category": c, "turns": ["t"]}) + "\n" for i, c in lines)
    assert [question.id for question in read_questions(write(tmp_path, content), 2)] == [1, 2, 3, 5]
    with pytest.raises(ValueError, match="at least 1, got 0"):
        read_questions(tmp_path / "questions.jsonl", 0)


FORMS = '"turns" (Spec-Bench, SPEED-Bench), "question" and "function" (BFCL) or "messages" (OpenAI)'


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (GOOD + '{"question_id": 82\n', ["line 2", "not JSON"]),
        (GOOD + "[81]\n", ["line 2", FORMS, "[81]"]),
        ('{"id": 1, "prompt": "t"}\n', ["line 1", FORMS, '"prompt"']),
        (GOOD + GOOD, ["line 2", "81", "line 1"]),
        (GOOD + GOOD.replace("81", '"81"'), ["line 2", "'81'", "line 1"]),
        ('{"question_id": true, "category": "a", "turns": ["t"]}\n', ["line 1", "id", "true"]),
        ('{"category": "a", "turns": ["t"]}\n', ["line 1", "id", "null"]),
        ('{"question_id": 1, "turns": ["t"]}\n', ["line 1", '"category"', "null"]),
        ('{"question_id": 1, "category": "", "turns": ["t"]}\n', ["line 1", '"category"', '""']),
        ('{"question_id": 1, "category": "a", "turns": []}\n', ["line 1", '"turns"', "[]"]),
        ('{"question_id": 1, "category": "a", "turns": [""]}\n', ["line 1", '"turns"', '[""]']),
        ('{"question_id": 1, "category": "a", "turns": "t"}\n', ["line 1", '"turns"', '"t"']),
        ('{"question_id": 1, "category": "a", "turns": ["\\ud800"]}\n', ["line 1", "surrogate"]),
        (b'{"question_id": 1, "category": "caf\xe9", "turns": ["t"]}\n', ["not UTF-8", "byte 35"]),
        ('{"question_id": 1, "category": "a", "turns": ["t"], "tools": {}}\n', ["line 1", "tools", "list of objects"]),
        ('{"id": "a_1", "question": [], "function": []}\n', ["line 1", '"question"', "list of turns", "[]"]),
        ('{"id": "a_1", "question": ["t"], "function": []}\n', ["line 1", "messages", '"t"']),
        (
            '{"id": "a_1", "question": [[]], "involved_classes": ["F"]}\n',
            ["line 1", '"function"', "other files", "null"],
        ),
        ('{"id": "a_1", "question": [[]], "function": ["f"]}\n', ["line 1", '"function"', '["f"]']),
        ('{"messages": null}\n', ["line 1", "messages", "null"]),
        ('{"messages": [{"role": "user"}]}\n', ["line 1", "messages[0]", "no content"]),
        ('{"messages": [{"role": "assistant", "content": "a"}]}\n', ["line 1", "assistant's messages alone"]),
        ('{"messages": [{"role": "user", "content": "a"}], "tools": "f"}\n', ["line 1", "tools", '"f"']),
        ('{"custom_id": 1, "url": "/v1/embeddings", "body": {}}\n', ["line 1", "/v1/embeddings"]),
        ("\n", ["no questions"]),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str | bytes) else "",
)
def test_refuses(tmp_path, content, says):
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as refusal:
        read_questions(path)
    for part in [str(path), *says]:
        assert part in str(refusal.value)
