"""Stop texts that hold a special token: they are looked for in the text with special tokens shown."""

import functools
from collections.abc import Sequence
from typing import Any

NOT_WHOLE = "\ufffd"  # what the bytes of a character decode to before the last of them is there


@functools.lru_cache(maxsize=4)  # a tokenizer may have tens of thousands
def special_texts(tokenizer: Any) -> dict[int, str]:
    """Gives id -> text of the tokens that a decoded text leaves out."""
    added = tokenizer.added_tokens_decoder.items()
    return {token_id: token.content for token_id, token in added if token.special and token.content}


def with_special_tokens(tokenizer: Any, stop: Sequence[str]) -> tuple[str, ...]:
    """Picks the stop texts that hold the whole text of a special token: no text without special tokens holds them."""
    specials = special_texts(tokenizer).values() if stop else ()
    return tuple(text for text in stop if any(special in text for special in specials))


class ShownText:
    """The end of a text with special tokens shown, as long as the search for the next stop text needs it.

    Each character has its place in the text without special tokens: where that is cut if a stop text begins with it.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str]) -> None:
        """Args: a `transformers.PreTrainedTokenizerFast`, and the stop texts, of which each holds a special token."""
        self._specials = special_texts(tokenizer)
        self._stop = tuple(stop)
        self._kept = max(map(len, self._stop)) - 1  # a stop text that begins before was found before
        self._text = ""
        self._places: list[int] = []
        self._num_unsure = 0  # characters that stand for a part of one, since a special token came behind it

    def add(self, token_id: int, new: str, place: int, unsure: str) -> list[int]:
        """Takes a token; gives the places where stop texts begin that are complete with it.

        Args:
          token_id: the token.
          new: the characters that are sure with it.
          place: of the first of them in the text without special tokens.
          unsure: what a part of a character at the end is decoded to, as long as it is no whole one.
        """
        start = max(0, len(self._text) - self._kept)
        self._text, self._places = self._text[start:], self._places[start:]
        if special := self._specials.get(token_id):
            self._append(unsure[self._num_unsure :], place + self._num_unsure)
            self._text += special
            self._places += [place + len(unsure)] * len(special)
            self._num_unsure = len(unsure)
        elif new:
            num_there = self._num_unsure if new.startswith(NOT_WHOLE * self._num_unsure) else 0
            self._append(new[num_there:], place + num_there)
            self._num_unsure = 0
        found = (self._text.find(stop) for stop in self._stop)
        return [self._places[start] for start in found if start >= 0]

    def _append(self, text: str, place: int) -> None:
        self._text += text
        self._places += range(place, place + len(text))

    def first_held(self, end: int) -> int:
        """Gives the place of the first character that may yet begin a stop text, or `end`, where the text ends."""
        for start in range(max(0, len(self._text) - self._kept), len(self._text)):
            if any(stop.startswith(self._text[start:]) for stop in self._stop):
                return self._places[start]
        return end
