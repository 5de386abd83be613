"""Makes tiny tokenizers and the fields of GGUF files that hold them, for tests."""

import json

from gguf import TokenType
from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from checkpoints_convert.gguf.tokenizer import build_tokenizer
from support.checkpoints.deepseek_cuts import DEEPSEEK_CODER, DEEPSEEK_LLM

TEXTS = [
    "The tide was out, and 1234567 boats lay in the mud; I'LL wait. WE'VE 3.14 … don't!",
    "def f(x):\n    return x+1  # ok\r\n\n\n\t\tpass",
    "  leading, trailing   ",
    "日本語のテキスト 한국어 العربية हिन्दी 12345",
    "🙂👩‍👩‍👧 naïve façade ½ ² Ⅷ \u200b x\u00a0y",
    "",
]
CORPUS = [line * 3 for line in TEXTS] + ["1234567 boats boats boats 's 'll I'LL"] * 3

# As the published tokenizer.json files have them, written out independently of the package's table.
CONTRACTIONS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
TEKKEN = (  # as llama.cpp's source quotes it from Mistral Nemo's file
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
PRE_TOKENIZERS = {
    "gpt-2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "smollm": pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    ),
    "qwen2": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}|" + REST), "isolated"),
            BYTE_LEVEL,
        ]
    ),
    "llama-bpe": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CONTRACTIONS + r"|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}|" + REST), "isolated"),
            BYTE_LEVEL,
        ]
    ),
    "tekken": pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(TEKKEN), "isolated"), BYTE_LEVEL]),
    "deepseek-llm": DEEPSEEK_LLM,
    "deepseek-coder": DEEPSEEK_CODER,
}


def trained(pre):
    """Trains a byte-level BPE cut as `pre` says, with merges that were learnt without any cut, so that each cut shows."""
    learner = Tokenizer(models.BPE())
    learner.pre_tokenizer = BYTE_LEVEL
    trainer = trainers.BpeTrainer(
        vocab_size=900,
        min_frequency=1,
        max_token_length=6,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
        special_tokens=["<s>", "</s>"],
    )
    learner.train_from_iterator(CORPUS, trainer)
    model = json.loads(learner.to_str())["model"]
    merges = [tuple(pair) for pair in model["merges"]]
    tokenizer = Tokenizer(models.BPE(model["vocab"], merges, ignore_merges=pre in ("llama-bpe", "tekken")))
    tokenizer.add_special_tokens(["<s>", "</s>"])
    tokenizer.pre_tokenizer = PRE_TOKENIZERS[pre]
    tokenizer.decoder = decoders.ByteLevel()
    if pre == "qwen2":
        tokenizer.normalizer = normalizers.NFC()
    return tokenizer


def fields_of(tokenizer, pre, **changes):
    vocab = tokenizer.get_vocab()
    tokens = sorted(vocab, key=vocab.get)
    kinds = [int(TokenType.CONTROL if token in ("<s>", "</s>") else TokenType.NORMAL) for token in tokens]
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    fields = {
        "tokenizer.ggml.model": "gpt2",
        "tokenizer.ggml.pre": pre,
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": kinds,
        "tokenizer.ggml.merges": [" ".join(pair) for pair in merges],
        "tokenizer.ggml.bos_token_id": vocab["<s>"],
        "tokenizer.ggml.eos_token_id": vocab["</s>"],
    } | {f"tokenizer.{key}": value for key, value in changes.items()}
    return {key: value for key, value in fields.items() if value is not None}


def build(fields, vocab_size=2000):
    return build_tokenizer(fields, "m.gguf", vocab_size=vocab_size, context_length=64)


def spm_fields(**changes):
    """Gives a SentencePiece vocabulary with hand-set scores: "ab" beats "bc", "abc" beats all."""
    pieces = {"▁": -9.0, "a": -9.0, "b": -9.0, "c": -9.0, "ab": -2.0, "bc": -3.0, "▁ab": -4.0, "cc": -1.0, "bcc": -5.0}
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{i:02X}>" for i in range(256)), *pieces]
    kinds = [TokenType.UNKNOWN, TokenType.CONTROL, TokenType.CONTROL, *[TokenType.BYTE] * 256]
    kinds += [TokenType.NORMAL] * len(pieces)
    fields = {
        "tokenizer.ggml.model": "llama",
        "tokenizer.ggml.tokens": tokens,
        "tokenizer.ggml.token_type": [int(kind) for kind in kinds],
        "tokenizer.ggml.scores": [0.0] * 259 + list(pieces.values()),
        "tokenizer.ggml.bos_token_id": 1,
        "tokenizer.ggml.eos_token_id": 2,
        "tokenizer.ggml.unknown_token_id": 0,
    }
    return fields | {f"tokenizer.{key}": value for key, value in changes.items()}
