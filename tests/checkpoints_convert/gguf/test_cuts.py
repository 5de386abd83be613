"""The ways to cut text before merging, beside other builds of the same, on 10,000 lines of many scripts."""

import itertools
import random
import unicodedata

import pytest
from support.checkpoints.gguf_tokenizers import BYTE_LEVEL, PRE_TOKENIZERS, build, fields_of, trained
from tokenizers import pre_tokenizers

RUNS = (  # characters that come in runs; all are older than the Unicode of any library here
    "abcdefgXYZ",
    "äßçñøǅĳƻʔ",
    "άΩἀὭώᾏῼΐΊ\u2126\u212a\u212b\u1f7d\u1fd3\u1fdb",
    "ДждҁԯЇ",
    "ԱՖաև",
    "ႠჅაჺᲐᎠᏸꭰ",
    "עבריתمرحبا",
    "हिन्दीไทยខ្មែរ",
    "日本語中文鿿々〆ひらカター한국어ㄅ",
    "ｆＵＬＬ１！～",
    "𐐀𐐨𞤀𝐀𝑏ﬁﬗ",
    "0123456789",
    "٣४½²Ⅷ〇㊿",
    "!\"#$%&'()*+,-./:;<=>?@[\\]^_`{|}~",
    "…—‘’“”‟、。！？«»¿§¬±×€",
    "🙂👩\u200d👧🏽🚀\ufe0f",
    "\u0301\u0308\u200b\ufeff",
    " ",
    "\t\u00a0\u3000\u2028\u0085\x1c",
    "\r\n",
)
WORDS = (
    "I'm",
    "we'LL",
    "don't",
    "you've",
    " 'd",
    "'s",
    "\r\n\r\n",
    "    ",
    "3.14",
    "1234567",
    "x_1",
    "a-b",
    "\n  if x:\n",
)


def lines_of_text(count=10_000):
    """Makes lines of runs of each kind, of words, and of any character that there is."""
    rng = random.Random(24)

    def piece():
        kind = rng.randrange(20)
        if kind < 3:
            return rng.choice(WORDS)
        if kind == 3:
            return chr(rng.choice([rng.randrange(0x3000), rng.randrange(0xD800), rng.randrange(0xE000, 0x20000)]))
        return "".join(rng.choices(rng.choice(RUNS), k=rng.randint(1, 4)))

    return ["".join(piece() for _ in range(rng.randint(0, 12))) for _ in range(count)]


LINES = lines_of_text()


def cut_of(tokenizer, text):
    return tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_lines_of_many_scripts_are_cut_as_the_tokenizer_json_cuts_them(pre):
    original = trained(pre)
    rebuilt = build(fields_of(original, pre, **{"ggml.add_bos_token": False}))
    differing = [line for line in LINES if cut_of(rebuilt, line) != PRE_TOKENIZERS[pre].pre_tokenize_str(line)]
    assert differing == []
    assert rebuilt(LINES)["input_ids"] == [
        encoding.ids for encoding in original.encode_batch(LINES, add_special_tokens=False)
    ]


@pytest.mark.parametrize(
    ("pre", "text", "expected"),
    [  # by hand, from the regexes
        ("deepseek-llm", "a b_c  12", ["a", " b", "_", "c", "  ", "1", "2"]),
        ("deepseek-llm", "Это ж ", ["Это", " ж", " "]),
        ("deepseek-llm", "中 文aﬁ", ["中", " ", "文", "a", "ﬁ"]),  # [:-~] of its signs holds a to z
        ("deepseek-llm", "مر حب", ["مر حب"]),  # no letters with a case: neither cut nor given their spaces
        ("deepseek-llm", "x\r\ny", ["x", "\r", "\n", "y"]),
        ("deepseek-coder", "مر حب", ["مر", " حب"]),
        ("deepseek-coder", "a\t+ 'b$", ["a", "\t+", " '", "b", "$"]),
        ("deepseek-coder", "中文 half", ["中文", " half"]),
        ("tekken", "don't stop 2024", ["don", "'t", " stop", " ", "2", "0", "2", "4"]),
        ("tekken", "HelloWorld ABCd XMLFile", ["Hello", "World", " ABCd", " XMLFile"]),
        ("tekken", "a //\n/b", ["a", " //\n/", "b"]),
        ("tekken", "日本Go 中文", ["日本Go", " 中文"]),
        ("default", "don't $5+2 =1234 x", ["don", "'", "t", " ", "$", "5", "+", "2", " ", "=", "123", "4", " x"]),
    ],
)
def test_pieces_by_hand(pre, text, expected):
    pieces = cut_of(build(fields_of(trained("gpt-2"), pre)), text)
    assert [text[start:end] for _, (start, end) in pieces] == expected


def split_by(pieces, kind):
    """Cuts each piece where what `kind` says of a character changes."""
    return ["".join(group) for piece in pieces for _, group in itertools.groupby(piece, kind)]


def guessed(text):
    """Cuts as llama.cpp does where it does not know better: signs, GPT-2's cut, numbers, ASCII digits by threes."""
    gpt2 = pre_tokenizers.ByteLevel(add_prefix_space=False)
    pieces = split_by([text], lambda c: unicodedata.category(c)[0] == "P" or c in "$+<=>^~|")
    pieces = [piece[a:b] for piece in pieces for _, (a, b) in gpt2.pre_tokenize_str(piece)]
    pieces = split_by(pieces, lambda c: unicodedata.category(c)[0] == "N")
    for piece in pieces:
        digits = ""
        for is_digits, group in itertools.groupby(piece, lambda c: c in "0123456789"):
            run = "".join(group)
            if not is_digits:
                digits += run
                continue
            while len(run) >= 3:  # three are a piece; fewer stay with what is beside them
                yield from filter(None, (digits, run[:3]))
                digits, run = "", run[3:]
            digits += run
        if digits:
            yield digits


@pytest.mark.parametrize("pre", ["default", None, ""])
def test_a_file_that_does_not_say_is_cut_as_llama_cpp_cuts_it_and_says_so_once(caplog, pre):
    rebuilt = build(fields_of(trained("gpt-2"), pre))
    assert caplog.messages == [
        f"m.gguf: tokenizer.ggml.pre is {pre!r}, so text is cut in llama.cpp's default way, which may be another than the "
        "model's; convert its Hugging Face folder to be sure"
    ]
    known = [line for line in LINES if all(unicodedata.category(c) != "Cn" for c in line)]
    assert len(known) > 9000
    for line in known:
        expected = [piece for text in guessed(line) for piece, _ in BYTE_LEVEL.pre_tokenize_str(text)]
        assert [piece for piece, _ in cut_of(rebuilt, line)] == expected, line


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_a_known_cut_warns_of_nothing(caplog, pre):
    build(fields_of(trained(pre), pre))
    assert caplog.messages == []
