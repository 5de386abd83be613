"""`generate` and `stream`: what they take, alone and mixed, and what they refuse. Expected tokens come from `reference`."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from checkpoints import ASSISTANT, BOS, EOS, SPECIAL, USER, make_checkpoint, words
from conftest import BASE
from support.generation.row_streams import stopped_by_hand

from jax_probe_mtp import (
    Checkpoint,
    DraftSource,
    Prompt,
    Settings,
    abstract_params,
    decode,
    generate,
    make_batch,
    stream,
)
from jax_probe_mtp.drafting import Plain, Recycle, chain

NEW = 12
CUTS = {"top_k": 40, "top_p": 0.95}  # of the run; greedy rows do not read them
SETTINGS = Settings(max_new_tokens=NEW, batch_size=3, **CUTS)
ONE_LINE = r"\A[^\n]+\Z"


@pytest.fixture(scope="module")
def checkpoint(tiny):
    return make_checkpoint(tiny)


@pytest.fixture(scope="module")
def without_tokenizer(checkpoint):
    return dataclasses.replace(checkpoint, tokenizer=None)


@pytest.fixture(scope="module")
def plain(tiny):
    """Decodes plainly, a token at a time."""

    def decode(token_ids, *, max_new_tokens=NEW, **draw):
        draw = {"temperature": 0.0} | draw
        tokens, gap = reference.plain_decode(
            tiny.reference, token_ids, max_new_tokens=max_new_tokens, eos=(EOS,), **draw
        )
        assert gap > 1e-3, "choose another prompt: rounding could decide this one"
        return tokens

    return decode


def text_of(tokens):
    return words(*[token for token in tokens if token not in SPECIAL])


# What `generate` takes, and the token ids it stands for.
TAKEN = {
    "a text": (words(7), [BOS, USER, 7, ASSISTANT]),
    "a conversation": ([{"role": "user", "content": words(39)}], [BOS, USER, 39, ASSISTANT]),
    "a list": ([5, 9, 2], [5, 9, 2]),
    "a tuple": ((44, 17), [44, 17]),
    "an array of NumPy": (np.asarray([60, 1, 33, 8], np.int8), [60, 1, 33, 8]),
    "an array of JAX": (jnp.asarray([12, 13, 14]), [12, 13, 14]),
    "a Prompt": (Prompt(id=0, token_ids=[3, 1]), [3, 1]),
    "a Prompt of an array": (Prompt(id=0, token_ids=jnp.asarray([3, 1])), [3, 1]),
}


@pytest.mark.parametrize("name", TAKEN)
def test_takes_each_kind_of_prompt_and_streams_the_same_text(checkpoint, plain, name):
    prompt, token_ids = TAKEN[name]
    (answer,) = generate(checkpoint, [prompt], settings=SETTINGS)
    expected = plain(token_ids)
    assert (answer.id, answer.prompt_ids, answer.token_ids) == (0, token_ids, expected)
    assert answer.text == text_of(expected)
    pieces = list(stream(checkpoint, prompt, settings=SETTINGS))
    assert "".join(pieces) == answer.text
    assert all(pieces)


def test_takes_them_mixed_each_with_settings_of_its_own(checkpoint, plain):
    base = plain([5, 9, 2])
    stop = (words(*base[3:5])[:-1], "never there")
    count, text_before = stopped_by_hand(checkpoint.tokenizer, base, stop)
    assert count < len(base)
    prompts = [
        words(7),
        Prompt(id="stops", token_ids=[5, 9, 2], stop=stop),
        [{"role": "user", "content": words(39)}],
        Prompt(id="drawn", token_ids=np.asarray([60, 1, 33, 8]), temperature=1.0, seed=2**32 - 1),
        [5, 9, 2],
        Prompt(id="short", token_ids=[12, 13, 14], max_new_tokens=3),
        np.asarray([60, 1, 33, 8], np.uint16),
        Prompt(id="other cuts", token_ids=(3, 1), temperature=0.7, seed=4, top_k=5, top_p=0.5),
        jnp.asarray([12, 13, 14]),
    ]
    expected = [
        (0, plain([BOS, USER, 7, ASSISTANT])),
        ("stops", base[:count]),
        (2, plain([BOS, USER, 39, ASSISTANT])),
        ("drawn", plain([60, 1, 33, 8], temperature=1.0, seed=2**32 - 1, **CUTS)),
        (4, base),
        ("short", plain([12, 13, 14], max_new_tokens=3)),
        (6, plain([60, 1, 33, 8])),
        ("other cuts", plain([3, 1], temperature=0.7, seed=4, top_k=5, top_p=0.5)),
        (8, plain([12, 13, 14])),
    ]
    answers = generate(checkpoint, prompts, settings=SETTINGS)
    assert [(answer.id, answer.token_ids) for answer in answers] == expected
    texts = [text_of(tokens) for _, tokens in expected]
    texts[1] = text_before
    assert [answer.text for answer in answers] == texts
    assert expected[3][1] != expected[6][1], "choose another seed: nothing was drawn"
    assert "".join(stream(checkpoint, prompts[1], settings=SETTINGS)) == text_before


def test_a_matrix_of_ids_is_a_list_of_prompts(checkpoint, plain):
    answers = generate(checkpoint, jnp.asarray([[5, 9], [2, 44]]), settings=SETTINGS)
    assert [answer.token_ids for answer in answers] == [plain([5, 9]), plain([2, 44])]


def test_a_checkpoint_without_a_tokenizer_takes_ids(without_tokenizer, plain):
    prompts = [[5, 9, 2], np.asarray([60, 1, 33, 8]), Prompt(id="own", token_ids=[3, 1], max_new_tokens=4)]
    answers = generate(without_tokenizer, prompts, settings=SETTINGS)
    assert [answer.token_ids for answer in answers] == [
        plain([5, 9, 2]),
        plain([60, 1, 33, 8]),
        plain([3, 1], max_new_tokens=4),
    ]
    assert [answer.text for answer in answers] == ["", "", ""]


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("w5", "prompt 0 is a text, but the checkpoint has no tokenizer; give token ids"),
        ([{"role": "user", "content": "w5"}], "the checkpoint has no tokenizer; give token ids"),
        (Prompt(id="p", token_ids=[5], stop=("w5",)), "prompt p has stop texts, but the checkpoint has no tokenizer"),
    ],
    ids=["a text", "a conversation", "stop texts"],
)
def test_a_checkpoint_without_a_tokenizer_takes_no_texts(without_tokenizer, prompt, says):
    with pytest.raises(ValueError, match=ONE_LINE) as refusal:
        generate(without_tokenizer, [[5, 9], prompt][prompt == "w5" :], settings=SETTINGS)
    assert says in str(refusal.value)


def test_a_checkpoint_without_a_tokenizer_has_no_text_to_stream(without_tokenizer):
    with pytest.raises(ValueError, match="the checkpoint has no tokenizer, hence no text to stream; use generate"):
        stream(without_tokenizer, [5, 9])


NO_PROMPT = "prompt 0 must be a text, a list of messages, token ids or a Prompt, got "
REFUSED = {
    "a number": (5, NO_PROMPT + "int 5."),
    "None": (None, NO_PROMPT + "NoneType None."),
    "bytes": (b"w5", NO_PROMPT + "bytes b'w5'."),
    "a set": ({5}, NO_PROMPT + "set {5}."),
    "a matrix of NumPy": (np.asarray([[5, 9], [2, 44]]), NO_PROMPT + "ndarray array([[ 5, 9], [ 2, 44]])."),
    "a matrix of JAX": (jnp.asarray([[5, 9], [2, 44]]), NO_PROMPT),
    "a number of NumPy": (np.int64(5), NO_PROMPT + "int64"),
    "a message": ({"role": "user", "content": "w5"}, NO_PROMPT + "dict {'role': 'user', 'content': 'w5'}."),
    "a Prompt of a text": (Prompt(token_ids="w5"), NO_PROMPT + "str 'w5'."),
    "no content": ([{"role": "user"}], "prompt 0: messages[0] has no content; give a text"),
    "no role": ([{"content": "w5"}], "prompt 0: each message needs a text as role, got [{'content': 'w5'}]."),
    "an image": (
        [{"role": "user", "content": [{"type": "image_url", "image_url": "u"}]}],
        'prompt 0: messages[0] holds a part of type "image_url"',
    ),
    "a message among ids": ([5, {"role": "user"}], "prompt 0 holds token id {'role': 'user'}, but ids are 0 to 60."),
    "lists": ([[5, 9], [2]], "prompt 0 holds token id [5, 9], but ids are 0 to 60."),
    "matrices": ([np.zeros((2, 2))], "prompt 0 holds token id [[0. 0.] [0. 0.]], but ids are 0 to 60."),
    "floats": ([5, 1.0], "prompt 0 holds token id 1.0, but ids are 0 to 60."),
    "an array of floats": (np.asarray([5.0, 1.0]), "prompt 0 holds token id 5.0, but ids are 0 to 60."),
    "an array of JAX's floats": (jnp.asarray([5.5]), "prompt 0 holds token id 5.5, but ids are 0 to 60."),
    "truths": ([5, True], "prompt 0 holds token id True, but ids are 0 to 60."),
    "texts": (["w5", "w9"], "prompt 0 holds token id w5, but ids are 0 to 60."),
    "no such token": ([61], "prompt 0 holds token id 61, but ids are 0 to 60."),
    "the assistant's turn twice": (
        [{"role": "user", "content": "w5"}, {"role": "assistant", "content": "w6"}],
        "prompt 0: the last message is the assistant's, and a second turn of its would begin; set "
        "continue_final_message to true (for all: --continue-final-message), or end with the user's.",
    ),
    "nothing": ([], "prompt 0 is empty: it needs at least one token."),
}


@pytest.mark.parametrize("name", REFUSED)
def test_says_in_one_line_what_it_does_not_take(checkpoint, name):
    prompt, says = REFUSED[name]
    for ask in (lambda: generate(checkpoint, [prompt]), lambda: stream(checkpoint, prompt)):
        with pytest.raises(ValueError, match=ONE_LINE) as refusal:
            ask()
        assert says in str(refusal.value)
        assert len(str(refusal.value)) < 200


@pytest.mark.parametrize(
    ("prompts", "got"),
    [("w5", "'w5'"), (Prompt(token_ids=[5]), "Prompt("), ({"a": 1}, "{'a': 1}"), (5, "5"), (iter("ab"), "<")],
    ids=["a text", "a Prompt", "a message", "a number", "an iterator"],
)
def test_prompts_are_a_list(checkpoint, prompts, got):
    with pytest.raises(ValueError, match=ONE_LINE) as refusal:
        generate(checkpoint, prompts)
    assert str(refusal.value).startswith(f"prompts must be a list, got {got}")


def test_a_conversation_needs_the_chat_template(checkpoint):
    with pytest.raises(ValueError, match=r"\Aprompt 0 is a conversation, which needs the chat template; .*\Z"):
        generate(checkpoint, [[{"role": "user", "content": "w5"}]], use_chat_template=False)


def test_the_chat_template_is_told_what_it_asks_for(tiny, plain):
    checkpoint = make_checkpoint(tiny, template="{{ 'w1' if fast else 'w2' }} {{ messages[0]['content'] }}")
    parts = [{"type": "text", "text": words(7)}, {"type": "text", "text": words(3)}]
    prompts, told = [words(9), [{"role": "user", "content": parts}]], {"fast": True}
    answers = generate(checkpoint, prompts, settings=SETTINGS, template_kwargs=told)
    assert [(answer.prompt_ids, answer.token_ids) for answer in answers] == [
        (ids, plain(ids)) for ids in ([1, 9], [1, 7, 3])
    ]
    assert "".join(stream(checkpoint, prompts[0], settings=SETTINGS, template_kwargs=told)) == answers[0].text
    with pytest.raises(ValueError, match="template_kwargs are for the chat template"):
        generate(checkpoint, [words(9)], template_kwargs=told, use_chat_template=False)


def test_goes_on_with_the_assistants_last_message_if_asked(tiny, plain):
    template = "{% for m in messages %}{{ m['content'] }} {% endfor %}{% if add_generation_prompt %}<bot>{% endif %}"
    checkpoint = make_checkpoint(tiny, template=template)
    prompts = [[{"role": "user", "content": words(7)}, {"role": "assistant", "content": words(3, 1)}], words(7), [5, 9]]
    answers = generate(checkpoint, prompts, settings=SETTINGS, continue_final_message=True)
    ids = [[7, 3, 1], [7, ASSISTANT], [5, 9]]
    assert [(answer.prompt_ids, answer.token_ids) for answer in answers] == [(each, plain(each)) for each in ids]
    pieces = stream(checkpoint, prompts[0], settings=SETTINGS, continue_final_message=True)
    assert "".join(pieces) == answers[0].text == text_of(plain(ids[0]))


def test_a_draft_may_be_a_text(checkpoint, plain):
    expected = plain([12, 13, 14])
    for draft, name in (("probe:4", "probe:4"), ("plain", "plain"), (Plain(), "plain"), (None, "probe:14")):
        (answer,) = generate(checkpoint, [[12, 13, 14]], draft=draft, settings=SETTINGS)
        assert (answer.draft, answer.token_ids) == (name, expected)
    assert "".join(stream(checkpoint, [12, 13, 14], draft="probe:4", settings=SETTINGS)) == text_of(expected)


def test_a_draft_that_cannot_be_read_is_refused(checkpoint):
    for draft, says in (("probe:0", "draft 'probe:0': "), ("no such", "draft 'no such'"), (14, "got 14")):
        with pytest.raises(ValueError, match=ONE_LINE) as refusal:
            generate(checkpoint, [[5]], draft=draft)
        assert says in str(refusal.value)


def test_a_checkpoint_is_shown_in_one_short_line_without_its_weights(tiny):
    layer = 24 * 2 * 5 * 8 + 2 * 3 * 8 * 24 + 24 * 2 * 40 + 40 * 24 + 2 * 24
    shown = f"Checkpoint('tiny', llama, 2 layers of width 24, {2 * layer + 2 * 61 * 24 + 24:,} parameters, float32)"
    assert repr(make_checkpoint(tiny)) == shown
    shapes = abstract_params(BASE)  # there is no value to touch
    assert all(isinstance(leaf, jax.ShapeDtypeStruct) for leaf in jax.tree.leaves(shapes))
    assert repr(Checkpoint(params=shapes, config=BASE, tokenizer=None, eos_token_ids=(EOS,), name="tiny")) == shown


def test_goes_on_with_what_an_earlier_batch_learned(checkpoint, plain):
    warm = Recycle(tree=12, warm=True)
    ids, settings = [5, 9, 2], Settings(max_new_tokens=24)
    batch = make_batch(checkpoint.config, warm, [ids], settings, eos_token_ids=checkpoint.eos_token_ids)
    learned = jax.jit(decode, static_argnames=("cfg", "source"))(
        checkpoint.params, batch, checkpoint.config, warm
    ).shared
    [first] = generate(checkpoint, [ids], draft=warm, settings=settings)
    [again] = generate(checkpoint, [ids], draft=warm, settings=settings, shared=learned)
    expected, _ = reference.plain_decode(reference.Model(checkpoint.params, BASE), ids, max_new_tokens=24, eos=(EOS,))
    assert first.token_ids == again.token_ids == expected
    assert again.calls < first.calls  # the whole answer has been in the table


class Bare(DraftSource):
    num_candidates = 1

    def propose(self, state, text):
        return chain(text.root_B[:, None])


def test_a_source_that_is_no_frozen_dataclass_is_refused(checkpoint):
    with pytest.raises(ValueError, match=r"Bare is no frozen dataclass; put @dataclasses"):
        generate(checkpoint, [[5]], draft=Bare())


@pytest.mark.parametrize("progress", [False, True])
def test_a_bar_counts_the_answers_if_asked(checkpoint, plain, capsys, progress):
    answers = generate(checkpoint, [[1, 17, 4], [1, 9]], settings=SETTINGS, progress=progress)
    assert len(answers) == 2
    err = capsys.readouterr().err
    assert ("2/2" in err and "answers" in err) if progress else not err
