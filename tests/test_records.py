"""Prompt files: what is read and what is refused. Generation files: whole or called .partial."""

import dataclasses
import json
import os

import pytest

from jax_probe_mtp.generation import Generation
from jax_probe_mtp.records import check_output, read_prompts, write_generations

GOOD = '{"id": "a", "prompt": "first"}\n'


def write(folder, content):
    path = folder / "prompts.jsonl"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


@pytest.mark.parametrize(
    ("content", "ids", "prompts"),
    [
        ('{"id": "a", "prompt": "first"}\n{"id": 7, "prompt": "second"}\n', ["a", 7], ["first", "second"]),
        ('{"id": "a", "prompt": "no newline at the end"}', ["a"], ["no newline at the end"]),
        ('\n{"prompt": "one"}\n  \n\n{"prompt": "two"}\n', [2, 5], ["one", "two"]),  # the lines' numbers, from 1
        ('{"id": "a", "prompt": "one"}\r\n{"id": "b", "prompt": "two"}\r\n', ["a", "b"], ["one", "two"]),
        ('{"id": "a", "prompt": "été\\n海 \u2028 \\u00e9"}\n', ["a"], ["été\n海 \u2028 é"]),  # not a line break in JSON
        ('{"id": "a", "prompt": ""}\n', ["a"], [""]),  # judged by the tokenizer's ids, not here
    ],
    ids=["ids", "no last newline", "blank lines", "crlf", "unicode", "empty text"],
)
def test_reads(tmp_path, content, ids, prompts):
    records = read_prompts(write(tmp_path, content))
    assert [record["id"] for record in records] == ids
    assert [record["prompt"] for record in records] == prompts


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (GOOD + '{"id": "b", "prompt": "x"\n', ["line 2", "not JSON", "column 26"]),
        (GOOD + "\nhello\n", ["line 3", "not JSON", "column 1"]),
        (GOOD + '["b", "x"]\n', ["line 2", '"prompt"', '["b", "x"]']),
        (GOOD + '"x"\n', ["line 2", '"prompt"', '"x"']),
        ('{"id": "a"}\n', ["line 1", '"prompt"', '{"id": "a"}']),
        ('{"prompt": 3}\n', ["line 1", '"prompt"', '{"prompt": 3}']),
        ('{"prompt": null}\n', ["line 1", '"prompt"']),
        ('{"prompt": ["x"]}\n', ["line 1", '"prompt"']),
        (GOOD + '{"id": "a", "prompt": "x"}\n', ["line 2", "'a'", "line 1"]),
        (GOOD + '\n{"id": 9, "prompt": "x"}\n{"id": 9, "prompt": "y"}\n', ["line 4", "9", "line 3"]),
        ('{"id": 7, "prompt": "x"}\n{"id": "7", "prompt": "y"}\n', ["line 2", "'7'", "line 1"]),
        ('{"id": 2, "prompt": "x"}\n{"prompt": "y"}\n', ["line 2", "has no id", "line 1"]),
        ('{"id": true, "prompt": "x"}\n', ["line 1", "id", "true"]),
        ('{"prompt": "x", "seed": -1}\n', ["line 1", "seed", "-1"]),
        ('{"prompt": "x", "seed": 4294967296}\n', ["line 1", "seed", "4294967296"]),
        ('{"prompt": "x", "seed": "5"}\n', ["line 1", "seed", '"5"']),
        ('{"id": 1.5, "prompt": "x"}\n', ["line 1", "id", "1.5"]),
        ('{"id": null, "prompt": "x"}\n', ["line 1", "id", "null"]),
        ('{"id": ["a"], "prompt": "x"}\n', ["line 1", "id", '["a"]']),
        (b'{"prompt": "caf\xe9"}\n', ["not UTF-8", "byte 15"]),
        ("", ["no records"]),
        ("\n  \n", ["no records"]),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str | bytes) else "",
)
def test_refuses(tmp_path, content, says):
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as refusal:
        read_prompts(path)
    for part in [str(path), *says]:
        assert part in str(refusal.value)


def test_a_long_line_is_shown_in_part(tmp_path):
    with pytest.raises(ValueError, match="line 1") as refusal:
        read_prompts(write(tmp_path, json.dumps({"text": "x" * 5000})))
    assert len(str(refusal.value)) < len(str(tmp_path)) + 200


def test_a_missing_file_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.jsonl"):
        read_prompts(tmp_path / "none.jsonl")


GENERATION = Generation(
    id="a",
    prompt_ids=[1, 2],
    token_ids=[3, 4, 5],
    text='été "海"\n\u2028 \\',
    finish_reason="stop",
    draft="probe:14",
    calls=1,
    committed=2,
    accepted_by_depth=[1, 0],
)
LINE = {
    "id": "a",
    "prompt_ids": [1, 2],
    "token_ids": [3, 4, 5],
    "text": 'été "海"\n\u2028 \\',
    "finish_reason": "stop",
    "draft": "probe:14",
    "calls": 1,
    "committed": 2,
    "accepted_by_depth": [1, 0],
}
SECOND = dataclasses.replace(GENERATION, id=2)


def lines_of(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").split("\n")[:-1]]


def test_writes_one_object_a_line(tmp_path):
    path = tmp_path / "out.jsonl"
    passed = list(write_generations(path, [GENERATION, SECOND]))
    assert passed == [GENERATION, SECOND]
    assert lines_of(path) == [LINE, LINE | {"id": 2}]
    assert list(lines_of(path)[0]) == list(LINE)  # and in this order
    assert "été" in path.read_text(encoding="utf-8")  # readable, not \u00e9
    assert list(tmp_path.iterdir()) == [path]


def test_an_id_survives_the_way_there_and_back(tmp_path):
    content = '{"id": 7, "prompt": "x"}\n{"id": "b", "prompt": "y"}\n{"id": "é", "prompt": "z"}\n'
    ids = [record["id"] for record in read_prompts(write(tmp_path, content))]
    path = tmp_path / "out.jsonl"
    list(write_generations(path, [dataclasses.replace(GENERATION, id=name) for name in ids]))
    assert [line["id"] for line in lines_of(path)] == [7, "b", "é"]


def test_output_must_be_a_file_of_its_own(tmp_path):
    prompts = write(tmp_path, GOOD)
    os.mkfifo(tmp_path / "pipe")
    for path, says in [
        (tmp_path, "not a file"),
        (tmp_path / "pipe", "not a file"),
        (tmp_path / "no" / "out.jsonl", "does not exist"),
        (prompts, "file of the prompts"),
    ]:
        with pytest.raises(ValueError, match=says):
            check_output(path, prompts)
    check_output(tmp_path / "out.jsonl", prompts)


def test_a_link_keeps_pointing_where_it_does(tmp_path):
    (tmp_path / "real.jsonl").write_text("old")
    (tmp_path / "link.jsonl").symlink_to("real.jsonl")
    list(write_generations(tmp_path / "link.jsonl", [GENERATION]))
    assert (tmp_path / "link.jsonl").is_symlink()
    assert [line["id"] for line in lines_of(tmp_path / "real.jsonl")] == [GENERATION.id]


def test_the_file_has_its_name_only_when_it_is_whole(tmp_path):
    path = tmp_path / "out.jsonl"
    path.write_text("of an earlier run")
    writing = write_generations(path, [GENERATION, SECOND])
    assert next(writing) == GENERATION
    assert lines_of(tmp_path / "out.jsonl.partial") == [LINE]  # on disk already, for whoever watches
    assert path.read_text() == "of an earlier run"
    assert list(writing) == [SECOND]
    assert [line["id"] for line in lines_of(path)] == ["a", 2]
    assert not (tmp_path / "out.jsonl.partial").exists()


def test_a_run_that_is_cut_off_leaves_a_partial_file(tmp_path):
    writing = write_generations(tmp_path / "out.jsonl", [GENERATION, SECOND])
    next(writing)
    writing.close()
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl.partial"]
    assert lines_of(tmp_path / "out.jsonl.partial") == [LINE]


def test_a_run_that_fails_leaves_a_partial_file(tmp_path):
    def failing():
        yield GENERATION
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        list(write_generations(tmp_path / "out.jsonl", failing()))
    assert [path.name for path in tmp_path.iterdir()] == ["out.jsonl.partial"]
    assert lines_of(tmp_path / "out.jsonl.partial") == [LINE]
