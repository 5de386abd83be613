"""Stop texts that hold a special token: found in the text with special tokens shown, cut in the text without them."""

import random

import pytest
from support.generation.byte_level import AAB, AB, E_ACUTE, EOS, USER, byte_level_tokenizer
from tokenizers import AddedToken, Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from jax_probe_mtp.generation.text_stream import TextStream

A, B, X = b"abx"
FOUR_BYTES = "🙂".encode()


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_tokenizer()


def taken(tokenizer, stop, ids):
    """Takes tokens until the text stops: how many, what was shown after each, the text at the end."""
    stream, shown = TextStream(tokenizer, stop), []
    for token in ids:
        stream.add(token)
        shown.append(stream.show())
        if stream.is_stopped:
            break
    rest = stream.finish(tokenizer.decode(ids[: len(shown)], skip_special_tokens=True))
    assert "".join(shown) + rest == stream.text
    return len(shown) if stream.is_stopped else None, shown, stream.text


BY_HAND = [
    # stop texts, tokens, tokens taken until it stops (None: never), what is shown after each, the text
    (["</s>"], [A, B, EOS, X], 3, ["a", "b", ""], "ab"),
    (["<user>"], [USER], 1, [""], ""),
    (["b</s>"], [A, B, EOS], 3, ["a", "", ""], "a"),
    (["b</s>"], [AAB, EOS], 2, ["aa", ""], "aa"),
    (["b</s>"], [A, B, X, EOS], None, ["a", "", "bx", ""], "abx"),
    (["b</s>"], [A, B, USER, EOS], None, ["a", "", "b", ""], "ab"),  # "b<user></s>"
    (["a</s>b"], [X, A, EOS, B, X], 4, ["x", "", "", ""], "x"),
    (["a</s>b"], [X, A, EOS, A, EOS, B], 6, ["x", "", "", "a", "", ""], "xa"),
    (["a</s>b"], [A, EOS, X], None, ["", "", "ax"], "ax"),
    (["</s>a"], [B, EOS, EOS, A, X], 4, ["b", "", "", ""], "b"),
    (["</s></s>"], [A, EOS, B, EOS, EOS], 5, ["a", "", "b", "", ""], "ab"),
    ([">a</s>"], [B, USER, A, EOS], 4, ["b", "", "", ""], "b"),  # begins inside another special token
    (["</s>é"], [A, EOS, *"é".encode()], 4, ["a", "", "", ""], "a"),
    (["é</s>"], [A, E_ACUTE, EOS], 3, ["a", "", ""], "a"),
    (["é</s>"], [A, *"é".encode(), EOS], 4, ["a", "", "", ""], "a"),
    (["</s>"], [*b"a</s>"], 5, ["a", "", "", "", ""], "a"),  # the same text in ordinary tokens
    (["ab", "b</s>"], [A, B], 2, ["", ""], ""),  # an ordinary one beside it
    (["ab", "</s>"], [A, EOS], 2, ["", "a"], "a"),
    (["ab", "x</s>"], [A, USER, B], 3, ["", "", ""], ""),  # an ordinary one still spans over a special token
    (["bx", "b</s>"], [A, B, EOS, X], 3, ["a", "", ""], "a"),
    (["x" * 9 + "</s>"], [*b"x" * 9, EOS], 10, [""] * 10, ""),
    (["x" * 9 + "</s>"], [*b"x" * 10, EOS], 11, [""] * 9 + ["x", ""], "x"),
    # A part of a character before a special token stays one, as in the text that is decoded as a whole.
    (["</s>"], [A, FOUR_BYTES[0], EOS], 3, ["a", "", "\ufffd"], "a\ufffd"),
    (["</s>x"], [A, FOUR_BYTES[0], EOS, X], 4, ["a", "", "", "\ufffd"], "a\ufffd"),
    (["<user></s>"], [A, USER, FOUR_BYTES[0], EOS], None, ["a", "", "", ""], "a\ufffd"),
    (["a</s>"], [A, FOUR_BYTES[0], EOS], None, ["", "", "a"], "a\ufffd"),
]


@pytest.mark.parametrize(("stop", "ids", "place", "shown", "text"), BY_HAND)
def test_by_hand(tokenizer, stop, ids, place, shown, text):
    assert taken(tokenizer, stop, ids) == (place, shown, text)


PARTS = [  # tokens, their text, is it a special token's
    ([A], "a", False),
    ([AB], "ab", False),
    ([AAB], "aab", False),
    ([E_ACUTE], "é", False),
    ([*FOUR_BYTES], "🙂", False),
    ([EOS], "</s>", True),
    ([USER], "<user>", True),
]


def test_random_texts_against_lists_of_characters(tokenizer):
    drawn, num_stopped, num_held = random.Random(7), 0, 0
    for _ in range(1500):
        parts = drawn.choices(PARTS, k=drawn.randrange(1, 10))
        whole = "".join(text for _, text, _ in parts)
        first = drawn.randrange(len(whole))
        stop = [whole[first : first + drawn.randrange(1, 12)] for _ in range(2)]
        stop += [drawn.choice(["a</s>", "</s>é", "<user></s>", "ab"])]
        stream, characters, shown = TextStream(tokenizer, stop), [], ""
        for ids, text, is_special in parts:
            characters += [(character, is_special) for character in text]
            place, held = _by_characters(characters, stop)
            plain = "".join(character for character, special in characters if not special)
            is_stopped = [stream.add(token) for token in ids][-1]
            assert is_stopped == (place is not None), (parts, stop)
            shown += stream.show()
            assert shown == plain[: held if place is None else place], (parts, stop)
            num_held += place is None and held < len(plain)
            if is_stopped:
                break
        num_stopped += is_stopped
    assert num_stopped > 500, "choose other stop texts"
    assert num_held > 500


def _by_characters(characters, stop):
    """Gives where the text without special tokens is cut, None if nowhere, and how much of it may be shown."""
    whole = "".join(character for character, _ in characters)
    plain = "".join(character for character, special in characters if not special)
    before = [sum(not special for _, special in characters[:n]) for n in range(len(characters) + 1)]
    places, held = [], len(plain)
    for one in stop:
        text = whole if "</s>" in one or "<user>" in one else plain
        of = before if text is whole else range(len(plain) + 1)
        if one in text:
            places.append(of[text.find(one)])
        begun = [of[n] for n in range(len(text)) if one.startswith(text[n:])]
        held = min([held, *begun])
    return min(places, default=None), held


def test_a_sentencepiece_tokenizer():
    """A space before a word is the word's own, but for the first word's."""
    vocab = {"<unk>": 0, "▁a": 1, "b": 2, "</s>": 3, "<s>": 4}
    backend = Tokenizer(models.BPE(vocab, [], unk_token="<unk>"))
    backend.decoder = decoders.Sequence([decoders.Replace("▁", " "), decoders.Fuse(), decoders.Strip(" ", 1, 0)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", bos_token="<s>")
    assert taken(tokenizer, ["b</s> a"], [1, 2, 3, 1]) == (4, ["a", "", "", ""], "a")
    assert taken(tokenizer, [" a</s>"], [1, 1, 3]) == (3, ["a", "", ""], "a")


def test_a_special_token_that_the_tokenizers_decoder_would_change():
    """The stop text is as the vocabulary spells it: of this one's ▁ the decoder makes a space."""
    backend = Tokenizer(models.BPE({"<unk>": 0, "▁a": 1}, [], unk_token="<unk>"))
    backend.decoder = decoders.Replace("▁", " ")
    end = "<｜end▁of▁sentence｜>"
    backend.add_special_tokens([AddedToken(end, special=True, normalized=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert taken(tokenizer, [end], [1, 2]) == (2, [" a", ""], " a")


def test_an_added_token_that_is_shown_is_as_any_other():
    backend = Tokenizer(models.WordLevel({"a": 0}, unk_token="a"))
    backend.decoder = decoders.Fuse()
    backend.add_tokens([AddedToken("<think>", special=False)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert taken(tokenizer, ["a<think>"], [0, 0, 1]) == (3, ["", "a", ""], "a")


def test_a_token_is_decoded_with_a_few_others_whatever_came_before(tokenizer, monkeypatch):
    counts, honest = [], PreTrainedTokenizerFast.decode

    def decode(self, ids, **how):
        counts.append(len(ids))
        return honest(self, ids, **how)

    monkeypatch.setattr(PreTrainedTokenizerFast, "decode", decode)
    stream = TextStream(tokenizer, ["a</s>"])
    for token in [A, *[USER] * 100, *[B, USER] * 50, B]:
        stream.add(token)
    assert max(counts) <= 2
