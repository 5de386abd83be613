"""The text of tokens as they come: whole characters only, and cut at the first stop string."""

from collections.abc import Sequence
from typing import Any

from tokenizers.decoders import DecodeStream


class TextStream:
    """Takes tokens one by one. What it finds depends on their order alone, not on how many came in one call.

    Attributes:
      text: the text so far, without special tokens and without a last character that is not whole; cut before the first
        stop string.
      is_stopped: True once a stop string is complete. No more tokens are taken then.
    """

    def __init__(self, tokenizer: Any, stop: Sequence[str] = ()) -> None:
        """Args: a `transformers.PreTrainedTokenizerFast`, and the texts that end the answer, none of them empty."""
        self._backend = tokenizer.backend_tokenizer
        self._stream = DecodeStream(skip_special_tokens=True)
        self._stop = tuple(stop)
        self._longest = max(map(len, self._stop), default=0)
        self._num_shown = 0
        self.text = ""
        self.is_stopped = False

    def add(self, token_id: int) -> bool:
        """Takes one token; True if a stop string is complete with it."""
        piece = self._stream.step(self._backend, token_id)
        if piece and not self.is_stopped:
            start = max(0, len(self.text) - self._longest + 1)  # a stop string that begins before was found before
            self.text += piece
            found = [place for stop in self._stop if (place := self.text.find(stop, start)) >= 0]
            if found:
                self.text = self.text[: min(found)]
                self.is_stopped = True
        return self.is_stopped

    def show(self) -> str:
        """The text that is new since the last call and will stay: an end that may yet become a stop string is held back."""
        end = len(self.text)
        if not self.is_stopped:
            held = (n for n in range(min(self._longest - 1, end), 0, -1) if self._may_begin(self.text[end - n :]))
            end -= next(held, 0)
        return self._up_to(max(end, self._num_shown))

    def finish(self, whole: str) -> str:
        """The rest of the text after the last token: of the stream's own where a stop string cut it, else of `whole`."""
        if not self.is_stopped:
            self.text = whole
        return self._up_to(len(self.text))

    def _may_begin(self, ending: str) -> bool:
        return any(stop.startswith(ending) for stop in self._stop)

    def _up_to(self, end: int) -> str:
        new, self._num_shown = self.text[self._num_shown : end], end
        return new
