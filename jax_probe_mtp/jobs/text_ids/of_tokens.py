"""The ids of tokens that a file names by their texts or bytes."""

from collections.abc import Sequence
from typing import Any

from jax_probe_mtp.generation.special_stops import NOT_WHOLE
from jax_probe_mtp.jobs.text_ids.of_text import TextIds
from jax_probe_mtp.jobs.text_ids.token_bytes import TokenBytes, token_bytes


def ids_of_token_texts(tokenizer: Any, text: str | None, token_texts: Sequence[bytes | str | int]) -> TextIds | None:
    """Gives the ids of an answer's tokens; None where one cannot be told, or they do not spell the answer.

    A token's text may lack the space that it begins with, where decoding it alone loses it; the answer tells then. Of
    several tokens that spell the same, the one that stands for characters is taken, and is ambiguous.

    Args:
      tokenizer: a `transformers.PreTrainedTokenizerFast`.
      text: the answer, which the tokens may go on behind (a stop text is cut from it); None if nobody says.
      token_texts: what each token spells, a special one its name; or its id.
    """
    known = token_bytes(tokenizer)
    if not known.is_known:
        return None
    rest = None if text is None else text.encode()
    token_ids, is_ambiguous = list[int](), list[bool]()
    for place, named in enumerate(token_texts):
        data = named.encode() if isinstance(named, str) else named
        if isinstance(data, int):
            choices = [data]
            spelled = b"" if data in known.specials else known.of(data)
        elif data in known.special_of and not (rest and rest.startswith(data)):
            choices, spelled = [known.special_of[data]], b""
        elif NOT_WHOLE.encode() in data:
            return None  # a part of a character, which is not known
        else:
            spelled = _as_in_text(known, data, rest, place)
            choices = known.ids_of.get(spelled, [])
        if not choices:
            return None
        token_ids.append(choices[0])
        core = spelled.removeprefix(b" ")
        may_lack_space = place == 0 and known.loses_space and rest is not None and not rest.startswith(b" ")
        has_both = core in known.ids_of and b" " + core in known.ids_of
        is_ambiguous.append(len(choices) > 1 or (may_lack_space and has_both))
        if rest is not None:
            spelled = spelled.removeprefix(b" ") if place == 0 and not rest.startswith(spelled) else spelled
            if not rest.startswith(spelled) and not spelled.startswith(rest):
                return None
            rest = rest[len(spelled) :]
    return None if rest else TextIds(token_ids, is_ambiguous)


def _as_in_text(known: TokenBytes, data: bytes, rest: bytes | None, place: int) -> bytes:
    """Gives what a token spells: with a space before it where the text has one, or has lost it, and the token has not."""
    if not known.loses_space or data.startswith(b" "):
        return data
    with_space = b" " + data
    if rest is None or not rest:
        return data if data in known.ids_of else with_space
    if place == 0 and not rest.startswith(b" "):  # lost in both, or in neither
        return with_space if with_space in known.ids_of else data
    return with_space if rest.startswith(with_space) else data
