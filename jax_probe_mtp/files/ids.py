"""What tells records apart, in 64 bits each: many fit into memory."""

import bisect
import hashlib
import json
from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np

_ALL_BITS = 2**64 - 1
_as_text = json.JSONEncoder(sort_keys=True, separators=(",", ":")).encode
_STEP = 0x9E3779B97F4A7C15  # odd, its bits as if drawn: keys of equal records are far from each other
_STEPS_INVERSE = pow(_STEP, -1, _ALL_BITS + 1)
_SAMPLE_STEP = 0xD1B54A32D192ED03  # likewise, of one record's answers


class Keys:
    """The key of each record of a file, and where it stands: 12 bytes a record.

    Two ids share a key once in about n * n / 2**65 files of n records.
    """

    def __init__(self, keys: "array[int]") -> None:
        """Args: keys in the order of the file, which are kept."""
        self._keys = keys
        self._order = array("I")  # places in the order of their keys
        self._order.frombytes(np.argsort(np.asarray(keys)).astype(np.uint32).tobytes())

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, place: int) -> int:
        return self._keys[place]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Keys) and self._keys == other._keys

    def add_to(self, digest: Any) -> None:
        """Adds all keys, in order and without a copy of them, to a digest of `hashlib`."""
        digest.update(self._keys)

    def __contains__(self, name: object) -> bool:
        return self.find(id_key(name)) is not None

    def find(self, key: int) -> int | None:
        """Gives the place of a key, None where it is not there."""
        at = bisect.bisect_left(self._order, key, key=self._keys.__getitem__)
        place = self._order[at] if at < len(self._order) else None
        return place if place is not None and self._keys[place] == key else None


class KeySet:
    """Keys alone: 8 bytes each. They are taken over, and sorted in place."""

    def __init__(self, keys: "array[int]") -> None:
        np.asarray(keys).sort()
        self._keys = keys

    def __len__(self) -> int:
        return len(self._keys)

    def __contains__(self, name: object) -> bool:
        key = id_key(name)
        at = bisect.bisect_left(self._keys, key)
        return at < len(self) and self._keys[at] == key

    def repeated(self) -> list[int]:
        """Gives the keys that are there more than once."""
        keys = np.asarray(self._keys)
        return np.unique(keys[1:][keys[1:] == keys[:-1]]).tolist()


def id_key(name: object) -> int:
    """Gives the key of a record that has an id; 1 and "1" are the same id, since they would draw the same noise."""
    return _digest(str(name), b"")


def content_digest(values: Mapping[str, Any]) -> int:
    """Gives what stands for all that a record asks for: JSON values by their names, in any order."""
    return _digest(_as_text(values), b"content")


def nameless_key(content: int, occurrence: int) -> int:
    """Gives the key of a record without an id: what it asks for, and which of its equals it is, counted from 1."""
    return (content + occurrence * _STEP) & _ALL_BITS


def occurrence_of(key: int, content: int) -> int:
    """Gives the occurrence that `nameless_key` was told."""
    return (key - content) * _STEPS_INVERSE & _ALL_BITS


def sample_key(key: int, sample: int) -> int:
    """Gives the key of one of the answers that a record asks for, counted from 0: the first one has the record's own."""
    return (key + sample * _SAMPLE_STEP) & _ALL_BITS


def answer_key(answer: Mapping[str, Any]) -> int:
    """Gives the key of the record, and of which of its samples, that an answer belongs to.

    Raises:
      KeyError, TypeError, ValueError: if it does not say.
    """
    sample = answer.get("sample", 0)
    if type(sample) is not int or type(answer.get("occurrence", 0)) is not int:
        raise TypeError
    if "occurrence" in answer:
        return sample_key(nameless_key(int(answer["content"], 16), answer["occurrence"]), sample)
    return sample_key(id_key(answer["id"]), sample)


def first_sample_key(answer: Mapping[str, Any]) -> int:
    """Gives the key of the first sample of the record that an answer belongs to."""
    return answer_key({name: value for name, value in answer.items() if name != "sample"})


def sample_name(name: object, sample: int | None) -> str:
    """Gives the id of an answer for messages, and which sample it is where its record asks for several."""
    return f"{name!r}"[:60] + ("" if sample is None else f" (sample {sample})")


def _digest(text: str, person: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8, person=person).digest(), "little")
