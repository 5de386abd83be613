"""Tokenizers rebuilt from GGUF fields encode as the tokenizers they came from."""

import random

import pytest
from gguf import TokenType
from support.checkpoints.gguf_tokenizers import PRE_TOKENIZERS, TEXTS, build, fields_of, spm_fields, trained

from checkpoints_convert import CheckpointError


@pytest.mark.parametrize("pre", PRE_TOKENIZERS)
def test_byte_level_bpe_encodes_as_the_original(pre, tmp_path):
    original = trained(pre)
    rebuilt = build(fields_of(original, pre, **{"ggml.add_bos_token": False}))
    rebuilt.save_pretrained(tmp_path)
    reloaded = type(rebuilt).from_pretrained(tmp_path)
    for tokenizer in (rebuilt, reloaded):
        for text in TEXTS:
            ids = tokenizer(text)["input_ids"]
            assert ids == original.encode(text, add_special_tokens=False).ids
            assert tokenizer.decode(ids, clean_up_tokenization_spaces=False) == text


def test_each_cut_differs_from_the_others():
    texts = [
        "12345 boats",
        "I'LL wait",
        "x\r\n\r\ny",
        "a 1234567 b",
        "naïve façade",
        "  leading\n\n\n\t\tpass",
        "oneTwo",
    ]
    seen = {
        pre: [[piece for piece, _ in cut.pre_tokenize_str(text)] for text in texts]
        for pre, cut in PRE_TOKENIZERS.items()
    }
    assert len({str(pieces) for pieces in seen.values()}) == len(PRE_TOKENIZERS)


def test_qwen2_composes_accents():
    rebuilt = build(fields_of(trained("qwen2"), "qwen2"))
    assert rebuilt("cafe\u0301")["input_ids"] == rebuilt("caf\u00e9")["input_ids"]
    plain = build(fields_of(trained("smollm"), "smollm"))
    assert plain("cafe\u0301")["input_ids"] != plain("caf\u00e9")["input_ids"]


def test_llama3_takes_a_word_that_is_a_token_whole():
    tokenizer = trained("llama-bpe")
    vocab = tokenizer.get_vocab()
    fields = fields_of(tokenizer, "llama-bpe", **{"ggml.add_bos_token": False})
    fields["tokenizer.ggml.tokens"] = [*fields["tokenizer.ggml.tokens"], "zqxj"]  # no merges lead to it
    fields["tokenizer.ggml.token_type"] = [*fields["tokenizer.ggml.token_type"], int(TokenType.NORMAL)]
    assert build(fields)("zqxj")["input_ids"] == [len(vocab)]
    fields["tokenizer.ggml.pre"] = "qwen2"
    assert build(fields)("zqxj")["input_ids"] == [vocab[letter] for letter in "zqxj"]
    fields["tokenizer.ggml.pre"] = "llama3"
    assert len(build(fields)("1234567")["input_ids"]) >= 3  # digits go by threes


@pytest.mark.parametrize(
    ("pre", "flag", "expected"),
    [("qwen2", None, 0), ("qwen2", True, 1), ("llama-bpe", None, 1), ("llama-bpe", False, 0), ("smollm", None, 0)],
)
def test_bos_is_added_where_the_model_wants_it(pre, flag, expected, tmp_path):
    template = "{{ bos_token }}{% for m in messages %}{{ m['content'] }}{% endfor %}"
    fields = fields_of(trained(pre), pre, **{"ggml.add_bos_token": flag, "chat_template": template})
    bos = fields["tokenizer.ggml.bos_token_id"]
    tokenizer = build(fields)
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, type(tokenizer).from_pretrained(tmp_path)):
        assert each("the boats")["input_ids"].count(bos) == expected
        assert each("the boats", add_special_tokens=False)["input_ids"].count(bos) == 0
        messages = [{"role": "user", "content": "the boats"}]
        chat = each.apply_chat_template(messages, tokenize=False)
        assert each(chat, add_special_tokens=False)["input_ids"].count(bos) == 1
        assert (each.bos_token, each.eos_token, each.model_max_length) == ("<s>", "</s>", 64)


@pytest.mark.parametrize(
    ("name", "like"), [("deepseek-r1-qwen", "qwen2"), ("falcon3", "llama-bpe"), ("llama3", "llama-bpe")]
)
def test_names_of_a_known_cut(name, like):
    """By llama.cpp's table; each cuts lines of mixed scripts as the family's tokenizer.json does."""
    original = trained(like)
    rebuilt = build(fields_of(original, name, **{"ggml.add_bos_token": False}))
    rng = random.Random(0)
    letters = "".join(TEXTS) + "'sT 0123456789\r\n\t\u0301"
    lines = ["".join(rng.choices(letters, k=rng.randrange(60))) for _ in range(10_000)]
    assert rebuilt(lines)["input_ids"] == [
        encoding.ids for encoding in original.encode_batch(lines, add_special_tokens=False)
    ]
    has_bos = build(fields_of(original, name))("x")["input_ids"] != rebuilt("x")["input_ids"]
    assert has_bos == (like == "llama-bpe")


def test_smaug_cuts_as_llama3_without_its_two_rules():
    """No BOS of itself, and no word taken whole that no merge leads to."""
    fields = fields_of(trained("llama-bpe"), "smaug-bpe")
    fields["tokenizer.ggml.tokens"] = [*fields["tokenizer.ggml.tokens"], "zqxj"]
    fields["tokenizer.ggml.token_type"] = [*fields["tokenizer.ggml.token_type"], int(TokenType.NORMAL)]
    like = build(fields | {"tokenizer.ggml.pre": "llama-bpe", "tokenizer.ggml.add_bos_token": False})
    smaug = build(fields)
    assert all(smaug(text)["input_ids"] == like(text)["input_ids"] for text in TEXTS)
    assert (len(smaug("zqxj")["input_ids"]), len(like("zqxj")["input_ids"])) == (4, 1)


@pytest.mark.parametrize("token_id", [-1, 2**32 - 1, 2000])
def test_what_is_no_id_of_an_unused_token_is_none(caplog, token_id):
    names = ("padding", "unknown", "bos")
    changes = {f"ggml.{name}_token_id": token_id for name in names}
    tokenizer = build(fields_of(trained("qwen2"), "qwen2", **changes))
    assert (tokenizer.pad_token, tokenizer.unk_token, tokenizer.bos_token) == (None, None, None)
    assert tokenizer("the boats")["input_ids"] == build(fields_of(trained("qwen2"), "qwen2"))("the boats")["input_ids"]
    assert sorted(caplog.messages) == sorted(
        f"m.gguf: tokenizer.ggml.{name}_token_id {token_id} is no id, taken as none" for name in names
    )


def test_token_kinds_decide_what_is_found_and_what_is_skipped():
    tokenizer = trained("qwen2")
    size = tokenizer.get_vocab_size()
    fields = fields_of(tokenizer, "qwen2", **{"ggml.padding_token_id": size, "ggml.unknown_token_id": size})
    added = {"<|pad|>": TokenType.CONTROL, "<tool>": TokenType.USER_DEFINED, "[unused0]": TokenType.UNUSED}
    fields["tokenizer.ggml.tokens"] = [*fields["tokenizer.ggml.tokens"], *added]
    fields["tokenizer.ggml.token_type"] = [*fields["tokenizer.ggml.token_type"], *map(int, added.values())]
    rebuilt = build(fields)
    assert rebuilt("<tool><|pad|>")["input_ids"] == [size + 1, size]
    assert rebuilt.decode([size + 1, size], skip_special_tokens=True) == "<tool>"
    assert "[unused0]" not in rebuilt.get_vocab()
    assert len(rebuilt) == size + 2
    assert (rebuilt.pad_token, rebuilt.unk_token) == ("<|pad|>", "<|pad|>")


@pytest.mark.parametrize("make", [lambda **kw: fields_of(trained("gpt-2"), "gpt-2", **kw), spm_fields])
def test_without_kinds_of_tokens_special_ones_may_be_cut(caplog, make):
    fields = make()
    added = {"tokens": "<|im_end|>", "token_type": int(TokenType.CONTROL), "scores": 0.0}
    keys = {f"tokenizer.ggml.{key}": value for key, value in added.items()}
    fields |= {key: [*fields[key], value] for key, value in keys.items() if key in fields}
    assert build(fields).tokenize("<|im_end|>")[-1] == "<|im_end|>"
    assert caplog.messages == []
    del fields["tokenizer.ggml.token_type"]
    bare = build(fields)
    assert "<|im_end|>" not in bare.tokenize("<|im_end|>")
    assert bare.tokenize("</s>")[-1] == "</s>"  # tokenizer.ggml.eos_token_id names it
    assert caplog.messages == [
        "m.gguf has no tokenizer.ggml.token_type, so special tokens that it gives no id for may be cut as plain text is; "
        "convert its Hugging Face folder to be sure"
    ]


def test_sentencepiece_merges_by_score(tmp_path):
    tokenizer = build(spm_fields())
    tokenizer.save_pretrained(tmp_path)
    for each in (tokenizer, type(tokenizer).from_pretrained(tmp_path)):

        def pieces(text, each=each):
            return each.convert_ids_to_tokens(each(text)["input_ids"])

        assert pieces("abc") == ["<s>", "▁ab", "c"]  # ab (-2) before bc (-3), then ▁ab
        assert pieces("bcc") == ["<s>", "▁", "bcc"]  # cc (-1) before bc (-3)
        assert pieces("ab ab") == ["<s>", "▁ab", "▁ab"]
        assert pieces("é") == ["<s>", "▁", "<0xC3>", "<0xA9>"]  # no token: bytes
        for text in (" ab  c", "é🙂 ab\n", "ab"):
            ids = each(text)["input_ids"]
            assert each.decode(ids, skip_special_tokens=True, clean_up_tokenization_spaces=False) == text
        assert pieces("ab</s>ab") == ["<s>", "▁ab", "</s>", "▁ab"]  # llama.cpp: a space after each special token


def test_sentencepiece_flags():
    bare = build(spm_fields(**{"ggml.add_space_prefix": False, "ggml.add_bos_token": False}))
    assert bare.convert_ids_to_tokens(bare("abc")["input_ids"]) == ["ab", "c"]
    assert bare.decode(bare(" ab")["input_ids"]) == " ab"
    ended = build(spm_fields(**{"ggml.add_eos_token": True}))
    assert ended("ab")["input_ids"][-1] == 2


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"ggml.pre": "kimi-k2"}, "'kimi-k2'.*gpt-2, smollm, qwen2, deepseek-r1-qwen, llama-bpe"),
        ({"ggml.pre": "deepseek-v3"}, "'deepseek-v3'.*deepseek-llm, deepseek-coder, default are"),
        ({"ggml.model": "bert"}, "'bert' is not supported; gpt2 and llama are"),
        ({"ggml.model": "llama"}, "has no 'tokenizer.ggml.scores'"),
        ({"ggml.tokens": None}, "has no 'tokenizer.ggml.tokens'"),
        ({"ggml.tokens": ["a", "a"], "ggml.token_type": [1, 1]}, "'a' twice"),
        ({"ggml.token_type": [1]}, "1 token types for"),
        ({"ggml.merges": ["ab"]}, "a space between"),
        ({"ggml.merges": ["nope nada"]}, "cannot be built"),
        ({"ggml.eos_token_id": 10**6}, "eos_token_id 1000000 is no id"),
        ({"ggml.bos_token_id": 10**6, "ggml.add_bos_token": True}, "names no id"),
        ({"ggml.bos_token_id": -1, "chat_template": "{{ bos_token }}"}, "begins texts with bos_token, but"),
        ({"ggml.bos_token_id": None, "ggml.add_bos_token": True}, "names no id"),
    ],
)
def test_malformed_and_unknown_tokenizers_are_named(changes, message):
    with pytest.raises(CheckpointError, match=message):
        build(fields_of(trained("smollm"), "smollm", **changes))


def test_more_tokens_than_the_embedding_has_are_refused():
    with pytest.raises(CheckpointError, match="1 to 100 texts"):
        build(fields_of(trained("smollm"), "smollm"), vocab_size=100)


def test_a_token_of_many_letters_does_not_keep_the_reader_busy():
    fields = spm_fields()
    fields["tokenizer.ggml.tokens"][-1] = "ab" * 100_000  # 2 * 10^10 letters would be looked at
    with pytest.raises(CheckpointError, match="token 267 has 200000 characters; 256 are supported"):
        build(fields)


def test_more_merges_than_tokens_allow_are_refused():
    fields = fields_of(trained("gpt-2"), "gpt-2")
    most = sum(map(len, fields["tokenizer.ggml.tokens"]))
    fields["tokenizer.ggml.merges"] = [fields["tokenizer.ggml.merges"][0]] * (most + 1)
    with pytest.raises(CheckpointError, match=f"{most + 1} tokenizer.ggml.merges; its tokens allow for {most}"):
        build(fields)
