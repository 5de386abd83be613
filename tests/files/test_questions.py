"""Questions of a benchmark: what is read and what is refused."""

import json

import pytest

from jax_probe_mtp.files.questions import Question, read_questions

GOOD = '{"question_id": 81, "category": "writing", "turns": ["first", "second"]}\n'


def write(folder, content):
    path = folder / "questions.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_reads_the_first_turn_of_each_question(tmp_path):
    more = '\n{"question_id": "b", "category": "math", "turns": ["été"], "reference": ["x"]}\r\n'
    assert read_questions(write(tmp_path, GOOD + more)) == [
        Question(id=81, category="writing", text="first"),
        Question(id="b", category="math", text="été"),
    ]


def test_takes_so_many_of_each_category_in_the_files_order(tmp_path):
    lines = [(1, "a"), (2, "b"), (3, "a"), (4, "a"), (5, "b"), (6, "b")]
    content = "".join(json.dumps({"question_id": i, "category": c, "turns": ["t"]}) + "\n" for i, c in lines)
    assert [question.id for question in read_questions(write(tmp_path, content), 2)] == [1, 2, 3, 5]
    with pytest.raises(ValueError, match="at least 1, got 0"):
        read_questions(tmp_path / "questions.jsonl", 0)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (GOOD + '{"question_id": 82\n', ["line 2", "not JSON"]),
        (GOOD + "[81]\n", ["line 2", '"question_id"', "[81]"]),
        (GOOD + GOOD, ["line 2", "81", "line 1"]),
        (GOOD + GOOD.replace("81", '"81"'), ["line 2", "'81'", "line 1"]),
        ('{"question_id": true, "category": "a", "turns": ["t"]}\n', ["line 1", "id", "true"]),
        ('{"question_id": 1, "turns": ["t"]}\n', ["line 1", '"category"', "null"]),
        ('{"question_id": 1, "category": "", "turns": ["t"]}\n', ["line 1", '"category"', '""']),
        ('{"question_id": 1, "category": "a", "turns": []}\n', ["line 1", '"turns"', "[]"]),
        ('{"question_id": 1, "category": "a", "turns": [""]}\n', ["line 1", '"turns"', '[""]']),
        ('{"question_id": 1, "category": "a", "turns": "t"}\n', ["line 1", '"turns"', '"t"']),
        ('{"question_id": 1, "category": "a", "turns": ["\\ud800"]}\n', ["line 1", "surrogate"]),
        (b'{"question_id": 1, "category": "caf\xe9", "turns": ["t"]}\n', ["not UTF-8", "byte 35"]),
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
