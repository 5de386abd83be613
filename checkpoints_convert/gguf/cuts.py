"""Lists the ways in which a byte-level BPE cuts text before merging, by their names in `tokenizer.ggml.pre`.

Sources: the tokenizer.json of gpt2, HuggingFaceTB/SmolLM2, Qwen/Qwen2.5, meta-llama/Meta-Llama-3, mistralai/Mistral-Nemo,
deepseek-ai/deepseek-llm-7b-base and deepseek-ai/deepseek-coder-6.7b-instruct; llama.cpp's src/llama-vocab.cpp for which names
mean the same, for BOS, and for its own cut.
"""

import dataclasses
from typing import Any

from tokenizers import Regex, pre_tokenizers

from checkpoints_convert.errors import CheckpointError
from checkpoints_convert.gguf.header import GGUFFields


@dataclasses.dataclass(frozen=True)
class Cut:
    """The steps of a family's tokenizer.json before merging.

    Attributes:
      steps: pre-tokenizers of `tokenizers`, each of which cuts the pieces that the ones before it left.
      has_gpt2: GPT-2's own cut, which is built into the byte-level step, comes last.
      has_nfc: text is composed (Unicode NFC) first.
      ignores_merges: a piece that is a token is taken whole.
      adds_bos: plain encoding puts BOS in front, where the file does not say.
      is_guess: the name says nothing about the model, and this is what llama.cpp takes then.
    """

    steps: tuple[Any, ...] = ()
    has_gpt2: bool = False
    has_nfc: bool = False
    ignores_merges: bool = False
    adds_bos: bool = False
    is_guess: bool = False

    def pre_tokenizer(self) -> Any:
        """Builds the `tokenizers` pre-tokenizer: the steps, then bytes written as letters."""
        byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.has_gpt2)
        return pre_tokenizers.Sequence([*self.steps, byte_level])


def _matches(*regexes: str) -> tuple[Any, ...]:
    """Makes a step of each regex: what it matches is a piece of its own, and so is what lies between."""
    return tuple(pre_tokenizers.Split(Regex(regex), behavior="isolated") for regex in regexes)


_SINGLE_DIGITS = pre_tokenizers.Digits(individual_digits=True)
_GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)"
_QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
_LLAMA3 = _QWEN2.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"
_TEKKEN = (
    rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*"
    r"|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)

# The letters of DeepSeek LLM: those with a case, of an older Unicode. As numbers, since some of them are written like others
# (21 2A, the kelvin sign) and an editor that composes text would turn ranges around.
_CASED = """
41-5A 61-7A B5 C0-D6 D8-F6 F8-1BA 1BC-1BF 1C4-293 295-2AF 370-373 376 377 37B-37D 37F 386 388-38A 38C 38E-3A1
3A3-3F5 3F7-481 48A-52F 531-556 10A0-10C5 13A0-13F5 13F8-13FD 1C90-1CBA 1CBD-1CBF 1D00-1D2B 1D6B-1D77 1D79-1D9A
1E00-1F15 1F18-1F1D 1F20-1F45 1F48-1F4D 1F50-1F57 1F59 1F5B 1F5D 1F5F-1F7D 1F80-1FB4 1FB6-1FBC 1FBE 1FC2-1FC4
1FC6-1FCC 1FD0-1FD3 1FD6-1FDB 1FE0-1FEC 1FF2-1FF4 1FF6-1FFC 2102 2107 210A-2113 2115 2119-211D 2124 2126 2128
212A-212D 212F-2134 2139 213C-213F 2145-2149 214E 2183 2184 2C00-2C7B 2C7E-2CE4 2CEB-2CEE 2CF2 2CF3 A640-A66D
A680-A69B A722-A76F A771-A787 A78B-A78E AB70-ABBF FB00-FB06 FB13-FB17 FF21-FF3A FF41-FF5A 10400-1044F 104B0-104D3
104D8-104FB 10C80-10CB2 10CC0-10CF2 118A0-118DF 1E900-1E943
"""
_LETTERS = "".join(
    "-".join(rf"\x{{{end}}}" for end in span.split("-"))  # \x{41}-\x{5A}
    for span in _CASED.split()
)
_SIGNS = r"!-/:-~\x{FF01}-\x{FF0F}\x{FF1A}-\x{FF5E}\x{2018}-\x{201F}\x{3000}-\x{3002}"
_EAST_ASIAN = r"[\x{4E00}-\x{9FA5}\x{800}-\x{4E00}\x{AC00}-\x{D7FF}]+"

_QWEN2_CUT = Cut(_matches(_QWEN2), has_nfc=True)
_LLAMA3_CUT = Cut(_matches(_LLAMA3), ignores_merges=True, adds_bos=True)
# llama.cpp says so itself: a file names no cut, or "default", where its writer did not know the model's.
_GUESS = Cut(_matches(r"[\p{P}$+<=>^~|]+", _GPT2, r"\p{N}+", "[0-9][0-9][0-9]"), is_guess=True)
_CUTS = {
    "gpt-2": Cut(has_gpt2=True),
    "smollm": Cut((_SINGLE_DIGITS,), has_gpt2=True),
    "qwen2": _QWEN2_CUT,
    "deepseek-r1-qwen": _QWEN2_CUT,
    "llama-bpe": _LLAMA3_CUT,
    "llama3": _LLAMA3_CUT,
    "llama-v3": _LLAMA3_CUT,
    "falcon3": _LLAMA3_CUT,
    "tekken": Cut(_matches(_TEKKEN), ignores_merges=True, adds_bos=True),
    "smaug-bpe": Cut(_matches(_LLAMA3)),
    "deepseek-llm": Cut(
        (*_matches(r"[\r\n]", rf"\s?[{_LETTERS}]+", rf"\s?[{_SIGNS}]+", r"\s+$", _EAST_ASIAN), _SINGLE_DIGITS)
    ),
    "deepseek-coder": Cut((*_matches(r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _EAST_ASIAN), _SINGLE_DIGITS)),
    "default": _GUESS,
}


def read_cut(field: GGUFFields) -> Cut:
    """Gives the cut that a file names; that of "default" where it names none.

    Raises:
      CheckpointError: if the name is not known here.
    """
    name = field.text("tokenizer.ggml.pre", None) or "default"
    if name not in _CUTS:
        raise CheckpointError(
            f"{field.where}: tokenizer.ggml.pre is {name!r}, a way to cut text that is not known here; "
            f"{', '.join(_CUTS)} are. Convert the model's Hugging Face folder instead."
        )
    return _CUTS[name]
