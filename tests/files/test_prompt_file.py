"""Prompt files: what is read, what is refused, and how much memory that takes."""

import json
import random

import pytest
from support.files.answer_files import RUN, filled
from support.files.prompt_files import GOOD, peak, write

from jax_probe_mtp.files import prompt_file
from jax_probe_mtp.files.answer_file import AnswerFile
from jax_probe_mtp.files.prompt_file import PromptFile
from jax_probe_mtp.files.records.record import Record
from jax_probe_mtp.jobs.kept import Kept

HALF = '"\\ud83d"'  # half of a surrogate pair


@pytest.mark.parametrize(
    ("content", "ids", "prompts"),
    [
        ('{"id": "a", "prompt": "first"}\n{"id": 7, "prompt": "second"}\n', ["a", 7], ["first", "second"]),
        ('{"id": "a", "prompt": "no newline at the end"}', ["a"], ["no newline at the end"]),
        ('\n{"prompt": "one"}\n  \n\n{"prompt": "two"}\n', [2, 5], ["one", "two"]),  # the lines' numbers, from 1
        ('{"id": "a", "prompt": "one"}\r\n\r\n{"id": "b", "prompt": "two"}\r\n', ["a", "b"], ["one", "two"]),
        ('{"id": "a", "prompt": "été\\n海 \u2028 \\u00e9"}\n', ["a"], ["été\n海 \u2028 é"]),  # not a line break in JSON
        ('{"id": "a", "prompt": "\\ud83d\\ude00"}\n', ["a"], ["😀"]),
        ('{"id": "a", "prompt": ""}\n', ["a"], [""]),  # fails later, and alone
        ('\ufeff{"prompt": "one"}\n{"prompt": "two"}\n', [1, 2], ["one", "two"]),
    ],
    ids=["ids", "no last newline", "blank lines", "crlf", "unicode", "a pair", "empty text", "bom"],
)
def test_reads_prompts(tmp_path, content, ids, prompts):
    file = PromptFile(write(tmp_path, content))
    occurrence = None if '"id"' in content else 1
    assert list(file) == [
        Record(index=i, id=name, prompt=prompt, occurrence=occurrence)
        for i, (name, prompt) in enumerate(zip(ids, prompts, strict=True))
    ]
    assert (file.num_records, len(file.keys)) == (len(ids), len(ids))
    for name in ids:
        assert [name in file.keys, str(name) in file.keys] == [occurrence is None] * 2
    assert "other" not in file.keys
    by_line = PromptFile(file.path, names_by_line=True)
    assert [record.id for record in by_line] == ids
    assert all(name in by_line.keys and str(name) in by_line.keys for name in ids)
    assert (file.max_temperature, file.unused_fields) == (None, ())


def test_one_record_with_penalties_anywhere_needs_a_program_with_them(tmp_path):
    plain, penalized = '{"prompt": "a"}\n', '{"prompt": "b", "presence_penalty": 0.5}\n'
    for lines in (penalized + plain, plain + penalized, plain + penalized + plain):
        assert PromptFile(write(tmp_path, lines)).is_penalized
    assert not PromptFile(write(tmp_path, plain)).is_penalized


FIELDS = {"max_new_tokens": 9, "temperature": 1, "top_p": 1, "top_k": 0, "seed": 2**32 - 1, "stop": ["x", "\n"]}


def test_reads_every_field(tmp_path):
    messages = [{"role": "system", "content": ""}, {"role": "user", "content": "hi"}]
    lines = [
        {"id": "a", "prompt": "text", "messages": None, "category": "math", **FIELDS},
        {"id": "b", "messages": messages, "top_p": 0.25, "temperature": 0, "stop": "end", "seed": 0, "turns": [1]},
        {"id": "c", "prompt_ids": [0, 5], "temperature": 0.5, "top_k": 40, "max_new_tokens": 1, "stop": []},
        {"id": "d", "prompt_ids": [], **dict.fromkeys(FIELDS)},
    ]
    file = PromptFile(write(tmp_path, "".join(json.dumps(line) + "\n" for line in lines)))
    records = list(file)
    assert records == [
        Record(
            index=0,
            id="a",
            prompt="text",
            max_new_tokens=9,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            seed=4294967295,
            stop=("x", "\n"),
        ),
        Record(index=1, id="b", messages=messages, top_p=0.25, temperature=0.0, stop=("end",), seed=0),
        Record(index=2, id="c", prompt_ids=[0, 5], temperature=0.5, top_k=40, max_new_tokens=1, stop=()),
        Record(index=3, id="d", prompt_ids=[]),
    ]
    assert all(isinstance(value, float) for value in (records[0].temperature, records[0].top_p))
    assert (file.max_temperature, file.unused_fields) == (1.0, ("category", "turns"))
    assert list(file) == records  # anew


def test_reads_whether_the_last_message_is_continued(tmp_path):
    messages = [{"role": "user", "content": "x"}, {"role": "assistant", "content": ""}]
    lines = [{"messages": messages, "continue_final_message": value} for value in (True, False, None)]
    lines += [{"messages": messages}, {"prompt": "x", "continue_final_message": False}]
    file = PromptFile(write(tmp_path, "".join(json.dumps(line) + "\n" for line in lines)))
    assert [record.continue_final_message for record in file] == [True, False, None, None, False]
    assert file.unused_fields == ()


def test_the_largest_temperature_is_wherever_it_stands(tmp_path):
    temperatures = [0.0, 0.5, 2.5, None, 1.0]
    lines = [json.dumps({"prompt": "x", "temperature": value}) for value in temperatures]
    assert PromptFile(write(tmp_path, "\n".join(lines))).max_temperature == 2.5
    assert PromptFile(write(tmp_path, lines[0])).max_temperature == 0.0


def test_names_ten_unused_fields_at_most(tmp_path):
    names = [f"f{i:02}" for i in range(30)]
    random.Random(0).shuffle(names)
    lines = [json.dumps({"prompt": "x", name: 1, "z" * 100: 2}) for name in names]
    unused = PromptFile(write(tmp_path, "\n".join(lines))).unused_fields
    assert unused == ("f00", "f01", "f02", "f03", "f04", "f05", "f06", "f07", "f08", "f09")
    assert PromptFile(write(tmp_path, lines[0])).unused_fields == (names[0], "z" * 60)


def field(name, value):
    return f'{{"prompt": "x", "{name}": {value}}}\n', ["line 1", f"{name} must be", value[:20]]


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (GOOD + '{"id": "b", "prompt": "x"\n', ["line 2", "not JSON", "column 26"]),
        (GOOD + "\nhello\n", ["line 3", "not JSON", "column 1"]),
        (GOOD + '["b", "x"]\n', ["line 2", '"prompt"', '["b", "x"]']),
        (GOOD + '"x"\n', ["line 2", '"prompt"', '"x"']),
        ('{"id": "a"}\n', ["line 1", '"prompt"', '"messages"', '"prompt_ids"', '{"id": "a"}']),
        ('{"prompt": null}\n', ["line 1", '"prompt"']),
        ('{"prompt": "x", "prompt_ids": [1]}\n', ["line 1", "prompt and prompt_ids", "one of them"]),
        ('{"messages": [], "prompt": "x"}\n', ["line 1", "prompt and messages;"]),
        ('{"prompt": 3}\n', ["line 1", "prompt must be a text", "3"]),
        ('{"prompt": ["x"]}\n', ["line 1", "prompt must be a text", '["x"]']),
        *[
            (f'{{"messages": {value}}}\n', ["line 1", "messages must be", value[:20]])
            for value in [
                "[]",
                '{"role": "user", "content": "x"}',
                '"x"',
                '["x"]',
                '[{"content": "x"}]',
                '[{"role": 1, "content": "x"}]',
            ]
        ],
        *[
            (f'{{"prompt_ids": {value}}}\n', ["line 1", "prompt_ids must be", value[:20]])
            for value in ["[-1]", "[1, 2.0]", "[true]", '["1"]', "5", '"12"', "[[1]]", "[null]"]
        ],
        *[field("max_new_tokens", value) for value in ["0", "-1", "1.0", "true", '"5"', "[5]"]],
        *[field("temperature", value) for value in ["-0.1", "true", '"1"', "NaN", "Infinity", "1" + "0" * 400]],
        (field("temperature", "1e999")[0], ["line 1", "temperature must be", "Infinity"]),
        *[field("top_p", value) for value in ["0", "1.01", "-0.5", "true", "NaN", '"1"', "0.0"]],
        *[field("top_k", value) for value in ["-1", "1.0", "true", '"1"', "Infinity"]],
        *[field("seed", value) for value in ["-1", "4294967296", '"5"', "1.0", "false"]],
        *[field("continue_final_message", value) for value in ["1", '"true"', "[true]"]],
        (
            '{"prompt": "x", "continue_final_message": true}\n',
            ["line 1: continue_final_message is for messages", '"assistant", but there are no messages; leave it out.'],
        ),
        (
            '{"messages": [{"role": "user", "content": "x"}], "continue_final_message": true}\n',
            ["line 1: continue_final_message is for messages", 'the last one is "user"\'s; leave it out.'],
        ),
        *[field(name, value) for name in ("tools", "documents") for value in ['{"a": 1}', '["x"]', '"x"', "3"]],
        *[field("template_kwargs", value) for value in ["[]", '"x"', "true"]],
        *[
            (
                f'{{"prompt_ids": [1], "{name}": {value}}}\n',
                [f"line 1: {name} is for the chat template", "prompt_ids do not"],
            )
            for name, value in [("tools", "[{}]"), ("documents", "[]"), ("template_kwargs", "{}")]
        ],
        *[field("stop", value) for value in ['""', '["x", ""]', "3", "[3]", "true", '{"x": 1}', '["x", null]']],
        field("stop", json.dumps(["x"] * 17)),
        ('{"id": true, "prompt": "x"}\n', ["line 1", "id", "true"]),
        ('{"id": 1.5, "prompt": "x"}\n', ["line 1", "id", "1.5"]),
        ('{"id": null, "prompt": "x"}\n', ["line 1", "id", "null"]),
        ('{"id": ["a"], "prompt": "x"}\n', ["line 1", "id", '["a"]']),
        (GOOD + '{"id": "a", "prompt": "x"}\n', ["line 2", "has the id 'a' of line 1"]),
        (GOOD + '\n{"id": 9, "prompt": "x"}\n{"id": 9, "prompt": "y"}\n', ["line 4", "id 9 of line 3"]),
        ('{"id": 7, "prompt": "x"}\n{"id": "7", "prompt": "y"}\n', ["line 2", "id '7' of line 1"]),
        ('{"id": 2, "prompt": "x"}\n{"prompt": "y"}\n', ["line 2", "has no id, and its number 2 is the id of line 1"]),
        (f'{{"prompt": {HALF}}}\n', ["line 1", "half of a surrogate pair"]),
        (f'{{"id": {HALF}, "prompt": "x"}}\n', ["line 1", "half of a surrogate pair"]),
        (f'{{"messages": [{{"role": "user", "content": {HALF}}}]}}\n', ["line 1", "half of a surrogate pair"]),
        (f'{{"prompt": "x", "stop": [{HALF}]}}\n', ["line 1", "half of a surrogate pair"]),
        (f'{{"prompt": "x", {HALF}: 1}}\n', ["line 1", "half of a surrogate pair"]),
        (b'{"prompt": "caf\xe9"}\n', ["line 1 is not UTF-8", "byte 15 "]),
        (b'{"prompt": "x"}\n\n{"prompt": "caf\xe9"}\n', ["line 3 is not UTF-8", "byte 32 "]),
        (b'\xef\xbb\xbf{"prompt": "caf\xe9"}\n', ["line 1 is not UTF-8", "byte 18 "]),
        ("[" * 100_000 + "\n", ["line 1", "not JSON", "recursion"]),
        ('{"prompt": "x", "seed": 1' + "0" * 5000 + "}\n", ["line 1", "not JSON", "5001 digits"]),
        ("", ["no records"]),
        ("\n  \n", ["no records"]),
    ],
    ids=lambda value: str(value)[:40] if isinstance(value, str | bytes) else "",
)
def test_refuses(tmp_path, content, says):
    path = write(tmp_path, content)
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as refusal:
        PromptFile(path)
    for part in [str(path), *says]:
        assert part in str(refusal.value)
    assert len(str(refusal.value)) < len(str(path)) + 200


def test_stops_may_be_sixteen(tmp_path):
    path = write(tmp_path, json.dumps({"prompt": "x", "stop": [str(i) for i in range(16)]}))
    assert [record.stop for record in PromptFile(path)] == [(*"0123456789", "10", "11", "12", "13", "14", "15")]


def test_two_ids_with_one_digest_are_two_ids(tmp_path, monkeypatch):
    monkeypatch.setattr(prompt_file, "id_key", lambda name: 3 if len(str(name)) == 1 else 8)
    path = write(tmp_path, GOOD + '{"id": "b", "prompt": "x"}\n{"id": "cc", "prompt": "y"}\n')
    assert PromptFile(path).num_records == 3
    path = write(tmp_path, path.read_text() + '{"id": "dd", "prompt": "x"}\n{"id": "cc", "prompt": "z"}\n')
    with pytest.raises(ValueError, match="line 5 has the id 'cc' of line 3"):
        PromptFile(path)


def test_a_file_that_changed_is_refused_where_it_changed(tmp_path):
    path = write(tmp_path, GOOD + '{"id": "b", "prompt": "x"}\n')
    records = iter(PromptFile(path))
    path.write_text(GOOD + '{"id": "b", "prompt": "x"\n')
    assert next(records).id == "a"
    with pytest.raises(ValueError, match="line 2 is not JSON"):
        next(records)


def test_a_record_and_its_answer_take_little_memory(tmp_path):
    """40 bytes at most, while they are read too: the record's key, content and place, whether it is done, the answer's key."""

    def go_on():
        prompts = PromptFile(path)
        prompts.digest()
        kept = Kept(prompts)
        with AnswerFile(output, RUN, see=kept.see) as file:
            assert kept.is_kept.all()
            assert len(file.done) == num_lines

    peaks = {}
    for num_lines in (2_000, 20_000):
        output = tmp_path / f"answers.{num_lines}.jsonl"
        path = write(tmp_path, "".join(f'{{"id": "record {i}", "prompt": "{i}"}}\n' for i in range(num_lines)))
        filled(output, *({"id": record.id} | record.as_answered() for record in PromptFile(path)))
        peaks[num_lines] = peak(go_on)
    assert peaks[20_000] - peaks[2_000] < 18_000 * 40


def test_memory_does_not_grow_with_the_file(tmp_path):
    def build_and_read():
        assert sum(1 for _ in PromptFile(path)) == num_lines

    peaks = {}
    for num_lines in (2_000, 20_000):
        path = write(
            tmp_path, "".join(f'{{"id": "record {i}", "prompt": "{i} {"x" * 400}"}}\n' for i in range(num_lines))
        )
        peaks[num_lines] = peak(build_and_read)
    assert path.stat().st_size > 8_000_000
    assert peaks[20_000] < 2_000_000
    # 20 bytes a record stay: its key, what it asks for, its place; 12 more while they are sorted
    assert peaks[20_000] - peaks[2_000] < 18_000 * 40
