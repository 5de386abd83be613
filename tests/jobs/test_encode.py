"""Records in tokens: with the chat template or without, and the cache slots that they need."""

import dataclasses
import datetime
import json

import pytest
from checkpoints import ASSISTANT, make_checkpoint, make_tokenizer, word, words, write_folder
from conftest import BASE
from support.files.job_runs import FAILING, SIZES, files, read

from jax_probe_mtp import Prompt, Settings
from jax_probe_mtp.files.records.record import Record
from jax_probe_mtp.jobs.encode import Encoder
from jax_probe_mtp.jobs.survey import survey


def test_messages_need_the_chat_template(generate, tmp_path):
    records = [{"id": 1, "messages": [{"role": "user", "content": "w7"}]}, {"id": 2, "prompt": "w7"}]
    records += [{"id": 3, "prompt_ids": [1], "temperature": 1}]
    flags = ["--no-chat-template", "--ordered", "--max-new-tokens", "2", *SIZES]
    assert generate(*files(tmp_path, records), *flags)[0] == 3
    bad, good, _ = map(json.loads, read(tmp_path / "answers.jsonl"))
    assert bad["error"] == "messages need the chat template; leave --no-chat-template out, or give a prompt alone."
    assert (good["prompt_ids"], good["finish_reason"]) == ([7], "length")


TURNS = "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
ENDS = [{"role": "user", "content": word(7)}, {"role": "assistant", "content": words(5, 6)}]


def test_the_records_own_word_counts_before_the_runs():
    tokenizer = make_tokenizer(61, template=TURNS)
    for of_run, own, continues in ((False, True, True), (True, None, True), (True, False, False), (False, None, False)):
        encode = Encoder(tokenizer, continue_final_message=of_run)
        record = Record(index=0, id="x", messages=ENDS, continue_final_message=own, stop=("s",), seed=3, top_k=4)
        if continues:
            assert encode(record) == Prompt(id="x", token_ids=[7, 5, 6], stop=("s",), seed=3, top_k=4)
        else:
            with pytest.raises(ValueError, match="--continue-final-message"):
                encode(record)
    for record in (Record(index=0, id=0, prompt=word(7)), Record(index=0, id=0, messages=ENDS[:1])):
        assert Encoder(tokenizer, continue_final_message=True)(record).token_ids == [7, ASSISTANT]
    assert Encoder(tokenizer, continue_final_message=True)(Record(index=0, id=0, prompt_ids=[5])).token_ids == [5]


def test_every_record_is_told_the_date_of_the_run():
    tokenizer = make_tokenizer(61, template="{{ strftime_now('w%d w%m') }} " + TURNS)
    encode = Encoder(tokenizer, date=datetime.datetime(2031, 12, 14))
    for record in (Record(index=0, id=0, prompt=word(7)), Record(index=0, id=0, messages=ENDS[:1])):
        assert encode(record).token_ids == [14, 12, 7, ASSISTANT]
    assert dataclasses.replace(encode, use_chat_template=False)(Record(index=0, id=0, prompt=word(7))).token_ids == [7]


def test_a_conversation_that_ends_with_the_assistant_costs_itself_alone(generate, tiny, tmp_path):
    model = write_folder(tmp_path / "model", make_checkpoint(tiny, template=TURNS))
    records = [{"id": "refused", "messages": ENDS}, {"id": "asked", "messages": ENDS, "continue_final_message": True}]
    records += [
        {"id": "told not to", "messages": ENDS, "continue_final_message": False},
        {"id": "other", "prompt": "w7"},
    ]
    flags = ["--ordered", "--max-new-tokens", "2", *SIZES]
    assert generate(*files(tmp_path, records), *flags, of=model)[0] == 3
    lines = list(map(json.loads, read(tmp_path / "answers.jsonl")))
    assert [line["finish_reason"] for line in lines] == ["error", "length", "error", "length"]
    assert [line["prompt_ids"] for line in lines] == [[], [7, 5, 6], [], [7, ASSISTANT]]
    assert "--continue-final-message" in lines[0]["error"]
    (tmp_path / "answers.jsonl").unlink()
    assert generate(*files(tmp_path, records), *flags, "--continue-final-message", of=model)[0] == 3
    lines = list(map(json.loads, read(tmp_path / "answers.jsonl")))
    assert [line["prompt_ids"] for line in lines] == [[7, 5, 6], [7, 5, 6], [], [7, ASSISTANT]]


def test_the_capacity_is_that_of_the_longest_record_that_fits():
    tokenizer = make_tokenizer(61, template=FAILING)

    def capacity(*records, cfg=BASE, use_chat_template=True):
        records = [Record(index=i, id=i, **record) for i, record in enumerate(records)]
        encode = Encoder(tokenizer, use_chat_template=use_chat_template)
        return survey(records, cfg, encode, Settings(max_new_tokens=20)).capacity

    assert capacity({"prompt_ids": [1]}) == 64  # the smallest one
    assert capacity({"prompt_ids": [1] * 45}) == 64  # 45 + 20 - 1: the last token needs no slot
    assert capacity({"prompt_ids": [1] * 46}) == 128
    assert capacity({"prompt_ids": [1] * 46}, {"prompt_ids": [1]}) == 128
    assert capacity({"prompt_ids": [1] * 46, "max_new_tokens": 19}) == 64
    assert capacity({"prompt_ids": [1], "max_new_tokens": 200}) == 256
    assert (
        capacity({"prompt_ids": [1], "max_new_tokens": 512}, {"prompt_ids": [1]}) == 64
    )  # more than the context of 512
    assert capacity({"prompt_ids": [1], "max_new_tokens": 511}) == 512
    assert capacity({"prompt": words(*[1] * 43)}) == 128  # with the three tokens of the template
    assert capacity({"prompt": words(*[1] * 43)}, use_chat_template=False) == 64
    assert capacity({"prompt": word(50)}, {"prompt_ids": [1] * 46}) == 128  # the first one's template fails
    short = dataclasses.replace(BASE, context_length=50)
    assert capacity({"prompt_ids": [1] * 30}, cfg=short) == 50  # not a bucket of 64


def test_the_records_own_variables_come_before_the_runs():
    template = "{{ a }} {{ b }} " + TURNS
    encode = Encoder(make_tokenizer(61, template=template), system="w9", template_kwargs={"a": "w1", "b": "w2"})
    own = Record(index=0, id=0, prompt=word(7), template_kwargs={"b": "w3"})
    assert encode(own).token_ids == [1, 3, 9, 7, ASSISTANT]
    assert encode(Record(index=0, id=0, messages=ENDS[:1])).token_ids == [1, 2, 9, 7, ASSISTANT]
    assert encode(Record(index=0, id=0, prompt_ids=[5])).token_ids == [5]
    plain = Encoder(make_tokenizer(61, template=template), use_chat_template=False)
    assert plain(dataclasses.replace(own, template_kwargs=None)).token_ids == [7]
    with pytest.raises(ValueError, match="template_kwargs need the chat template; leave --no-chat-template out"):
        plain(own)


def test_what_the_run_tells_templates_decides_its_answers(generate, tiny, tmp_path):
    model = write_folder(tmp_path / "model", make_checkpoint(tiny, template="{{ a }} " + TURNS))
    where = [*files(tmp_path, [{"id": 1, "prompt": "w7"}]), "--model", model, "--max-new-tokens", "2", *SIZES]
    told = ["--system", "w9", "--template-kwargs", '{"a": "w1"}']
    assert generate(*where, *told)[0] == 0
    (answer,) = map(json.loads, read(tmp_path / "answers.jsonl"))
    assert answer["prompt_ids"] == [1, 9, 7, ASSISTANT]
    assert generate(*where, *told)[0] == 0
    for changed, says in (
        (told[:2], "template_kwargs"),
        (told[2:], "system"),
        ([*told[:3], '{"a": "w2"}'], "template_kwargs"),
        (["--system", "", *told[2:]], "system"),
    ):
        code, _, err = generate(*where, *changed)
        assert (code, err.count("\n")) == (2, 1)
        assert says in err


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--template-kwargs", "{"], "--template-kwargs must be a JSON object, got '{'."),
        (["--template-kwargs", "[1]"], "--template-kwargs must be a JSON object, got '[1]'."),
        (["--template-kwargs", '{"thinking": 1}'], "the chat template knows no thinking"),
        (
            ["--system", "x", "--no-chat-template"],
            "--system is for the chat template, which --no-chat-template leaves out;",
        ),
        (["--template-kwargs", '{"a":' * 100_000], "--template-kwargs must be a JSON object"),
        (["--template-kwargs", '{"a": 1}', "--no-chat-template"], "--template-kwargs is for the chat template"),
        (["--system", "caf\udce9"], "--system is not UTF-8 text (character 3); convert it first."),
    ],
)
def test_what_no_template_can_be_told(generate, tmp_path, flags, says):
    code, out, err = generate(*files(tmp_path, [{"id": 1, "prompt": "w7"}]), *flags, *SIZES)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert says in err
