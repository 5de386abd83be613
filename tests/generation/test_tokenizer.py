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


TOLD = (
    "{% if tools %}{{ tools[0]['name'] }} {% endif %}{% if documents %}{{ documents[0]['text'] }} {% endif %}"
    "{{ 'w1 ' if enable_thinking else 'w2 ' }}"
    + TURNS.replace("'<user>' if", "'w3' if m['role'] == 'system' else '<user>' if")
)


@pytest.mark.parametrize(
    ("more", "ids"),
    [
        ({}, [2, USER, 7, ASSISTANT]),
        ({"template_kwargs": {"enable_thinking": True}}, [1, USER, 7, ASSISTANT]),
        ({"tools": [{"name": "w9"}]}, [9, 2, USER, 7, ASSISTANT]),
        ({"documents": [{"text": "w6"}], "tools": []}, [6, 2, USER, 7, ASSISTANT]),
        ({"system": "w4"}, [2, 3, 4, USER, 7, ASSISTANT]),
        ({"system": "w4", "date": MOMENT}, [2, 3, 4, USER, 7, ASSISTANT]),
    ],
)
def test_what_a_template_is_told(more, ids):
    tokenizer = make_tokenizer(61, template=TOLD)
    assert encode_messages(tokenizer, [ASKED], **more) == ids
    assert encode(tokenizer, ASKED["content"], use_chat_template=True, **more) == ids
    dated = make_tokenizer(61, template=TOLD + "{# strftime_now #}")
    assert encode_messages(dated, [ASKED], **more | {"date": MOMENT}) == ids


@pytest.mark.parametrize("role", ["system", "developer"])
def test_a_system_message_of_its_own_stays_alone(role):
    tokenizer = make_tokenizer(61, template=TOLD.replace("== 'system'", f"== '{role}'"))
    own = {"role": role, "content": "w5"}
    assert encode_messages(tokenizer, [own, ASKED], system="w4") == [2, 3, 5, USER, 7, ASSISTANT]


@pytest.mark.parametrize(
    ("more", "says"),
    [
        (
            {"template_kwargs": {"enable_thinkin": True}},
            "the chat template knows no enable_thinkin, so it would change nothing",
        ),
        (
            {"template_kwargs": {"tools": []}},
            "template_kwargs cannot set tools: it is no variable of a template; leave it out.",
        ),
        ({"template_kwargs": {"tokenize": True}}, "template_kwargs cannot set tokenize"),
        ({"template_kwargs": {"messages": []}}, "template_kwargs cannot set messages"),
    ],
)
def test_what_a_template_would_not_read_is_refused(more, says):
    with pytest.raises(ValueError, match=r"\A[^\n]*\Z") as refusal:
        encode_messages(make_tokenizer(61, template=TOLD), [ASKED], **more)
    assert says in str(refusal.value)
    for name in ("tools", "documents"):
        with pytest.raises(ValueError, match=f"the chat template knows no {name}"):
            encode_messages(make_tokenizer(61, template=TURNS), [ASKED], **{name: [{"name": "w1"}]})


def test_half_a_character_is_found_wherever_it_came_from():
    """A JSON text inside of a record may hold one."""
    with pytest.raises(ValueError, match=r"what the chat template made of it is not UTF-8 text \(character 7\)"):
        encode_messages(make_tokenizer(61, template=TURNS), [{"role": "user", "content": "\ud800"}])
