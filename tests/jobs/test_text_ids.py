"""Tokens of texts: exact where they can be, ambiguous where a text does not tell, for each kind of tokenizer."""

import dataclasses
import math

import pytest
from checkpoints import BOS, EOS, make_tokenizer
from support.generation.byte_level import AB, E_ACUTE, PART_OF_SEA, byte_level_tokenizer
from support.generation.byte_level import EOS as END
from support.generation.sentence_piece import sentence_piece_tokenizer
from tokenizers import decoders, normalizers

from jax_probe_mtp.files.formats.given import GivenOutput
from jax_probe_mtp.files.records.record import Record
from jax_probe_mtp.jobs.text_ids import (
    TextIds,
    given_ids,
    ids_of_text,
    ids_of_token_texts,
    is_other_cut,
    without_prompt,
    without_second_bos,
)
from jax_probe_mtp.jobs.text_ids.token_bytes import token_bytes

SURE, UNSURE = False, True


@pytest.fixture(scope="module")
def pieces():
    return sentence_piece_tokenizer()


@pytest.fixture(scope="module")
def in_bytes():
    return byte_level_tokenizer()


def named(tokenizer, found):
    return tokenizer.convert_ids_to_tokens(found.token_ids), found.is_ambiguous


def test_bytes_of_tokens(pieces, in_bytes):
    known = token_bytes(in_bytes)
    assert (known.is_known, known.loses_space) == (True, False)
    assert [known.of(token) for token in (AB, PART_OF_SEA, 10, END, 999)] == [b"ab", b"\xe6\xb5", b"\n", b"</s>", b""]
    assert [known.of(byte) for byte in range(256)] == [bytes([byte]) for byte in range(256)]
    known = token_bytes(pieces)
    assert (known.is_known, known.loses_space) == (True, True)
    ids = pieces.convert_tokens_to_ids(["<0xE6>", "\u2581hello", "lo"])
    assert [known.of(token) for token in ids] == [b"\xe6", b" hello", b"lo"]
    words = token_bytes(make_tokenizer(61))
    assert (words.of(5), words.of(EOS), words.loses_space) == (b" w5", b" </s>", True)


@pytest.mark.parametrize(
    ("text", "token_ids", "is_ambiguous"),
    [
        ("", [], []),
        ("ab \u00e9", [AB, ord(" "), E_ACUTE], [SURE] * 3),
        (" ab", [ord(" "), AB], [SURE] * 2),  # a space in front is the answer's own
        ("ab\u6d77", [AB, PART_OF_SEA, 0xB7], [SURE] * 3),
        ("x\ufffdab", [ord("x"), 0xEF, 0xBF, 0xBD, AB], [SURE, UNSURE, UNSURE, UNSURE, SURE]),  # of broken bytes
        ("ab</s>", [AB, END], [SURE] * 2),
        ("ab</s>x", [AB, END, ord("x")], [SURE, UNSURE, SURE]),  # or spelled by letters
    ],
)
def test_texts_of_byte_level_tokenizers(in_bytes, text, token_ids, is_ambiguous):
    assert ids_of_text(in_bytes, [AB], text) == TextIds(token_ids, is_ambiguous)


def test_what_a_tokenizer_writes_otherwise_is_spelled_to_the_byte():
    """It composes accents; the model wrote them apart."""
    tokenizer = byte_level_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    text = "ab xe\u0301y ab"
    assert tokenizer.decode(tokenizer(text).input_ids) == "ab x\u00e9y ab"
    token_ids = [AB, 32, ord("x"), ord("e"), 0xCC, 0x81, ord("y"), 32, AB]
    assert tokenizer.decode(token_ids) == text
    assert ids_of_text(tokenizer, [], text) == TextIds(
        token_ids, [SURE, SURE, UNSURE, UNSURE, UNSURE, UNSURE, UNSURE, SURE, SURE]
    )


@pytest.mark.parametrize(
    ("prompt", "text", "tokens", "is_ambiguous"),
    [
        # Behind white space an answer begins without a space; one may have been lost all the same.
        ("a\n", "hello", ["hello"], [UNSURE]),
        ("a\n", "hello hello", ["hello", "\u2581hello"], [UNSURE, SURE]),
        # Behind a letter it begins with a space, which decoding has lost.
        ("a", "hello hello", ["\u2581hello", "\u2581hello"], [UNSURE, SURE]),
        # One that is there was not lost.
        ("a", " hello", ["\u2581hello"], [SURE]),
        ("a\n", " hello", ["\u2581hello"], [SURE]),
        ("a", "\nhello", ["<0x0A>", "hello"], [UNSURE, SURE]),
        ("a\n", "\u00e9 a", ["<0xC3>", "<0xA9>", "\u2581", "a"], [UNSURE, SURE, SURE, SURE]),
    ],
)
def test_texts_of_tokenizers_that_lose_a_space(pieces, prompt, text, tokens, is_ambiguous):
    prompt_ids = pieces(prompt).input_ids
    assert named(pieces, ids_of_text(pieces, prompt_ids, text)) == (tokens, is_ambiguous)


def test_texts_of_pieces_that_lose_no_space():
    """As Gemma's: none is put before a text, and none is cut from one."""
    tokenizer = sentence_piece_tokenizer()
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace(" ", "\u2581")
    tokenizer.backend_tokenizer.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse()]
    )
    assert not token_bytes(tokenizer).loses_space
    prompt_ids = tokenizer("a").input_ids
    assert named(tokenizer, ids_of_text(tokenizer, prompt_ids, "hello")) == (["hello"], [SURE])
    assert named(tokenizer, ids_of_text(tokenizer, prompt_ids, " hello")) == (["\u2581hello"], [SURE])


def test_a_tokenizer_of_another_kind_is_taken_at_its_word():
    tokenizer = make_tokenizer(61)
    tokenizer.backend_tokenizer.decoder = decoders.WordPiece()
    assert not token_bytes(tokenizer).is_known
    assert ids_of_text(tokenizer, [7], "w5 w9") == TextIds([5, 9], [SURE] * 2)
    assert ids_of_text(tokenizer, [7], "w5  w9") == TextIds([5, 9], [UNSURE] * 2)  # decodes to something else
    assert ids_of_token_texts(tokenizer, "w5", ["w5"]) is None
    assert not is_other_cut(tokenizer, [5, 9], 0, 7)


def test_texts_of_words():
    tokenizer = make_tokenizer(61)
    assert ids_of_text(tokenizer, [7], "w5 \u00e9t\u00e9 w9") == TextIds([5, 8, 9], [SURE] * 3)
    found = ids_of_text(tokenizer, [7], "w5 nothing w9")  # no token spells it
    assert found == TextIds([5, 58, 9], [UNSURE] * 3)


@pytest.mark.parametrize(
    ("text", "place", "other", "is_one"),
    [
        ("hello", 0, "\u2581hell", True),  # "\u2581hello" begins with it
        ("hell", 0, "\u2581hello", True),  # the text ends within it
        ("hell a", 0, "\u2581hello", False),
        ("hello", 0, "\u2581hello", False),  # the same token
        ("hello", 0, "a", False),
        ("hello", 0, "</s>", False),
        ("hello hello", 1, "\u2581", True),
        ("hello.", 1, "\u2581", False),
    ],
)
def test_other_cuts_of_a_text(pieces, text, place, other, is_one):
    token_ids = [*ids_of_text(pieces, pieces("a").input_ids, text).token_ids, 2]
    assert is_other_cut(pieces, token_ids, place, pieces.convert_tokens_to_ids(other)) is is_one


def test_no_token_is_another_cut_of_the_end(pieces):
    assert not is_other_cut(pieces, pieces.convert_tokens_to_ids(["\u2581hello", "</s>"]), 1, 300)


def test_other_cuts_in_bytes(in_bytes):
    token_ids = [ord("a"), ord("b"), PART_OF_SEA, 0xB7]
    assert is_other_cut(in_bytes, token_ids, 0, AB)
    assert is_other_cut(in_bytes, token_ids, 2, 0xE6)
    assert not is_other_cut(in_bytes, token_ids, 2, E_ACUTE)


@pytest.mark.parametrize(
    ("text", "token_texts", "tokens", "is_ambiguous"),
    [
        # vLLM decodes each token alone, which loses its space; the text shows it.
        ("hello hello.", ["hello", "hello", "."], ["\u2581hello", "\u2581hello", "."], [UNSURE, SURE, SURE]),
        (" hello", [b" hello"], ["\u2581hello"], [SURE]),
        ("hello a", [b"hel", b"lo a"], None, None),  # no such tokens
        ("a", ["a", "</s>"], ["a", "</s>"], [SURE, SURE]),
        ("hell", ["hello"], ["\u2581hello"], [UNSURE]),  # a stop text was cut
        ("hella", ["hello"], None, None),
        ("a", ["a", ".", ":"], ["a", ".", ":"], [SURE] * 3),  # so was this one
        ("a.", ["a", "\ufffd"], None, None),
        (None, [b" hello", 2], ["\u2581hello", "</s>"], [SURE, SURE]),
    ],
)
def test_tokens_that_are_named(pieces, text, token_texts, tokens, is_ambiguous):
    found = ids_of_token_texts(pieces, text, token_texts)
    assert (None if found is None else named(pieces, found)) == (None if tokens is None else (tokens, is_ambiguous))


def test_of_tokens_that_spell_the_same_letters_come_before_bytes(pieces):
    found = ids_of_token_texts(pieces, " a", [b" ", b"a"])  # <0x20> and <0x61> spell it, too
    assert named(pieces, found) == (["\u2581", "a"], [SURE, SURE])
    pieces = sentence_piece_tokenizer()
    pieces.add_tokens(" he")
    assert ids_of_token_texts(pieces, " he", [b" he"]).is_ambiguous == [UNSURE]


def test_a_character_for_broken_bytes_names_no_token():
    pieces = sentence_piece_tokenizer()
    pieces.add_tokens("\ufffd")  # as some vocabularies have it
    assert ids_of_token_texts(pieces, "a\ufffd", ["a", "\ufffd"]) is None


def test_named_bytes_of_parts_of_characters(in_bytes):
    found = ids_of_token_texts(in_bytes, "ab\u6d77", [b"ab", b"\xe6\xb5", b"\xb7"])
    assert found == TextIds([AB, PART_OF_SEA, 0xB7], [SURE] * 3)


def given(**fields):
    return GivenOutput(record=Record(index=0, id=1, prompt="ab"), **fields)


def test_the_end_of_an_output(in_bytes):
    def ids(*, end_ids=(END,), stop=(), limit=None, **fields):
        return given_ids(in_bytes, given(**fields), [AB], end_ids=end_ids, stop=stop, limit=limit)[0]

    assert ids(text="ab", finish_reason="stop") == TextIds([AB, END], [SURE, SURE])
    assert ids(text="ab", finish_reason="stop", stop=("x",)) == TextIds([AB, END], [SURE, UNSURE])
    assert ids(text="ab", finish_reason="stop", stop=("x",), says_stop_reason=True).is_ambiguous == [SURE, SURE]
    assert ids(text="ab", finish_reason="stop", end_ids=(7, END)) == TextIds([AB, END], [SURE, UNSURE])
    assert ids(text="ab", finish_reason="stop", stop_reason=9).token_ids == [AB, 9]
    assert ids(text="ab", finish_reason="length").token_ids == [AB]
    assert ids(text="ab").token_ids == [AB]
    assert ids(text="ab", limit=2) == TextIds([AB, END], [SURE, UNSURE])  # nobody says why it is shorter
    assert ids(text="ab", limit=1).token_ids == [AB]
    assert ids(text="ab", finish_reason="stop", limit=1).token_ids == [AB]
    assert ids(text="ab</s>", finish_reason="stop") == TextIds([AB, END], [SURE, SURE])
    assert ids(text="", finish_reason="stop").token_ids == [END]
    assert ids(text="ab", finish_reason="stop", stop_reason="xy") == TextIds(
        [AB, ord("x"), ord("y")], [SURE, UNSURE, UNSURE]
    )
    assert ids(text="abxy", finish_reason="stop", stop_reason="xy").token_ids == [AB, ord("x"), ord("y")]
    assert ids(token_ids=[AB], finish_reason="stop").token_ids == [AB]  # ids are taken at their word


def test_log_probabilities_stay_beside_their_tokens(in_bytes):
    fields = {"text": "ab", "token_texts": ["ab"], "logprobs": [-0.5], "finish_reason": "stop"}
    ids, logprobs = given_ids(in_bytes, given(**fields), [AB], end_ids=[END])
    assert (ids.token_ids, logprobs[0], math.isnan(logprobs[1])) == ([AB, END], -0.5, True)
    ids, logprobs = given_ids(in_bytes, given(**fields | {"token_texts": ["a\ufffd"]}), [AB], end_ids=[END])
    assert (ids.token_ids, logprobs) == ([AB, END], None)  # tokenized anew: they may be others


def test_padding_behind_the_end_is_cut(in_bytes):
    def ids(*token_ids):
        row = given(token_ids=list(token_ids), is_padded=True)
        return given_ids(in_bytes, row, [AB], end_ids=[END])[0].token_ids

    assert ids(AB, END, END, END) == [AB, END]
    assert ids(AB, END, 7, 7) == [AB, END, 7, 7]  # no padding of this tokenizer
    assert ids(AB, 7, 7) == [AB, 7, 7]


def test_prompts_are_cut_off_ids():
    tokenizer = make_tokenizer(61)

    def cut(*token_ids, prompt=(7, 8)):
        output = given(token_ids=list(token_ids), includes_prompt=True)
        own, rest = without_prompt(tokenizer, output, list(prompt))
        assert not rest.includes_prompt
        return own, rest.token_ids

    assert cut(7, 8, 9) == ([7, 8], [9])
    assert cut(BOS, 7, 8, 9) == ([BOS, 7, 8], [9])  # what the model was given
    assert cut(7, 8, 9, prompt=(BOS, 7, 8)) == ([7, 8], [9])
    with pytest.raises(ValueError, match=r"prompt of 2 tokens, but token 1 is 9, not 8; give the prompt"):
        cut(7, 9)
    with pytest.raises(ValueError, match="but token 1 is its end, not 8"):
        cut(7)
    tokenizer.pad_token = "w1"
    assert cut(1, 1, 7, 8, 9) == ([7, 8], [9])


def test_prompts_are_cut_off_texts():
    tokenizer = make_tokenizer(61)
    output = GivenOutput(record=Record(index=0, id=1, prompt="w7"), text="w7 w8 w9", includes_prompt=True)
    assert without_prompt(tokenizer, output, [7])[1].text == " w8 w9"
    templated = dataclasses.replace(output, text="<s> <user> w7 <bot> w8 w9")
    assert without_prompt(tokenizer, templated, [BOS, 59, 7, 60])[1].text == " w8 w9"
    longer = dataclasses.replace(output, text="w7 w9 w5")  # of what the prompt may look like, the longest is cut
    assert without_prompt(tokenizer, longer, [7, 9])[1].text == " w5"
    with pytest.raises(
        ValueError, match=r"begin with its prompt, but begins with 'w8 w9'; .*\"return_full_text\": false"
    ):
        without_prompt(tokenizer, dataclasses.replace(output, text="w8 w9"), [7])


def test_prompts_of_ids_that_are_no_tokens_are_no_traceback():
    tokenizer = make_tokenizer(61)
    output = GivenOutput(record=Record(index=0, id=1, prompt_ids=[10**30]), text="w7 w8", includes_prompt=True)
    with pytest.raises(ValueError, match="begins with 'w7 w8'"):
        without_prompt(tokenizer, output, [10**30])
    assert ids_of_text(tokenizer, [10**30], "w7") == TextIds([7], [SURE])
    assert not is_other_cut(tokenizer, [10**30, 7], 0, 5)


def test_a_beginning_of_text_that_the_text_holds_is_not_doubled():
    tokenizer = make_tokenizer(61, adds_bos=True)
    text = "<s> w7"
    assert tokenizer(text).input_ids == [BOS, BOS, 7]
    assert without_second_bos(tokenizer, [BOS, BOS, 7], text) == [BOS, 7]
    assert without_second_bos(tokenizer, [BOS, 7], "w7") == [BOS, 7]
