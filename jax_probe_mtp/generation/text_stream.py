"""The text of tokens as they come: whole characters only, and cut at the first stop string."""

from collections.abc import Sequence
from typing import Any

from jax_probe_mtp.generation import tokenizer as text
from jax_probe_mtp.generation.special_stops import NOT_WHOLE, ShownText, special_texts, with_special_tokens

MOST_NOT_WHOLE = 3  # of them that one more token can turn into a character


class TextStream:
    """Takes tokens one by one. What it finds depends on their order alone, not on how many came in one call.

    A token is decoded together with the few before it, since a tokenizer may put a space or a part of a character between
    two of them. (`tokenizers.decoders.DecodeStream` does so as well, but raises where a model writes bytes that are no
    text, and keeps whole characters back that come with a part of the next one.)

    A stop string that holds the whole text of a special token is looked for in the text with special tokens shown; the
    others in the text without them, where one may begin before such a token and end after it.

    Attributes:
      text: the text so far, without special tokens and without an end that is no whole character; cut before the first
        stop string.
      is_stopped: True once a stop string is complete. No more tokens are taken then.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        """Args: a `transformers.PreTrainedTokenizerFast`, and the texts that end the answer, none of them empty."""
        self._tokenizer = tokenizer
        self._specials = special_texts(tokenizer)
        special_stops = with_special_tokens(tokenizer, stop)
        self._shown = ShownText(tokenizer, special_stops) if special_stops else None
        self._stop = tuple(one for one in stop if one not in special_stops)
        self._longest = max(map(len, self._stop), default=0)
        self._ids: list[int] = []  # the tokens of the last whole text, then those after it
        self._num_before = 0  # of these, those whose text is known
        self._num_given = 0  # characters that those after them have given already
        self._unsure = ""  # what a part of a character at the end is decoded to
        self._num_shown = 0
        self.text = ""
        self.is_stopped = False

    def add(self, token_id: int) -> bool:
        """Takes one token; True if a stop string is complete with it."""
        if self.is_stopped:
            return True
        end, new = len(self.text), self._new_characters(token_id)
        start = max(0, end - self._longest + 1)  # a stop string that begins before was found before
        self.text += new
        found = [place for stop in self._stop if (place := self.text.find(stop, start)) >= 0]
        if self._shown is not None:
            found += self._shown.add(token_id, new, end, self._unsure)
        if found:
            self.text = (self.text + self._unsure)[: min(found)]
            self.is_stopped = True
        return self.is_stopped

    def _new_characters(self, token_id: int) -> str:
        if token_id in self._specials:  # no text, and no part of what is decoded again with the next token
            return ""
        self._ids.append(token_id)
        known = text.decode(self._tokenizer, self._ids[: self._num_before])
        window = text.decode(self._tokenizer, self._ids)
        num_open = min(len(window) - len(window.rstrip(NOT_WHOLE)), MOST_NOT_WHOLE)
        self._unsure = window[len(window) - num_open :]
        if num_open and not window.startswith(known):
            self._unsure = ""
            return ""  # a run of byte tokens is no text at all until the last of them is there
        new = window[len(known) + self._num_given : len(window) - num_open]
        self._num_given += len(new)
        if self._num_given and num_open == 0:  # a token without text is no start for the next
            self._ids = self._ids[self._num_before :]
            self._num_before, self._num_given = len(self._ids), 0
        return new

    def show(self) -> str:
        """Gives the text that is new since the last call and stays: an end that may become a stop string is held back."""
        end = len(self.text)
        if not self.is_stopped:
            held = (n for n in range(min(self._longest - 1, end), 0, -1) if self._may_begin(self.text[end - n :]))
            end -= next(held, 0)
            if self._shown is not None:
                end = min(end, self._shown.first_held(end))
        return self._up_to(max(end, self._num_shown))

    def finish(self, whole: str) -> str:
        """Gives the rest of the text after the last token: of the stream's own where a stop string cut it, else of `whole`."""
        if not self.is_stopped:
            self.text = whole
        return self._up_to(len(self.text))

    def _may_begin(self, ending: str) -> bool:
        return any(stop.startswith(ending) for stop in self._stop)

    def _up_to(self, end: int) -> str:
        new, self._num_shown = self.text[self._num_shown : end], end
        return new
