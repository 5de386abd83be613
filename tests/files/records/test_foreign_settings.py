"""Settings of other programs in prompt files: refused where they would change an answer, unread where they cannot."""

import json

import pytest
from support.files.prompt_files import GOOD, write

from jax_probe_mtp.files.output_file import OutputFile
from jax_probe_mtp.files.prompt_file import PromptFile

# As their own documentation names them, with a value that changes an answer, and what this program has instead.
OPENAI = [
    ("max_tokens", 0, "give max_new_tokens instead"),
    ("max_completion_tokens", "5", "give max_new_tokens instead"),
    ("response_format", {"type": "json_object"}, "leave it out"),
    ("tool_choice", "required", "leave it out"),
    ("functions", [{"name": "f"}], "give tools instead"),
    ("suffix", "end", "leave it out"),
    ("echo", True, "leave it out"),
    ("best_of", 3, "leave it out"),
    ("reasoning_effort", "low", "give it in template_kwargs instead"),
    ("reasoning", {"effort": "low"}, "leave it out"),
]
VLLM = [
    ("bad_words", ["x"], "leave it out"),
    ("min_p", 0.05, "leave it out"),
    ("use_beam_search", True, "leave it out"),
    ("length_penalty", 0.8, "leave it out"),
    ("guided_json", {"type": "object"}, "leave it out"),
    ("guided_regex", "[ab]", "leave it out"),
    ("structured_outputs", {"choice": ["a"]}, "leave it out"),
    ("allowed_token_ids", [1], "leave it out"),
    ("chat_template", "{{ x }}", "leave it out"),
    ("chat_template_kwargs", {"enable_thinking": False}, "give template_kwargs instead"),
    ("enable_thinking", False, "give it in template_kwargs instead"),
    ("add_generation_prompt", False, "leave it out"),
    ("add_special_tokens", False, "leave it out"),
    ("ebnf", "root ::= x", "leave it out"),
    ("encoder_repetition_penalty", 1.1, "leave it out"),
    ("truncate_prompt_tokens", 3, "leave it out"),
    ("skip_special_tokens", False, "leave it out"),
    ("include_stop_str_in_output", True, "leave it out"),
    ("sampling_params", {"max_tokens": 3}, "give what it holds as fields of the record instead"),
]
TGI = [
    ("parameters", {"max_new_tokens": 3}, "give what it holds as fields of the record instead"),
    ("stop_sequences", ["x"], "give stop instead"),
    ("return_full_text", True, "leave it out"),
    ("truncate", 100, "leave it out"),
    ("watermark", True, "leave it out"),
    ("typical_p", 0.9, "leave it out"),
    ("grammar", {"type": "regex", "value": "a"}, "leave it out"),
]
TRANSFORMERS = [
    ("max_length", 30, "give max_new_tokens instead"),
    ("min_length", 3, "leave it out"),
    ("min_new_tokens", 3, "give min_tokens instead"),
    ("stop_strings", "x", "give stop instead"),
    ("num_beams", 4, "leave it out"),
    ("num_return_sequences", 2, "give n instead"),
    ("no_repeat_ngram_size", 3, "leave it out"),
    ("eos_token_id", 2, "leave it out"),
    ("bad_words_ids", [[5]], "leave it out"),
    ("suppress_tokens", [5], "leave it out"),
    ("do_sample", True, "give a temperature above 0 instead"),
    ("do_sample", "yes", "leave it out"),
    ("generation_config", {"num_beams": 2}, "give what it holds as fields of the record instead"),
]
LLAMA_CPP = [
    ("n_predict", -1, "give max_new_tokens instead"),
    ("repeat_penalty", 1.1, "give repetition_penalty instead"),
    ("json_schema", {"type": "object"}, "leave it out"),
    ("mirostat", 2, "leave it out"),
    ("xtc_probability", 0.1, "leave it out"),
    ("top_n_sigma", 1, "leave it out"),
    ("samplers", ["top_k"], "leave it out"),
    ("temp", 0.5, "give temperature instead"),
    ("system_prompt", "Be brief.", 'give messages that begin with one of the role "system" instead'),
    ("lora", [{"id": 0, "scale": 1}], "leave it out"),
]
LM_EVAL = [
    ("until", ["\n\n"], "give stop instead"),
    ("max_gen_toks", 256, "give max_new_tokens instead"),
    ("gen_kwargs", {"until": ["x"]}, "give what it holds as fields of the record instead"),
]
REFUSED = OPENAI + VLLM + TGI + TRANSFORMERS + LLAMA_CPP + LM_EVAL


def line(**fields):
    return json.dumps({"prompt": "x", **fields}) + "\n"


@pytest.mark.parametrize(("name", "value", "way_out"), REFUSED, ids=str)
def test_a_setting_that_would_change_the_answer_is_refused(tmp_path, name, value, way_out):
    path = write(tmp_path, GOOD + line(**{name: value}))
    with pytest.raises(ValueError, match="line 2") as refusal:
        PromptFile(path)
    says = "contradicts the temperature" if name == "do_sample" else "would change the answer and is not read"
    assert str(refusal.value) == f"{path}, line 2: {name} {json.dumps(value)} {says}; {way_out}."


CHANGES_NOTHING = {
    "best_of": [1],
    "num_beams": [1],
    "use_beam_search": [False],
    "repeat_penalty": [1.0],
    "length_penalty": [1.0],
    "no_repeat_ngram_size": [0],
    "min_new_tokens": [0],
    "min_p": [0.0],
    "typical_p": [1.0],
    "top_n_sigma": [-1, 0.0],
    "bad_words": [[]],
    "stop_sequences": [[], ""],
    "tool_choice": ["none", "auto"],
    "response_format": [{"type": "text"}],
    "chat_template_kwargs": [{}],
    "add_generation_prompt": [True],
    "skip_special_tokens": [True],
    "echo": [False],
    "system": [""],
    "parameters": [{}, "a column of a data set"],
    "options": [["A", "B"]],
    "reasoning": ["because"],
}


@pytest.mark.parametrize(
    ("name", "value"), [(name, value) for name, values in CHANGES_NOTHING.items() for value in [*values, None]], ids=str
)
def test_a_value_that_changes_nothing_stays_unread(tmp_path, name, value):
    file = PromptFile(write(tmp_path, line(**{name: value})))
    assert (file.num_records, file.unused_fields) == (1, (name,))


CANNOT_MATTER = [
    "user",
    "metadata",
    "model",
    "stream",
    "stream_options",
    "logprobs",
    "category",
    "reference",
    "priority",
]


@pytest.mark.parametrize("name", CANNOT_MATTER)
def test_what_cannot_matter_stays_unread(tmp_path, name):
    assert PromptFile(write(tmp_path, line(**{name: "gold"}))).unused_fields == (name,)


def test_a_name_beside_its_own_of_the_same_value_stays_unread(tmp_path):
    same = line(max_tokens=5, max_new_tokens=5, until=["x"], stop=["x"], temp=0.5, temperature=0.5)
    assert PromptFile(write(tmp_path, same)).unused_fields == ("temp", "until")
    path = write(tmp_path, line(max_tokens=6, max_new_tokens=5))
    with pytest.raises(ValueError, match=r"line 1: max_tokens 6 would change .* give max_new_tokens instead\."):
        PromptFile(path)


def test_do_sample_has_to_agree_with_the_temperature(tmp_path):
    agree = line(do_sample=True, temperature=0.5) + line(do_sample=False, temperature=0) + line(do_sample=None)
    file = PromptFile(write(tmp_path, agree + line(do_sample=False)))
    assert file.unused_fields == ()
    assert [record.temperature for record in file] == [0.5, 0.0, None, 0.0]  # greedy, whatever the run's temperature is
    for given, way_out in [((True, 0), "a temperature above 0"), ((False, 0.5), "temperature 0")]:
        path = write(tmp_path, line(do_sample=given[0], temperature=given[1]))
        with pytest.raises(ValueError, match=rf"line 1: do_sample {json.dumps(given[0])} .*; give {way_out} instead\."):
            PromptFile(path)


def test_outputs_of_other_settings_are_refused_too(tmp_path):
    path = write(tmp_path, json.dumps({"prompt_ids": [1], "token_ids": [2], "encoder_repetition_penalty": 1.1}))
    with pytest.raises(ValueError, match=r"line 1: encoder_repetition_penalty 1\.1 would change the answer"):
        OutputFile(path)


def test_the_command_refuses_before_anything_is_loaded(run, tmp_path, own_caches):
    path = write(tmp_path, GOOD + line(max_length=5))
    for command in (
        ["generate", "--input", path, "--output", tmp_path / "a.jsonl"],
        ["verify", "--input", path],
        ["verify", "--outputs", path],
    ):
        code, out, err = run(*command, "--model", "no/such")
        says = "max_length 5 would change the answer and is not read; give max_new_tokens instead."
        assert (code, out, err) == (2, "", f"error: {path}, line 2: {says}\n")
