"""Text that grows token by token: whole characters, stop strings, what is held back. Against lists decoded anew each time."""

import itertools
import random

import pytest
from support.generation.byte_level import (
    AA,
    AAB,
    AB,
    E_ACUTE,
    EOS,
    PART_OF_SEA,
    SPACE_AND_PART,
    USER,
    byte_level_tokenizer,
)
from support.generation.texts import NOT_WHOLE, first_stop, showable
from tokenizers import Tokenizer, decoders, models
from transformers import PreTrainedTokenizerFast

from jax_probe_mtp.generation.text_stream import TextStream


@pytest.fixture(scope="module")
def tokenizer():
    return byte_level_tokenizer()


def decode(tokenizer, ids):
    return tokenizer.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False)


def shown_after_each(stream, ids):
    pieces = []
    for token in ids:
        stream.add(token)
        pieces.append(stream.show())
    return pieces


@pytest.mark.parametrize(
    ("ids", "pieces"),
    [
        (list("é".encode()), ["", "é"]),
        (list("海".encode()), ["", "", "海"]),
        (list("🙂".encode()), ["", "", "", "🙂"]),
        ([*"aé".encode(), *"海b".encode()], ["a", "", "é", "", "", "海", "b"]),
        ([PART_OF_SEA, 0xB7, E_ACUTE, AAB], ["", "海", "é", "aab"]),
        ([*"🙂🙂".encode()], ["", "", "", "🙂"] * 2),
        ([ord("x"), SPACE_AND_PART, 0x80, 0x9C, ord("y")], ["x", None, None, None, "y"]),  # None: " “" in any pieces
    ],
)
def test_only_whole_characters_are_shown(tokenizer, ids, pieces):
    stream = TextStream(tokenizer)
    got = shown_after_each(stream, ids)
    assert [piece for piece, expected in zip(got, pieces, strict=True) if expected is not None] == [
        piece for piece in pieces if piece is not None
    ]
    assert not any(NOT_WHOLE in piece for piece in got)
    assert "".join(got) == stream.text == decode(tokenizer, ids)
    assert stream.finish(decode(tokenizer, ids)) == ""


@pytest.mark.parametrize("kept", [1, 2, 3])
def test_a_text_that_is_cut_inside_a_character_ends_as_the_tokenizer_ends_it(tokenizer, kept):
    ids = [ord("a"), *"🙂".encode()[:kept]]
    stream = TextStream(tokenizer, ["zz"])
    assert "".join(shown_after_each(stream, ids)) == "a"
    whole = decode(tokenizer, ids)
    assert whole == bytes(ids).decode(errors="replace") == "a" + NOT_WHOLE
    assert stream.finish(whole) == NOT_WHOLE
    assert stream.text == whole
    assert not stream.is_stopped


def test_special_tokens_are_no_text_not_even_inside_a_character(tokenizer):
    first, *rest = "é".encode()
    ids = [USER, ord("a"), USER, first, EOS, *rest, EOS, ord("b"), EOS]
    stream = TextStream(tokenizer, ["user>", "</s"])  # parts of special tokens are no special tokens
    assert shown_after_each(stream, ids) == ["", "a", "", "", "", "é", "", "b", ""]
    assert stream.finish(decode(tokenizer, ids)) == ""
    assert stream.text == "aéb"
    assert not stream.is_stopped


STOPS = [
    # stop strings, tokens as bytes or ids, tokens taken until it stops (None: never), what is shown after each, the text
    (["b"], b"xbx", 2, ["x", ""], "x"),
    (["aab"], b"aaab", 4, ["", "", "a", ""], "a"),  # the first `a` is let go when a third one comes
    (["aab"], [AA, AB], 2, ["", "a"], "a"),
    (["aab"], [ord("x"), AA, ord("a"), ord("b"), ord("y")], 4, ["x", "", "a", ""], "xa"),
    (["aab"], [AAB], 1, [""], ""),
    (["ab", "abc"], b"xabc", 3, ["x", "", ""], "x"),  # a prefix of another: the shorter is complete first
    (["abc", "b"], b"abc", 2, ["", "a"], "a"),  # one inside another: the same
    (["abcd", "c"], [AB, ord("c")], 2, ["", "ab"], "ab"),
    (["b", "ab"], [AB], 1, [""], ""),  # both complete with one token: where the first begins
    (["ab", "b"], [ord("x"), AB], 2, ["x", ""], "x"),
    (["abc"], b"ababx", None, ["", "", "ab", "", "abx"], "ababx"),
    (["abc", "xyz"], b"xyab", None, ["", "", "xy", ""], "xyab"),  # the last two wait for the end of the text
    (["é海"], "aé海b".encode(), 6, ["a", "", "", "", "", ""], "a"),
    (["é海"], "aéb".encode(), None, ["a", "", "", "éb"], "aéb"),
    (["🙂"], "é🙂".encode(), 6, ["", "é", "", "", "", ""], "é"),
    ([" "], b"x y", 2, ["x", ""], "x"),
    (["x" * 9], b"x" * 9, 9, [""] * 9, ""),
    (["x" * 9], b"x" * 8 + b"y", None, [""] * 8 + ["x" * 8 + "y"], "x" * 8 + "y"),
    (["a</sb"], [ord("a"), EOS, ord("b")], None, ["", "", "ab"], "ab"),  # not the whole text of a special token
    (["ab"], [ord("a"), EOS, ord("b")], 3, ["", "", ""], ""),
]


@pytest.mark.parametrize(("stop", "ids", "taken", "shown", "text"), STOPS)
def test_stop_strings_by_hand(tokenizer, stop, ids, taken, shown, text):
    stream, got = TextStream(tokenizer, stop), []
    for count, token in enumerate(ids, start=1):
        assert stream.add(token) == stream.is_stopped == (count == taken)
        got.append(stream.show())
        if count == taken:
            break
    assert got == shown
    rest = stream.finish(decode(tokenizer, list(ids)))  # of more tokens than were taken: not read when it stopped
    assert stream.text == text == "".join(got) + rest
    assert taken is None or not rest


def test_what_comes_after_a_stop_string_is_not_taken(tokenizer):
    stream = TextStream(tokenizer, ["b"])
    assert [stream.add(token) for token in b"ab"] == [False, True]
    assert [stream.add(token) for token in b"cb"] == [True, True]
    assert (stream.text, stream.show(), stream.show(), stream.finish("abcb")) == ("a", "a", "", "")


def test_what_was_not_shown_on_the_way_comes_at_once(tokenizer):
    ids = list("aé海 aa".encode())
    stream = TextStream(tokenizer, ["aab"])
    for token in ids:
        stream.add(token)
    assert stream.show() == "aé海 "
    assert stream.show() == ""
    assert stream.finish("aé海 aa") == "aa"


@pytest.mark.parametrize("rest", [[], [0x80, 0x9C]])
def test_a_token_may_hold_the_end_of_a_stop_string_and_the_start_of_a_character(tokenizer, rest):
    ids = [ord("x"), SPACE_AND_PART, *rest]
    assert decode(tokenizer, ids[:2]) == "x " + NOT_WHOLE
    stream = TextStream(tokenizer, ["x "])
    assert [stream.add(token) for token in ids] == [False, True, *[True for _ in rest]]
    stream.finish(decode(tokenizer, ids))
    assert stream.text == ""


CHARACTERS = "aaabbb é海🙂"
WHOLE = [[AB], [AA], [AAB], [E_ACUTE], [PART_OF_SEA, 0xB7], [EOS], [USER], *(list(c.encode()) for c in CHARACTERS)]
WITH_HALVES = [*WHOLE, [SPACE_AND_PART, 0x80, 0x9C], [SPACE_AND_PART, 0x82, 0xAC]]
STOP_CHARACTERS = "aab é海🙂"


def _random_texts(parts):
    """Lists of parts, stop strings, and how many tokens there are: the text may end inside a character."""
    drawn = random.Random(5)
    for _ in range(2000):
        chosen = drawn.choices(parts, k=drawn.randrange(1, 12))
        stop = [
            "".join(drawn.choices(STOP_CHARACTERS, k=drawn.choice([1, 2, 3, 4]))) for _ in range(drawn.randrange(4))
        ]
        yield chosen, stop, drawn.random()


def _compare(tokenizer, ids, sure_after_each, stop, *, shows_at_once=True):
    """Token by token against the text that is sure by then: what stops, what is shown, what it ends as."""
    stream, shown, held = TextStream(tokenizer, stop), "", 0
    place = None
    for count, (token, sure) in enumerate(zip(ids, sure_after_each, strict=True), start=1):
        place = first_stop(sure, stop)
        assert stream.add(token) == (place is not None), (ids[:count], stop)
        shown += stream.show()
        expected = showable(sure, stop) if place is None else sure[:place]
        assert expected.startswith(shown), (ids[:count], stop)
        assert shown == expected or not shows_at_once, (ids[:count], stop)
        held += place is None and shown != sure
        if place is not None:
            break
    whole = decode(tokenizer, ids[:count])
    shown += stream.finish(whole)
    if whole.startswith(sure):  # not where an open run of bytes takes whole characters back
        assert shown == stream.text == (whole if place is None else whole[:place]), (ids, stop)
    return place is not None, held


@pytest.mark.parametrize("parts", [WHOLE, WITH_HALVES], ids=["whole", "halves"])
def test_random_texts_against_lists_decoded_anew(tokenizer, parts):
    outcomes = []
    for chosen, stop, share in _random_texts(parts):
        ids = list(itertools.chain.from_iterable(chosen))
        ids = ids[: 1 + int(share * len(ids))]
        sure = [decode(tokenizer, ids[: n + 1]).rstrip(NOT_WHOLE) for n in range(len(ids))]  # no text ends with this
        outcomes.append(_compare(tokenizer, ids, sure, stop, shows_at_once=parts is WHOLE))
    stopped, held = map(sum, zip(*outcomes, strict=True))
    assert stopped > 100, "choose other stop strings"
    assert held > 100


def test_random_tokens_that_are_no_utf8_end_as_the_tokenizer_ends_them(tokenizer):
    drawn, num_broken = random.Random(6), 0
    pool = [*b"ab \xc3\xa9\xe2\x80\x9c\xf0\x9f\x99\x82\xff", AB, AAB, E_ACUTE, PART_OF_SEA, SPACE_AND_PART, EOS]
    for _ in range(600):
        ids = drawn.choices(pool, k=drawn.randrange(1, 12))
        stream, shown = TextStream(tokenizer, ["bbb"]), ""
        for count, token in enumerate(ids, start=1):
            if stream.add(token):
                break
            shown += stream.show()
            assert decode(tokenizer, ids[:count]).startswith(shown), ids
        if not stream.is_stopped:
            whole = decode(tokenizer, ids)
            assert shown + stream.finish(whole) == stream.text == whole, ids
            num_broken += NOT_WHOLE in whole[:-1]
    assert num_broken > 100


@pytest.fixture(scope="module")
def sentencepiece():
    """Byte fallback as Llama 2's tokenizer has it: characters that are no token are spelt by bytes, ids 1 to 256."""
    vocab = {"<unk>": 0} | {f"<0x{byte:02X}>": byte + 1 for byte in range(256)} | {"▁a": 257, "b": 258, "▁": 259}
    vocab |= {"</s>": EOS, "<user>": USER}
    backend = Tokenizer(models.BPE(vocab, [], byte_fallback=True, unk_token="<unk>"))
    backend.decoder = decoders.Sequence(
        [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=backend, unk_token="<unk>", eos_token="</s>", additional_special_tokens=["<user>"]
    )


def _fallback(text):
    return [byte + 1 for byte in text.encode()]


def test_spaces_and_bytes_of_a_sentencepiece_tokenizer(sentencepiece):
    ids = [257, 257, 258, *_fallback("海"), 257, *_fallback("é🙂")]
    stream = TextStream(sentencepiece, ["🙂"])
    assert shown_after_each(stream, ids) == ["a", " a", "b", "", "", "海", " a", "", "é", "", "", "", ""]
    assert (stream.is_stopped, stream.text) == (True, "a ab海 aé")


SENTENCEPIECE_PARTS = [([257], " a"), ([257], " a"), ([258], "b"), ([259], " "), ([EOS], ""), ([USER], "")]
SENTENCEPIECE_PARTS += [(_fallback(character), character) for character in "cé海🙂"]


def test_random_texts_of_a_sentencepiece_tokenizer(sentencepiece):
    """Against the texts they are put together from: an open run of bytes hides the whole characters before it."""
    outcomes = []
    for chosen, stop, share in _random_texts(SENTENCEPIECE_PARTS):
        ids, sure, text = [], [], ""
        for part, part_text in chosen:
            ids += part
            sure += [text.removeprefix(" ")] * (len(part) - 1)  # the tokenizer takes the first space away
            text += part_text
            sure.append(text.removeprefix(" "))
        count = 1 + int(share * len(ids))
        outcomes.append(_compare(sentencepiece, ids[:count], sure[:count], stop))
    stopped, held = map(sum, zip(*outcomes, strict=True))
    assert stopped > 100, "choose other stop strings"
    assert held > 100


# A run of byte tokens decodes to U+FFFD as a whole as soon as one of them fits nowhere.
def test_a_byte_that_fits_nowhere_ends_no_run(sentencepiece):
    ids = [257, *_fallback("海"), 0xFF + 1, 258]
    stream = TextStream(sentencepiece, ["b"])
    assert [stream.add(token) for token in ids] == [False] * 5 + [True]
    assert "b" not in stream.text
