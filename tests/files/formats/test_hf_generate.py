"""What transformers gives.

Fixtures follow transformers 5.24: generation/utils.py (GenerateDecoderOnlyOutput, whose `sequences` begin with the input) and
pipelines/text_generation.py (`generated_text`, `generated_token_ids`, `return_full_text`, conversations).
"""

import pytest
from support.files.outputs import ITEM, read

from jax_probe_mtp.files.formats import hf_generate
from jax_probe_mtp.files.formats.given import GivenOutput
from jax_probe_mtp.files.records.record import Record


def test_sequences_begin_with_their_prompts():
    value = {"id": "a", "input_ids": [[1, 5]], "sequences": [[1, 5, 7, 2], [1, 5, 8, 8]], "do_sample": True}
    assert hf_generate.matches(value)
    outputs = read(hf_generate, value | {"temperature": 0.5, "seed": 2**40})
    assert outputs == [
        GivenOutput(
            record=Record(index=4, id="a", sample=sample, prompt_ids=[1, 5], temperature=0.5),
            token_ids=token_ids,
            includes_prompt=True,
            is_padded=True,
        )
        for sample, token_ids in enumerate([[1, 5, 7, 2], [1, 5, 8, 8]])
    ]


def test_padding_in_front_is_left_out():
    value = {"input_ids": [0, 0, 5], "attention_mask": [[0, 0, 1]], "sequences": [0, 0, 5, 7]}
    [output] = read(hf_generate, value)
    assert (output.record.prompt_ids, output.token_ids) == ([5], [5, 7])
    assert (output.record.id, output.is_named) == (ITEM.number, False)


def test_padding_is_cut_off_only_where_the_prompt_is_there():
    value = {
        "input_ids": [[0, 0, 5]],
        "attention_mask": [[0, 0, 1]],
        "sequences": [[7, 8, 9]],
        "return_full_text": False,
    }
    [output] = read(hf_generate, value)
    assert (output.record.prompt_ids, output.token_ids, output.includes_prompt) == ([5], [7, 8, 9], False)


BATCH = {
    "input_ids": [[0, 0, 5], [1, 6, 4]],
    "attention_mask": [[0, 0, 1], [1, 1, 1]],
    "sequences": [[0, 0, 5, 7, 2], [1, 6, 4, 8, 9]],
}


def test_each_prompt_of_a_batch_is_a_record_with_its_own_padding():
    assert read(hf_generate, BATCH | {"id": ["a", "b"], "max_new_tokens": 2}) == [
        GivenOutput(
            record=Record(index=4, id=name, prompt_ids=prompt_ids, max_new_tokens=2),
            token_ids=token_ids,
            includes_prompt=True,
            is_padded=True,
        )
        for name, prompt_ids, token_ids in [("a", [5], [5, 7, 2]), ("b", [1, 6, 4], [1, 6, 4, 8, 9])]
    ]


def test_several_rows_to_each_prompt_of_a_batch_are_its_samples():
    rows = [[0, 0, 5, 7], [0, 0, 5, 8], [1, 6, 4, 9], [1, 6, 4, 3]]
    expected = [
        ("a", 0, [5], [5, 7]),
        ("a", 1, [5], [5, 8]),
        ("b", 0, [1, 6, 4], [1, 6, 4, 9]),
        ("b", 1, [1, 6, 4], [1, 6, 4, 3]),
    ]
    for stated in ({}, {"num_return_sequences": 2}):
        outputs = read(hf_generate, BATCH | {"id": ["a", "b"], "sequences": rows} | stated)
        assert [(o.record.id, o.record.sample, o.record.prompt_ids, o.token_ids) for o in outputs] == expected


@pytest.mark.parametrize(("name", "ids", "is_named"), [({}, ["7.1", "7.2"], False), ({"id": 3}, ["3.1", "3.2"], True)])
def test_prompts_of_a_batch_without_ids_of_their_own_are_counted(name, ids, is_named):
    outputs = read(hf_generate, BATCH | name)
    assert [(output.record.id, output.is_named) for output in outputs] == [(each, is_named) for each in ids]


def test_a_batch_of_one_has_its_one_id():
    [output] = read(hf_generate, {"id": ["a"], "input_ids": [[1, 5]], "sequences": [[1, 5, 7]]})
    assert output.record.id == "a"


def test_input_ids_come_before_the_text_that_they_were_made_of():
    [output] = read(hf_generate, {"prompt": "Say this", "input_ids": [1, 5], "sequences": [[1, 5, 7]]})
    assert (output.record.prompt, output.record.prompt_ids, output.is_plain_prompt) == (None, [1, 5], False)


def test_texts_of_the_pipeline():
    one, two = {"generated_text": "Say this is"}, {"generated_text": "Say this was"}
    assert hf_generate.matches([one, two])
    outputs = read(hf_generate, [one, two])
    assert [(each.record.sample, each.text, each.includes_prompt, each.has_prompt) for each in outputs] == [
        (0, "Say this is", True, False),
        (1, "Say this was", True, False),
    ]
    [output] = read(hf_generate, {"prompt": "Say this", "generated_text": " is", "return_full_text": False})
    assert output == GivenOutput(
        record=Record(index=4, id=7, prompt="Say this"), is_named=False, is_plain_prompt=True, text=" is"
    )


def test_ids_of_the_pipeline():
    [output] = read(hf_generate, {"prompt": "Say this", "generated_token_ids": [5, 7]})
    assert (output.token_ids, output.includes_prompt, output.is_padded) == ([5, 7], True, True)


def test_conversations_of_the_pipeline():
    asked = {"role": "user", "content": "Hi"}
    [output] = read(hf_generate, {"generated_text": [asked, {"role": "assistant", "content": "Ho"}]})
    assert (output.record.messages, output.text, output.includes_prompt) == ([asked], "Ho", False)


@pytest.mark.parametrize(
    ("value", "says"),
    [
        ({"sequences": [["x"]]}, 'sequences must be a list of whole numbers, got ["x"].'),
        ({"sequences": None}, "generated_text must be a text or a list of messages, got null."),
        (
            BATCH | {"sequences": [[1]] * 3},
            "there are 3 outputs to 2 prompts of input_ids; give as many rows of sequences for each.",
        ),
        (BATCH | {"sequences": [1]}, "there are 1 outputs to 2 prompts of input_ids;"),
        (
            BATCH | {"sequences": [[1]] * 4, "num_return_sequences": 4},
            "there are 4 outputs to 2 prompts of input_ids with num_return_sequences 4;",
        ),
        (BATCH | {"num_return_sequences": "1"}, 'of input_ids with num_return_sequences "1";'),
        (BATCH | {"id": ["a"]}, "id holds 1 ids, but there are 2 prompts; give as many."),
        (BATCH | {"id": ["a", None]}, "id must be a text or a whole number, got null."),
        (BATCH | {"id": {}}, "id must be a text or a whole number, got {}."),
        (
            BATCH | {"attention_mask": [[0, 0, 1], [1, 1]]},
            "attention_mask has rows of [3, 2] numbers, but input_ids of [3, 3]; give a number for each token.",
        ),
        (BATCH | {"attention_mask": [1, 1, 1]}, "attention_mask has rows of [3] numbers, but input_ids of [3, 3];"),
        (
            BATCH | {"attention_mask": [[0, 0, 1], [1, 1, 0]]},
            "attention_mask must be 0 for padding in front of a prompt and 1 for its tokens, got [1, 1, 0]; pad on the left.",
        ),
        (
            {"input_ids": [1], "attention_mask": True, "sequences": [1]},
            "attention_mask must be a list of whole numbers",
        ),
        ({"generated_text": 5}, "generated_text must be a text or a list of messages, got 5."),
        (
            {"generated_text": [{"role": "user", "content": "x"}]},
            "generated_text must end with the answer to a message",
        ),
        ({"sequences": [1], "num_beams": 4}, "num_beams 4 would change the answer"),
        ({"sequences": [1], "prompt": "x", "prompt_ids": [1]}, "has prompt and prompt_ids; give one of them."),
    ],
)
def test_what_is_refused(value, says):
    with pytest.raises(ValueError) as refused:  # noqa: PT011
        read(hf_generate, value)
    assert str(refused.value).startswith(ITEM.where)
    assert says in str(refused.value)
