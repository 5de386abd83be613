"""What each token of a tokenizer spells, in bytes: a part of a character is some, and decodes to nothing that can be found."""

import functools
import json
import re
from collections.abc import Sequence
from typing import Any

from jax_probe_mtp.generation.special_stops import special_texts
from jax_probe_mtp.generation.tokenizer import decode

_PLAIN = [*range(33, 127), *range(161, 173), *range(174, 256)]
# GPT-2's byte alphabet: bytes that print are their own characters, the others stand behind 255, in order
_BYTE_OF = {chr(byte): byte for byte in _PLAIN} | {
    chr(256 + n): byte for n, byte in enumerate(byte for byte in range(256) if byte not in set(_PLAIN))
}
_BYTE_TOKEN = re.compile(r"<0x([0-9A-Fa-f]{2})>")
_SPACE_MARK = "\u2581"  # how SentencePiece writes a space
_LONGEST = 64  # bytes of a token that `spelled` tries; longer ones are rules and blanks


@functools.lru_cache(maxsize=4)  # reading a vocabulary takes a tenth of a second
def token_bytes(tokenizer: Any) -> "TokenBytes":
    """Gives what the tokens of a `transformers.PreTrainedTokenizerFast` spell."""
    return TokenBytes(tokenizer)


class TokenBytes:
    """Knows what each token spells.

    Attributes:
      is_known: False for a tokenizer whose way to decode is none of these: byte-level BPE, SentencePiece's (spaces as
        "\u2581", bytes as <0x0A>), words with spaces between them. Nothing else may be asked of it then.
      loses_space: True where a space that a text begins with is lost when it is decoded.
      specials: ids of the tokens that a decoded text leaves out.
      special_of: these by the bytes of their names.
    """

    def __init__(self, tokenizer: Any) -> None:
        decoder = tokenizer.backend_tokenizer.decoder
        rules = "" if decoder is None else decoder.__getstate__().decode()
        kinds = {each["type"] for each in _rules(json.loads(rules))} if rules else set()
        self._is_byte_level = "ByteLevel" in kinds
        self._is_words = decoder is None
        self.is_known = self._is_byte_level or self._is_words or "Metaspace" in kinds or _SPACE_MARK in rules
        self._has_byte_tokens = "ByteFallback" in kinds
        self.specials = special_texts(tokenizer)
        self.special_of = {name.encode(): token_id for token_id, name in self.specials.items()}
        self._added = {token_id: token.content for token_id, token in tokenizer.added_tokens_decoder.items()}
        self._vocabulary = {token_id: token for token, token_id in tokenizer.get_vocab().items()}
        self.loses_space = self.is_known and self._loses_space(tokenizer)

    def of(self, token_id: int) -> bytes:
        """Gives the bytes of a token, of a special one those of its name; none for an id that is no token's."""
        if token_id in self._added:
            return (" " * self._is_words + self._added[token_id]).encode()
        token = self._vocabulary.get(token_id, "")
        if self._is_words:
            return f" {token}".encode() if token else b""
        if self._is_byte_level:
            if all(character in _BYTE_OF for character in token):
                return bytes(_BYTE_OF[character] for character in token)
            return token.encode()
        if self._has_byte_tokens and (match := _BYTE_TOKEN.fullmatch(token)):
            return bytes([int(match[1], 16)])
        return token.replace(_SPACE_MARK, " ").encode()

    @functools.cached_property
    def ids_of(self) -> dict[bytes, list[int]]:
        """The tokens that spell some bytes, without special ones, and bytes as <0x0A> where nothing else spells them."""
        found: dict[bytes, list[int]] = {}
        is_byte = {token_id: bool(_BYTE_TOKEN.fullmatch(token)) for token_id, token in self._vocabulary.items()}
        for token_id in sorted(is_byte, key=lambda token_id: (is_byte[token_id], token_id)):
            data = b"" if token_id in self.specials else self.of(token_id)
            if data and not (is_byte[token_id] and data in found):
                found.setdefault(data, []).append(token_id)
        return found

    def spelled(self, data: bytes) -> list[int] | None:
        """Gives tokens that spell some bytes, each as long as can be; None where some byte is in no token."""
        token_ids, start = list[int](), 0
        while start < len(data):
            sizes = range(min(_LONGEST, len(data) - start), 0, -1)
            size = next((size for size in sizes if data[start : start + size] in self.ids_of), None)
            if size is None:
                return None
            token_ids.append(self.ids_of[data[start : start + size]][0])
            start += size
        return token_ids

    def shown(self, token_ids: Sequence[int]) -> bytes:
        """Gives the bytes of tokens up to the first special one."""
        data = b""
        for token_id in token_ids:
            if token_id in self.specials:
                break
            data += self.of(token_id)
        return data

    def _loses_space(self, tokenizer: Any) -> bool:
        """Asks the tokenizer itself: a word with a space before it is decoded alone."""
        for token_id in self._vocabulary:
            data = self.of(token_id)
            if token_id not in self._added and len(data) > 1 and data[:1] == b" " and data[1:].isalnum():
                return not decode(tokenizer, [token_id]).startswith(" ")
        return False


def _rules(decoder: dict[str, Any]) -> list[dict[str, Any]]:
    return [decoder, *(rule for each in decoder.get("decoders", []) for rule in _rules(each))]
