"""The tokens of a text that a model wrote, and which of them may have been others."""

import dataclasses
import itertools
from collections.abc import Sequence
from typing import Any

from jax_probe_mtp.generation.special_stops import NOT_WHOLE
from jax_probe_mtp.generation.tokenizer import decode
from jax_probe_mtp.jobs.text_ids.token_bytes import TokenBytes, token_bytes

_BEFORE = ("", "\n", ":", "a")  # what a text may stand behind while it is cut, so that no space is put in front of it


@dataclasses.dataclass(frozen=True)
class TextIds:
    """Tokens that spell a text.

    Attributes:
      token_ids: the tokens.
      is_ambiguous: of each, True where the text does not tell whether the model wrote this one.
    """

    token_ids: list[int]
    is_ambiguous: list[bool]

    def __post_init__(self) -> None:
        assert len(self.token_ids) == len(self.is_ambiguous)


def ids_of_text(tokenizer: Any, prompt_ids: Sequence[int], text: str) -> TextIds:
    """Tokenizes a text as it stands behind a prompt, so that the tokens spell it to the byte wherever tokens can.

    Ambiguous are: tokens of a stretch that the tokenizer writes otherwise (it may normalize text), with one more on each
    side; tokens in which a character is that stands for broken bytes; special tokens that the text spells, but for the last
    token; and the beginning where a space may have been lost in decoding. A text that the model cut otherwise than its
    tokenizer does is not found out here: see `is_other_cut`.

    Args:
      tokenizer: a `transformers.PreTrainedTokenizerFast`.
      prompt_ids: the prompt's tokens.
      text: the answer, without special tokens or with them.
    """
    if not text:
        return TextIds([], [])
    known = token_bytes(tokenizer)
    if not known.is_known:
        token_ids = _cut(tokenizer, text)
        return TextIds(token_ids, [decode(tokenizer, token_ids) != text] * len(token_ids))
    target = text.encode()
    readings = {
        "as it is": _behind_something(tokenizer, known, text),
        "a space was lost": _with_lost_space(tokenizer, known, text),
    }
    names = list(readings) if text[0].isspace() or _ends_open(known, prompt_ids) else list(reversed(readings))
    found = [reading for name in names if (reading := readings[name]) is not None]
    if not found:
        own = _cut(tokenizer, text)
        starts_with_space = known.loses_space and not text.startswith(" ") and known.of(own[0])[:1] == b" "
        target = b" " * starts_with_space + target
        return _realigned(known, own, target)
    token_ids = found[0]
    is_ambiguous = [False] * len(token_ids)
    for other in found[1:]:
        pairs = zip(reversed(token_ids), reversed(other), strict=False)
        num_same = sum(1 for _ in itertools.takewhile(lambda pair: pair[0] == pair[1], pairs))
        num_unsure = max(1, len(token_ids) - num_same)  # the first one also where only one more may be before it
        is_ambiguous[:num_unsure] = [True] * num_unsure
    return _unsure_marked(known, TextIds(token_ids, is_ambiguous))


def is_other_cut(tokenizer: Any, token_ids: Sequence[int], place: int, other: int) -> bool:
    """Says whether another token at a place of a text would spell the same text, cut otherwise.

    It does where the text from that place on begins with what it spells, or ends within it.

    Args:
      tokenizer: a `transformers.PreTrainedTokenizerFast`.
      token_ids: of the answer; a special token ends the text.
      place: index of the token in whose place `other` would stand.
      other: the other token; False if it is the same one, or a special token.
    """
    known = token_bytes(tokenizer)
    if not known.is_known or other == token_ids[place] or other in known.specials:
        return False
    rest, data = known.shown(token_ids[place:]), known.of(other)
    return bool(rest and data) and (rest.startswith(data) or data.startswith(rest))


def cut_with(tokenizer: Any, found: TextIds, place: int, other: int) -> TextIds | None:
    """Gives tokens that spell the same text with another token at a place, and those behind it cut anew.

    A character that the token cuts through is spelled to its end by itself; a special token that ends the text stays.

    Args:
      tokenizer: a `transformers.PreTrainedTokenizerFast`.
      found: the tokens so far.
      place: index of the token in whose place `other` stands.
      other: the other token.

    Returns:
      None where the token does not spell the text's next bytes, or no tokens spell what is behind it.
    """
    if not is_other_cut(tokenizer, found.token_ids, place, other):
        return None
    known = token_bytes(tokenizer)
    last = next((i for i in range(place, len(found.token_ids)) if found.token_ids[i] in known.specials), None)
    old, data = found.token_ids[place:last], known.of(other)
    rest = b"".join(map(known.of, old))
    if not rest.startswith(data):
        return None
    behind = rest[len(data) :]
    size = next((i for i, byte in enumerate(behind) if byte & 0xC0 != 0x80), len(behind))  # of a character begun before
    text = behind[size:].decode(errors="replace")
    begun, whole = known.spelled(behind[:size]), _behind_something(tokenizer, known, text) if text else []
    if begun is None or whole is None:
        return None
    anew = [other, *begun, *whole]
    # What was unsure stays so, byte by byte.
    unsure = b"".join(
        bytes([was]) * len(known.of(token)) for token, was in zip(old, found.is_ambiguous[place:last], strict=True)
    )
    ends = list(itertools.accumulate(len(known.of(token)) for token in anew))
    marks = [any(unsure[start:end]) for start, end in itertools.pairwise([0, *ends])]
    after = slice(len(found.token_ids) if last is None else last, None)
    return TextIds(
        [*found.token_ids[:place], *anew, *found.token_ids[after]],
        [*found.is_ambiguous[:place], *marks, *found.is_ambiguous[after]],
    )


def shown_bytes(tokenizer: Any, token_ids: Sequence[int]) -> bytes:
    """Gives the bytes of an answer's tokens up to the first special one."""
    return token_bytes(tokenizer).shown(token_ids)


def _cut(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer(text, add_special_tokens=False)["input_ids"])


def _behind_something(tokenizer: Any, known: TokenBytes, text: str) -> list[int] | None:
    """Gives tokens that spell the text exactly, its first space or none included; None where none are found."""
    target = text.encode()
    for before in _BEFORE:
        token_ids = _cut(tokenizer, before + text)
        size = 0
        for start in range(len(token_ids), -1, -1):
            if size == len(target) and b"".join(map(known.of, token_ids[start:])) == target:
                return token_ids[start:]
            if start == 0 or size > len(target):
                break
            size += len(known.of(token_ids[start - 1]))
    return None


def _with_lost_space(tokenizer: Any, known: TokenBytes, text: str) -> list[int] | None:
    """Gives tokens that spell the text with a space before it, where decoding would lose that space."""
    if not known.loses_space or text.startswith(" "):
        return None
    token_ids = _cut(tokenizer, text)
    return token_ids if b"".join(map(known.of, token_ids)) == b" " + text.encode() else None


def _ends_open(known: TokenBytes, prompt_ids: Sequence[int]) -> bool:
    """Says whether a text may follow the prompt without a space: behind white space, a special token or nothing."""
    if not prompt_ids or prompt_ids[-1] in known.specials:
        return True
    return known.of(prompt_ids[-1])[-1:].isspace()


def _realigned(known: TokenBytes, token_ids: list[int], target: bytes) -> TextIds:
    """Gives tokens that spell `target` where the tokenizer's own spell something else in between.

    The longest beginning and the longest end that agree stay; what is between is spelled anew, and is ambiguous.
    """
    begin, first = 0, 0
    while first < len(token_ids) and target.startswith(data := known.of(token_ids[first]), begin):
        first, begin = first + 1, begin + len(data)
    end, last = len(target), len(token_ids)
    while last > first:
        data = known.of(token_ids[last - 1])
        if end - len(data) < begin or not target[:end].endswith(data):
            break
        last, end = last - 1, end - len(data)
    middle = known.spelled(target[begin:end])
    if middle is None:  # some byte is in no token: what the tokenizer made of it stands in its place
        middle = token_ids[first:last]
    joined = token_ids[:first] + middle + token_ids[last:]
    unsure = range(first - 1, first + len(middle) + 1)  # a neighbour may have been one with it
    return _unsure_marked(known, TextIds(joined, [place in unsure for place in range(len(joined))]))


def _unsure_marked(known: TokenBytes, found: TextIds) -> TextIds:
    """Marks special tokens before the last one, and those in which a character for broken bytes is."""
    pieces = [known.of(token_id) for token_id in found.token_ids]
    data, broken = b"".join(pieces), NOT_WHOLE.encode()
    is_broken, start = bytearray(len(data)), 0
    while (start := data.find(broken, start)) >= 0:
        is_broken[start : start + len(broken)] = b"\1" * len(broken)
        start += len(broken)
    ends = list(itertools.accumulate(map(len, pieces)))
    last = len(pieces) - 1
    is_ambiguous = [
        was or any(is_broken[end - len(piece) : end]) or (place < last and token_id in known.specials)
        for place, (was, end, piece, token_id) in enumerate(
            zip(found.is_ambiguous, ends, pieces, found.token_ids, strict=True)
        )
    ]
    return TextIds(found.token_ids, is_ambiguous)
