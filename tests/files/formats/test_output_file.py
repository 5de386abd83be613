"""Files of outputs: which format they are in, and what of them is refused."""

import functools
import json

import pytest
from support.commands import write
from support.files.outputs import ALL, GENERATED, OURS, PROMPTS, SAMPLE, VLLM, refused

from jax_probe_mtp.files.formats import items
from jax_probe_mtp.files.formats.known import FORMATS, NAMES
from jax_probe_mtp.files.output_file import OutputFile
from jax_probe_mtp.files.prompt_file import PromptFile


@pytest.mark.parametrize("name", list(ALL))
def test_the_first_line_shows_the_format(outputs, name):
    file = outputs(ALL[name], prompts=PROMPTS)
    assert file.form.name == name
    said = [line for line in file.says if "is read as" in line]
    assert said == ([] if name == "ours" else [f"o.jsonl is read as {name} ({file.form.says}); --format names another"])
    [output] = file
    assert output.record.id == "a"
    assert [form.name for form in FORMATS.values() if form.matches(ALL[name])] == [name]
    assert outputs(ALL[name], form=name, prompts=PROMPTS).form is file.form
    assert not any("is read as" in line for line in outputs(ALL[name], form=name, prompts=PROMPTS).says)


def test_names():
    assert NAMES == (
        "auto", "ours", "vllm", "openai-chat", "openai-completion", "openai-batch", "lm-eval", "transformers"
    )  # fmt: skip


def test_token_ids_beside_other_keys_are_ours(outputs):
    """Whatever else a line holds: such files were read before other formats were."""
    [output] = outputs(OURS | {"generated_text": "x", "choices": [{"text": "x"}], "outputs": [], "request_id": 1})
    assert output.token_ids == [7]


def test_a_file_in_no_known_format_is_told_what_each_needs(outputs):
    says = refused(lambda: outputs({"question": "x", "answer": "y"}))
    assert says.startswith(str(outputs(OURS)._path))
    assert (
        "line 1 is in no known format: it has the keys 'question', 'answer', but ours needs \"token_ids\", and" in says
    )
    for form in FORMATS.values():
        assert f"{form.name} needs {form.needs}" in says
    assert "member 1 is in no known format: it has 5, but ours" in refused(lambda: outputs([5]))
    assert "it has no keys" in refused(lambda: outputs({}))
    many = refused(lambda: outputs({f"key {n}": n for n in range(99)}))
    assert "'key 11', ..., but" in many


@pytest.mark.parametrize(
    ("first", "second"),
    [(name, other) for name in ALL for other in ALL if name != other],
)
def test_mixed_formats_are_refused(outputs, first, second):
    says = refused(lambda: outputs(ALL[first], ALL[second], prompts=PROMPTS))
    way_out = "give files of one format, or the right --format."
    assert says.endswith(f"line 2 is {second}, but the file is read as {first}; {way_out}")
    if first == "ours":
        assert refused(lambda: outputs(ALL[first], ALL[second])) == says


def test_a_later_line_in_no_format(outputs):
    assert "line 2 is in no known format: it has the keys 'x'" in refused(lambda: outputs(VLLM, {"x": 1}))
    assert 'line 2 must be an object with a text "prompt"' in refused(lambda: outputs(OURS, {"x": 1}))  # as ever


def test_a_format_that_is_not_the_files(outputs):
    says = refused(lambda: outputs(VLLM, form="openai-chat"))
    assert "line 1 is vllm, but the file is read as openai-chat; " in says


def test_ids_must_differ(outputs):
    says = refused(lambda: outputs(VLLM, VLLM | {"request_id": "b"}, VLLM))
    assert "line 3 has the id 'a' of " in says
    assert says.endswith("line 1; ids must differ.")
    twice = VLLM | {"outputs": VLLM["outputs"] * 2}
    assert "has the id 'a' of" in refused(lambda: outputs(twice))
    numbered = VLLM | {"outputs": [VLLM["outputs"][0], VLLM["outputs"][0] | {"index": 1}]}
    assert [each.record.sample for each in outputs(numbered)] == [0, 1]


def test_empty_files(outputs, tmp_path):
    assert "holds no records; give one JSON object a line." in refused(outputs)
    (tmp_path / "o.json").write_text("[]")
    assert "holds no records" in refused(lambda: OutputFile(tmp_path / "o.json"))


def test_lines_of_other_filters_hold_the_same_outputs(outputs):
    other = SAMPLE | {"filter": "flexible"}
    file = outputs(SAMPLE, other, SAMPLE | {"doc_id": "b"}, other | {"doc_id": "b"})
    assert [each.record.id for each in file] == ["a", "b"]


def test_prompts_that_are_cut_off_are_counted(outputs):
    file = outputs(GENERATED | {"prompt": "p"}, {"id": "b", "prompt": "p", "generated_text": "x"})
    assert file.says[-1] == "2 of 2 outputs are to begin with their prompts, which are cut off"


# Arrays


@pytest.mark.parametrize("name", list(ALL))
@pytest.mark.parametrize("indent", [None, 2])
def test_arrays(outputs, tmp_path, name, indent):
    path = tmp_path / "o.json"
    path.write_text("\n" + json.dumps([ALL[name]], indent=indent))
    prompts = PromptFile(write(tmp_path / "p.jsonl", PROMPTS))
    lines = outputs(ALL[name], prompts=PROMPTS)
    array = OutputFile(path, prompts=prompts)
    assert array.form.name == name
    assert list(array) == list(lines)


def test_members_of_arrays_are_named_and_numbered(tmp_path):
    path = tmp_path / "o.json"
    path.write_text(json.dumps([{"prompt_ids": [1], "token_ids": [7]}, {"prompt_ids": [1], "token_ids": "x"}]))
    assert refused(lambda: OutputFile(path)) == (
        f'{path}, member 2: token_ids must be a list of whole numbers, got "x".'
    )
    path.write_text(json.dumps([{"prompt_ids": [1], "token_ids": [7]}] * 2))
    assert [each.record.id for each in OutputFile(path)] == [1, 2]


def test_lines_that_are_arrays_are_lines(outputs):
    file = outputs([GENERATED], [GENERATED | {"id": "b"}, GENERATED | {"id": "b"}], prompts=PROMPTS)
    assert [(each.record.id, each.record.sample) for each in file] == [("a", 0), ("b", 0), ("b", 1)]


def test_members_are_checked_as_lines_are(tmp_path):
    path = tmp_path / "o.json"
    message = {"role": "user", "content": "x"}
    for wrong, says in [
        ({"prompt": 5}, "prompt must be a text, got 5."),
        ({"prompt": "x", "messages": [message]}, "has prompt and messages; give one of them."),
        ({"prompt_ids": [1], "tools": [{}]}, "tools is for the chat template, which prompt_ids do not pass"),
        ({"messages": [message], "continue_final_message": True}, 'for messages that end with one of "assistant"'),
        ({"prompt": "x", "category": 5}, "category must be a text, got 5."),
        ({"prompt": "x", "sample": -1}, "sample must be a whole number of at least 0, got -1."),
        ({"prompt": "x", "max_tokens": 5, "max_new_tokens": 6}, "max_tokens 5 would change the answer"),
    ]:
        path.write_text(json.dumps([{"token_ids": [7]} | wrong]))
        lines = write(tmp_path / "o.jsonl", [{"token_ids": [7]} | wrong])
        assert all(says in refused(functools.partial(OutputFile, each)) for each in (path, lines))
    path.write_text(json.dumps([{"prompt": "x", "token_ids": [7], "stop": "y", "do_sample": False, "tools": []}]))
    [output] = OutputFile(path)
    assert [output] == list(OutputFile(write(tmp_path / "o.jsonl", json.loads(path.read_text()))))
    assert (output.record.stop, output.record.temperature, output.record.tools) == (("y",), 0.0, None)


def test_large_and_broken_arrays(tmp_path, monkeypatch):
    path = tmp_path / "o.json"
    path.write_text('[{"id": "a"},\n')
    assert "is not JSON that can be read (" in refused(lambda: OutputFile(path))
    path.write_bytes(b'["\xff"]')
    assert f"{path} is not UTF-8" in refused(lambda: OutputFile(path)).replace(", line 1", "")
    path.write_text('["\\ud83d",\n1]')
    assert "holds half of a surrogate pair" in refused(lambda: OutputFile(path))
    path.write_text(json.dumps([OURS]))
    monkeypatch.setattr(items, "MAX_ARRAY_BYTES", 9)
    says = refused(lambda: OutputFile(path))
    assert "is one JSON array of 50 bytes, and one of more than 9" in says
    assert says.endswith("write one object a line (jq -c '.[]').")
