"""Prompts in a chat template: which turns are opened, which are continued, and what a template is told of the date."""

import datetime

import pytest
from checkpoints import ASSISTANT, EOS, TEMPLATE, USER, make_tokenizer, words
from support.generation.byte_level import byte_level_tokenizer

from jax_probe_mtp.generation.tokenizer import encode, encode_messages

TURNS = (
    "{% for m in messages %}{{ '<user>' if m['role'] == 'user' else '<bot>' }} {{ m['content'] }} "
    "{{ '</s> ' if m['role'] == 'assistant' }}{% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
)
ASKED, SAID = {"role": "user", "content": words(7)}, {"role": "assistant", "content": words(5, 6)}


@pytest.mark.parametrize("template", [TURNS, TURNS.replace("m['content']", "m['content'] | trim")])
@pytest.mark.parametrize("space", ["", " "])
def test_the_assistants_last_message_is_continued(template, space):
    said = SAID | {"content": SAID["content"] + space}
    tokenizer = make_tokenizer(61, template=template)
    assert encode_messages(tokenizer, [ASKED, said], continue_final_message=True) == [USER, 7, ASSISTANT, 5, 6]
    first, last = {"role": "assistant", "content": words(5)}, said
    prompt = [USER, 7, ASSISTANT, 5, EOS, USER, 7, ASSISTANT, 5, 6]
    assert encode_messages(tokenizer, [ASKED, first, ASKED, last], continue_final_message=True) == prompt
    assert encode_messages(tokenizer, [said], continue_final_message=True) == [ASSISTANT, 5, 6]


def test_another_last_message_opens_the_assistants_turn_as_ever():
    tokenizer = make_tokenizer(61, template=TURNS)
    for continues in (False, True):
        how = {"continue_final_message": continues}
        assert encode_messages(tokenizer, [ASKED], **how) == [USER, 7, ASSISTANT]
        turns = [USER, 7, ASSISTANT, 5, 6, EOS, USER, 7, ASSISTANT]
        assert encode_messages(tokenizer, [ASKED, SAID, ASKED], **how) == turns


def test_no_second_turn_of_the_assistants_begins():
    with pytest.raises(ValueError, match=r"\Athe last message is the assistant's, .*--continue-final-message") as error:
        encode_messages(make_tokenizer(61, template=TURNS), [ASKED, SAID])
    assert "\n" not in str(error.value)


NO_PREFILL = "{% if messages[-1]['role'] == 'assistant' %}{{ raise_exception('no\nprefill') }}{% endif %}" + TURNS


@pytest.mark.parametrize(
    ("template", "why"),
    [
        (TEMPLATE, "the final message does not appear in the chat"),  # it shows the first message alone
        (TURNS.replace("m['content']", "m['content'] | upper"), "the final message does not appear in the chat"),
        (TURNS.replace("m['content']", "m['content'][:4]"), "the final message does not appear in the chat"),
        (NO_PREFILL, "no prefill"),
    ],
    ids=["left out", "changed", "cut", "refused"],
)
def test_a_template_that_does_not_allow_it(template, why):
    with pytest.raises(ValueError, match="the chat template cannot go on with the assistant's last message") as error:
        encode_messages(make_tokenizer(61, template=template), [ASKED, SAID], continue_final_message=True)
    assert why in str(error.value)
    assert str(error.value).endswith("; end with the user's.")
    assert "\n" not in str(error.value)
    assert len(str(error.value)) < 260


MOMENT = datetime.datetime(2031, 3, 7, 9, 5)  # a Friday, day 66 of its year


@pytest.fixture
def said():
    """Gives the text that a template makes of a prompt."""
    tokenizer = byte_level_tokenizer()

    def said(template, date):
        tokenizer.chat_template = template
        texts = [
            tokenizer.decode(ids)
            for ids in (
                encode(tokenizer, "x", use_chat_template=True, date=date),
                encode_messages(tokenizer, [{"role": "user", "content": "x"}], date=date),
            )
        ]
        assert texts[0] == texts[1]
        return texts[0]

    return said


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("{{ strftime_now('%d %b %Y') }}|{{ messages[0]['content'] }}", "07 Mar 2031|x"),
        ("{{ strftime_now(format='%Y-%m-%d') }}", "2031-03-07"),
        ("{{ strftime_now('%-d/%-m %%d %A %H:%M, day %j, 100%%') }}", "7/3 %d Friday 09:05, day 066, 100%"),
        ("{% if strftime_now is defined %}{% set d = strftime_now('%Y') %}{% endif %}{{ d | int + 1 }}", "2032"),
        ("{% macro m() %}{{ strftime_now('%m') }}{% endmacro %}{{ m() + strftime_now('/%y') }}", "03/31"),
        ("{{- bos_token }}{{ strftime_now('%B').upper() }}", "MARCH"),
    ],
)
def test_a_template_is_told_the_date_that_is_given(said, template, text):
    assert said(template, MOMENT) == text


@pytest.mark.parametrize("template", ["{}x", "\n{}", "  {}", "{}\n\n y", " {{%- if true %}}{}{{% endif %}}"])
def test_nothing_else_of_the_text_changes(said, template):
    """White space before and after tags, where templates are sensitive."""
    template = template.format("{% if true %}\n  {{ strftime_now('now') }}\n  {% endif %}\n ")
    assert said(template, MOMENT) == said(template, None)


def test_without_a_date_it_is_told_the_present(said):
    before = datetime.datetime.now().year
    assert before <= int(said("{{ strftime_now('%Y') }}", None)) <= datetime.datetime.now().year
