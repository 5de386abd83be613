"""Outputs joined with the file of their prompts."""

import pytest
from support.commands import write
from support.files.outputs import BATCH, CHAT, GENERATED, OURS, PROMPTS, refused
from support.files.prompt_files import peak

from jax_probe_mtp.files.formats import join
from jax_probe_mtp.files.output_file import OutputFile
from jax_probe_mtp.files.prompt_file import PromptFile


def test_outputs_without_prompts_need_them(outputs):
    says = refused(lambda: outputs(CHAT))
    assert "line 1 holds no prompt; give the file of the prompts with --input, to be joined by id or," in says
    failed = BATCH | {"response": None}
    assert [each.error for each in outputs(failed)] == ["the request failed: it has no response."]


def test_outputs_are_joined_by_id(outputs):
    file = outputs(BATCH, BATCH | {"custom_id": "b"}, prompts=PROMPTS)
    assert [(each.record.id, each.record.prompt, each.record.index) for each in file] == [
        ("a", "for a", 0),
        ("b", "for b", 1),
    ]
    assert len(file.says) == 1  # the format


def test_what_the_output_states_comes_before_the_prompts(outputs):
    prompts = [{"id": "a", "prompt": "p", "temperature": 0.5, "max_new_tokens": 9, "n": 4, "seed": 3}]
    mine = {"id": "a", "token_ids": [7], "temperature": 0.25, "sample": 2, "category": "x"}
    [output] = outputs(mine, prompts=prompts)
    record = output.record
    assert (record.prompt, record.temperature, record.max_new_tokens) == ("p", 0.25, 9)
    assert (record.seed, record.sample, record.n, output.category) == (3, 2, 1, "x")


def test_own_prompts_stay(outputs):
    file = outputs(OURS, {"id": "b", "token_ids": [8]}, prompts=PROMPTS)
    assert [(each.record.prompt_ids, each.record.prompt) for each in file] == [([1], None), (None, "for b")]
    assert file.says == []
    assert outputs(OURS, prompts=PROMPTS).says == ["all outputs hold their prompts; p.jsonl was not needed"]


def test_answers_to_prompts_without_ids_are_joined_by_what_they_asked(outputs):
    prompts = [{"prompt": "one"}, {"prompt": "two"}, {"prompt": "one"}]
    file = outputs(OURS, prompts=prompts)
    records = list(PromptFile(file._path.parent / "p.jsonl"))
    answers = [{"id": 9 - n, "token_ids": [n]} | records[n].as_answered() for n in (2, 0, 1)]
    joined = list(outputs(*answers, prompts=prompts))
    assert [(each.token_ids, each.record.prompt, each.record.occurrence) for each in joined] == [
        ([2], "one", 2),
        ([0], "one", 1),
        ([1], "two", 1),
    ]
    assert [each.record.noise_name for each in joined] == [records[n].noise_name for n in (2, 0, 1)]


def test_an_output_without_a_prompt_and_prompts_without_outputs(outputs):
    lost = BATCH | {"custom_id": "c"}
    says = refused(lambda: outputs(BATCH, lost, prompts=PROMPTS))
    assert "o.jsonl, line 2: " in says
    assert "p.jsonl has no prompt of the id 'c' (1 of 2 outputs have none there); " in says
    many = [{"id": n, "prompt": "p"} for n in range(6)]
    file = outputs(BATCH | {"custom_id": 2}, prompts=many)
    assert file.says[1:] == ["p.jsonl: no output for 5 of its 6 prompts (0, 1, 3, ...)"]


def test_outputs_without_ids_are_joined_by_place(outputs):
    nameless = [{"generated_text": "x"}, [{"generated_text": "y"}, {"generated_text": "z"}]]
    file = outputs(*nameless, prompts=[PROMPTS[0] | {"n": 3}, PROMPTS[1]])
    assert [(each.record.id, each.record.sample, each.text) for each in file] == [
        ("b", 0, "x"),
        ("a", 0, "y"),
        ("a", 1, "z"),
    ]
    assert "outputs were joined with p.jsonl by place: they have no ids" in file.says
    says = refused(lambda: outputs(*nameless, prompts=PROMPTS[:1]))
    assert "by place, since they have no ids, but there are 2 outputs and 1 prompts; give as many, or ids." in says


def test_outputs_of_which_some_have_no_ids_are_not_guessed_at(outputs):
    named, nameless = GENERATED, {"generated_text": "x"}
    says = refused(lambda: outputs(named, nameless, prompts=[*PROMPTS, {"id": 2, "prompt": "for 2"}]))
    assert "line 2: " in says
    assert "has no prompt of the id 2 (1 of 2 outputs have none there)" in says


def test_ids_of_a_server_are_no_names(outputs):
    file = outputs(CHAT | {"id": "chatcmpl-1"}, CHAT | {"id": "chatcmpl-2"}, prompts=PROMPTS)
    assert [each.record.id for each in file] == ["b", "a"]
    assert "outputs were joined with p.jsonl by place: their ids are in no prompt" in file.says
    assert [each.record.id for each in outputs(CHAT, prompts=PROMPTS)] == ["a"]  # it is a prompt's


@pytest.mark.parametrize("window", [1, 2, 3, 100])
def test_joining_reads_prompts_in_windows(outputs, monkeypatch, window):
    monkeypatch.setattr(join, "WINDOW", window)
    order = [5, 0, 1, 6, 2, 3, 4]
    prompts = [{"id": n, "prompt": f"for {n}", "n": 1 + n % 2} for n in range(7)]
    file = outputs(*(BATCH | {"custom_id": n} for n in order), prompts=prompts)
    for _ in range(2):
        assert [(each.record.id, each.record.prompt) for each in file] == [(n, f"for {n}") for n in order]


def test_a_failed_request_has_no_prompt(outputs):
    file = outputs(BATCH, BATCH | {"custom_id": "z", "response": None}, prompts=PROMPTS)
    assert [(each.record.id, each.has_prompt, each.error is None) for each in file] == [
        ("a", True, True),
        ("z", False, False),
    ]


def test_memory_does_not_grow_with_the_file(tmp_path, monkeypatch):
    monkeypatch.setattr(join, "WINDOW", 256)

    def build_and_read():
        prompts = PromptFile(tmp_path / "p.jsonl")
        assert sum(len(each.text) for each in OutputFile(tmp_path / "o.jsonl", prompts=prompts)) == 400 * num_lines

    peaks = {}
    body = CHAT | {"choices": [{"message": {"content": "x" * 400}}]}
    for num_lines in (500, 2_500):
        write(tmp_path / "p.jsonl", ({"id": n, "prompt": "y" * 100} for n in range(num_lines)))
        lines = (BATCH | {"custom_id": n, "response": {"body": body}} for n in reversed(range(num_lines)))
        write(tmp_path / "o.jsonl", lines)
        peaks[num_lines] = peak(build_and_read)
    assert peaks[2_500] - peaks[500] < 2_000 * 60  # of each, a few numbers; a line has more than 500 bytes
