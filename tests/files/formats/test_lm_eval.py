"""Samples of lm-evaluation-harness.

Fixtures follow its lm_eval/evaluator.py (what a sample holds) and lm_eval/loggers/evaluation_tracker.py
(save_results_samples: arguments as numbered keys, leaves of resps as texts), versions 0.4.3 to 0.4.9; and
lm_eval/models/api_models.py (JsonChatStr) for prompts of chat APIs.
"""

import json

import pytest
from support.files.outputs import ITEM, read

from jax_probe_mtp.files.formats import lm_eval
from jax_probe_mtp.files.formats.given import GivenOutput
from jax_probe_mtp.files.records.record import Record

SETTINGS = {"until": ["Question:", "</s>", ""], "do_sample": False, "temperature": 0.0, "max_gen_toks": 256}
SAMPLE = {
    "doc_id": 3,
    "doc": {"question": "How many?", "answer": "#### 7"},
    "target": "#### 7",
    "arguments": {"gen_args_0": {"arg_0": "Question: How many?\nAnswer:", "arg_1": SETTINGS}},
    "resps": [[" It is 7."]],
    "filtered_resps": ["7"],
    "filter": "strict-match",
    "metrics": ["exact_match"],
    "doc_hash": "a",
    "prompt_hash": "b",
    "target_hash": "c",
    "exact_match": 1.0,
}


def test_the_prompt_is_the_whole_text_that_was_given():
    assert lm_eval.matches(SAMPLE)
    assert read(lm_eval, SAMPLE) == [
        GivenOutput(
            record=Record(
                index=4,
                id=3,
                prompt="Question: How many?\nAnswer:",
                temperature=0.0,
                max_new_tokens=256,
                stop=("Question:", "</s>"),
            ),
            is_plain_prompt=True,
            text=" It is 7.",
        )
    ]


def test_several_answers_to_one_document_are_samples():
    outputs = read(lm_eval, SAMPLE | {"resps": [["a", "b"]]})
    assert [(each.record.sample, each.text) for each in outputs] == [(0, "a"), (1, "b")]


@pytest.mark.parametrize(
    "arguments",
    [
        [["Question: How many?\nAnswer:", SETTINGS]],  # as earlier versions write them
        ["Question: How many?\nAnswer:", SETTINGS],
    ],
)
def test_arguments_in_lists(arguments):
    assert read(lm_eval, SAMPLE | {"arguments": arguments}) == read(lm_eval, SAMPLE)


def test_settings():
    def record(**settings):
        return read(lm_eval, SAMPLE | {"arguments": [["x", {"until": ["\n"]} | settings]]})[0].record

    assert (record().temperature, record().stop) == (None, ("\n",))
    assert record(do_sample=False, temperature=0.7).temperature == 0.0  # which is then not read
    assert record(do_sample=True, temperature=0.7, top_p=0.9).temperature == 0.7
    with pytest.raises(ValueError, match="num_beams 4 would change the answer"):
        record(num_beams=4)


def test_conversations_of_chat_apis():
    messages = [{"role": "user", "content": "How many?"}]
    [output] = read(lm_eval, SAMPLE | {"arguments": [[[json.dumps(messages)], SETTINGS]]})
    assert output.record.messages == messages


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"resps": [["-3.5", "False"], ["-2.5", "True"]]}, 'resps must be one list of texts, got [["-3.5", "False"]'),
        ({"resps": [[-3.5]]}, "resps must be one list of texts, got [[-3.5]]."),
        (
            {
                "arguments": {
                    "gen_args_0": {"arg_0": "x", "arg_1": " yes"},
                    "gen_args_1": {"arg_0": "x", "arg_1": " no"},
                }
            },
            "arguments must be those of one request, got",
        ),
        (
            {"arguments": {"gen_args_0": {"arg_0": "x", "arg_1": " yes"}}},
            'arguments must be a prompt and the settings of generate_until, got ["x", " yes"]; leave tasks of another kind',
        ),
        ({"arguments": [["x", {"until": [["x"]]}]]}, "stop must be a text or a list of at most 16 texts"),
        ({"arguments": [[5, SETTINGS]]}, "the prompt must be a text, got 5."),
        ({"doc_id": 1.5}, "id must be a text or a whole number, got 1.5."),
    ],
)
def test_what_is_refused(changes, says):
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        read(lm_eval, SAMPLE | changes)
    assert str(refused.value).startswith(ITEM.where)
    assert says in str(refused.value)
