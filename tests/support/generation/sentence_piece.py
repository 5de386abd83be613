"""A tokenizer in the manner of SentencePiece, as Llama 2's: a space is put before a text, and lost when one is decoded."""

from tokenizers import Tokenizer, decoders, models, normalizers
from transformers import PreTrainedTokenizerFast

WORDS = ["\u2581he", "\u2581hell", "\u2581hello", "he", "hell", "hello", "\u2581\u2581", "ll", "lo", "llo"]
MERGES = [("h", "e"), ("l", "l"), ("\u2581", "he"), ("\u2581he", "ll"), ("\u2581hell", "o")]
MERGES += [("he", "ll"), ("hell", "o"), ("l", "o"), ("ll", "o"), ("\u2581", "\u2581")]
LETTERS = ["\u2581", *"abehlo:."]


def sentence_piece_tokenizer():
    """Makes it: ids 3 to 258 are the bytes <0x00> to <0xFF>, then come letters and words."""
    tokens = ["<unk>", "<s>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), *LETTERS, *WORDS]
    vocab = {token: token_id for token_id, token in enumerate(tokens)}
    backend = Tokenizer(models.BPE(vocab, MERGES, unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    backend.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), normalizers.Replace(" ", "\u2581")])
    backend.decoder = decoders.Sequence(
        [decoders.Replace("\u2581", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    )
    return PreTrainedTokenizerFast(tokenizer_object=backend, unk_token="<unk>", bos_token="<s>", eos_token="</s>")
