"""Dumps of vLLM's RequestOutput.

Fixtures follow vLLM's vllm/outputs.py (RequestOutput, CompletionOutput), vllm/logprobs.py (Logprob, FlatLogprobs) and
vllm/sampling_params.py (SamplingParams, which leaves defaults out of a dump), releases 0.11 and later.
"""

import pytest
from support.files.outputs import ITEM, read

from jax_probe_mtp.files.formats import vllm
from jax_probe_mtp.files.formats.given import GivenOutput
from jax_probe_mtp.files.records.record import Record

PLACES = [
    {"7": {"logprob": -0.25, "rank": 1, "decoded_token": " seven"}, "3": {"logprob": -2.5, "rank": 2}},
    {"2": {"logprob": 0.0, "rank": 1, "decoded_token": "</s>"}},
]
ONE = {
    "index": 0,
    "text": " seven",
    "token_ids": [7, 2],
    "cumulative_logprob": -0.25,
    "logprobs": PLACES,
    "finish_reason": "stop",
    "stop_reason": None,
    "lora_request": None,
}
TWO = {"index": 1, "text": " six six", "token_ids": [6, 6], "logprobs": None, "finish_reason": "length"}
REQUEST = {
    "request_id": "12",
    "prompt": "How many?",
    "prompt_token_ids": [1, 4, 5],
    "prompt_logprobs": None,
    "outputs": [ONE, TWO],
    "finished": True,
    "metrics": None,
    "num_cached_tokens": 0,
}


def test_several_outputs_are_samples():
    assert vllm.matches(REQUEST)
    first, second = read(vllm, REQUEST)
    assert first == GivenOutput(
        record=Record(index=4, id="12", prompt_ids=[1, 4, 5]),
        token_ids=[7, 2],
        text=" seven",
        logprobs=[-0.25, 0.0],
        finish_reason="stop",
        says_stop_reason=True,
    )
    assert second == GivenOutput(
        record=Record(index=4, id="12", sample=1, prompt_ids=[1, 4, 5]),
        token_ids=[6, 6],
        text=" six six",
        finish_reason="length",
    )


def test_a_prompt_without_ids_is_plain_text():
    [output] = read(vllm, REQUEST | {"prompt_token_ids": None, "outputs": [ONE]})
    assert (output.record.prompt, output.record.prompt_ids, output.is_plain_prompt) == ("How many?", None, True)


def test_what_sampling_params_leave_out_is_vllms_default():
    params = {"top_k": -1, "seed": 2**40, "stop": ["\n"], "skip_special_tokens": False, "_all_stop_token_ids": [2]}
    [output] = read(vllm, REQUEST | {"outputs": [ONE], "sampling_params": params})
    record = output.record
    assert (record.temperature, record.max_new_tokens, record.top_k, record.stop) == (1.0, 16, 0, ("\n",))
    assert record.seed is None  # of another noise
    [output] = read(vllm, REQUEST | {"outputs": [ONE], "sampling_params": {"temperature": 0, "max_tokens": 3}})
    assert (output.record.temperature, output.record.max_new_tokens) == (0.0, 3)


def test_no_ids_no_name():
    [output] = read(vllm, REQUEST | {"request_id": None, "outputs": [ONE]})
    assert (output.record.id, output.is_named) == (ITEM.number, False)


FLAT = {  # FlatLogprobs: two tokens at the first place, one at the second
    "start_indices": [0, 2],
    "end_indices": [2, 3],
    "token_ids": [7, 3, 2],
    "logprobs": [-0.25, -2.5, 0.0],
    "ranks": [1, 2, 1],
    "decoded_tokens": [" seven", " three", "</s>"],
}


@pytest.mark.parametrize(
    "columns",
    [
        {},
        {"token_ids": [3, 7, 2], "logprobs": [-2.5, -0.25, 0.0]},  # the order within a place does not count
        {"start_indices": [1, 0], "end_indices": [3, 1], "token_ids": [2, 7, 5], "logprobs": [0.0, -0.25, -1.0]},
        {"ranks": None, "decoded_tokens": None},
    ],
)
def test_flat_log_probabilities(columns):
    flat = FLAT | columns
    [output] = read(vllm, REQUEST | {"outputs": [ONE | {"logprobs": flat}]})
    assert output.logprobs == [-0.25, 0.0]


@pytest.mark.parametrize(
    "logprobs",
    [
        [PLACES[0]],  # of another number of tokens
        [PLACES[0], {}],
        [PLACES[0], {"2": {"logprob": None}}],
        {"token_ids": [7, 2], "logprobs": [-0.25, 0.0]},
        *(
            FLAT | columns
            for columns in (
                {"start_indices": [0], "end_indices": [2]},  # of another number of tokens
                {"end_indices": [2]},
                {"end_indices": [2, 4]},
                {"start_indices": [-3, 2]},
                {"start_indices": [2, 2], "end_indices": [0, 3]},
                {"start_indices": ["0", 2]},
                {"start_indices": 0},
                {"logprobs": [-0.25, -2.5]},
                {"logprobs": [-0.25, -2.5, None]},
                {"token_ids": [6, 3, 2]},  # the token is not among them
            )
        ),
    ],
)
def test_log_probabilities_that_are_not_all_there_are_left_out(logprobs):
    [output] = read(vllm, REQUEST | {"outputs": [ONE | {"logprobs": logprobs}]})
    assert output.logprobs is None


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"outputs": []}, "f.jsonl, line 7: outputs must be a list of objects, at least one, got []."),
        ({"outputs": [ONE | {"token_ids": "x"}]}, 'token_ids must be a list of whole numbers, got "x".'),
        ({"outputs": [ONE | {"index": -1}]}, "index must be a whole number of at least 0, got -1."),
        ({"outputs": [ONE | {"stop_reason": [2]}]}, "stop_reason must be a text or a token id, got [2]."),
        ({"prompt_token_ids": [True]}, "prompt_token_ids must be a list of whole numbers, got [true]."),
        ({"sampling_params": "greedy"}, 'sampling_params must be an object, got "greedy".'),
        ({"sampling_params": {"temperature": -1}}, "temperature must be a number of at least 0, got -1."),
        ({"sampling_params": {"bad_words": ["x"]}}, 'bad_words ["x"] would change the answer and is not read'),
        ({"request_id": [1]}, "id must be a text or a whole number, got [1]."),
    ],
)
def test_what_is_refused(changes, says):
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        read(vllm, REQUEST | changes)
    assert str(refused.value).startswith("f.jsonl, line 7: ")
    assert says in str(refused.value)
