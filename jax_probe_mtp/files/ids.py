"""Ids of records, kept as digests: many fit into memory."""

import hashlib
from array import array

import numpy as np


class IdSet:
    """Ids by their digests, 8 bytes each. Two ids share a digest once in about n * n / 2**65 files of n ids.

    Args:
      digests: of `id_digest`; the set takes them over and sorts them in place.
    """

    def __init__(self, digests: "array[int]") -> None:
        self._digests = np.asarray(digests)  # the same memory
        self._digests.sort()

    def __len__(self) -> int:
        return len(self._digests)

    def __contains__(self, name: object) -> bool:
        # np.uint64: beside a Python int the whole array would be turned into float64, which rounds
        digest = np.uint64(id_digest(name))
        index = np.searchsorted(self._digests, digest)
        return bool(index < len(self._digests) and self._digests[index] == digest)

    def repeated(self) -> list[int]:
        """Gives the digests that are there more than once."""
        return np.unique(self._digests[1:][self._digests[1:] == self._digests[:-1]]).tolist()


def id_digest(name: object) -> int:
    """Gives 64 bits that stand for an id; 1 and "1" are the same id, since they would draw the same noise."""
    return int.from_bytes(hashlib.blake2b(str(name).encode(), digest_size=8).digest(), "little")
