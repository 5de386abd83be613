"""Finds what prompts of a file begin with alike, such as a system prompt or examples, so that it is read once for all.

Prompts are looked at once, in the file's order. What a prompt shares is decided by the file alone: the bits of an answer then
do not depend on when a run was cut off, or on who was in the batch.
"""

import dataclasses
from array import array
from collections.abc import Sequence

from jax_probe_mtp.decoding.batch import bucket
from jax_probe_mtp.generation.chunks import MOST_PREFIXES

LEAST_SHARED = 64  # tokens: fewer go through the model faster than they are copied
LEAST_SAVED = 2**18  # tokens of a whole file: fewer do not pay for compiling the programs that it takes
LEAST_SAVED_ON_CPU = 2**13  # where reading takes longer
MOST_OPEN = MOST_PREFIXES  # prompts to compare the next with: more beginnings in turn than are kept would gain nothing
NO_GROUP = -1


@dataclasses.dataclass
class _Open:
    """The latest prompt of a group, or one that is in none; `group` is `NO_GROUP` then."""

    index: int
    token_ids: Sequence[int]
    group: int


class SharedPrefixes:
    """Groups prompts that begin alike."""

    def __init__(self, least_saved: int) -> None:
        """Begins with no prompts; nothing is shared where all of them together would save fewer tokens."""
        self._least_saved = least_saved
        self._group_of = array("i")  # of each prompt
        self._shared = array("I")  # of each group, the tokens that all its prompts begin with
        self._size = array("I")  # of each group, its prompts
        self._open: list[_Open] = []
        self._saved: int | None = None  # where it was asked for since the last prompt

    def see(self, token_ids: Sequence[int]) -> None:
        """Takes the next prompt; one without tokens shares nothing."""
        index, self._saved = len(self._group_of), None
        self._group_of.append(NO_GROUP)
        # Without their last tokens, which are the roots of their first calls.
        lengths = [_common_length(other.token_ids[:-1], token_ids[:-1]) for other in self._open]
        own = _Open(index, token_ids, NO_GROUP)
        if max(lengths, default=0) >= LEAST_SHARED:
            other = self._open[lengths.index(max(lengths))]
            own.group = self._joined(other, max(lengths))
            if own.group == other.group:
                self._open.remove(other)
            self._group_of[index] = own.group
        self._open = [*self._open, own][-MOST_OPEN:]

    def _joined(self, other: _Open, num_alike: int) -> int:
        """Gives the group of a prompt that begins as another does: that one's, unless either would lose half of it."""
        if other.group == NO_GROUP:
            self._shared.append(num_alike)
            self._size.append(2)
            other.group = self._group_of[other.index] = len(self._size) - 1
        elif self._size[other.group] == 1:  # which was alike with a prompt of another group, and with none since
            self._shared[other.group] = num_alike
            self._size[other.group] = 2
        elif self._shared[other.group] <= 2 * num_alike and num_alike <= 2 * self._shared[other.group]:
            self._shared[other.group] = min(num_alike, self._shared[other.group])
            self._size[other.group] += 1
        else:
            self._shared.append(num_alike)
            self._size.append(1)
            return len(self._size) - 1
        return other.group

    @property
    def num_saved(self) -> int:
        """Counts the tokens that need not go through the model again."""
        if self._saved is None:
            self._saved = sum(shared * (size - 1) for shared, size in zip(self._shared, self._size, strict=True))
        return self._saved

    @property
    def most_slots(self) -> int:
        """Counts the cache slots that the longest prefixes take, as many of them as are kept."""
        lengths = sorted(filter(None, map(self._of_group, range(len(self._size)))))
        return sum(map(bucket, lengths[-MOST_PREFIXES:]))

    def of(self, index: int) -> int:
        """Says how many of a prompt's first tokens are read with other prompts'; 0 for none."""
        return self._of_group(self._group_of[index])

    def _of_group(self, group: int) -> int:
        if group == NO_GROUP or self._size[group] < 2 or self.num_saved < self._least_saved:
            return 0
        return self._shared[group]


def _common_length(one: Sequence[int], other: Sequence[int]) -> int:
    """Counts the first tokens that two texts have in common, by halves."""
    least, most = 0, min(len(one), len(other))
    if one[:LEAST_SHARED] != other[:LEAST_SHARED]:
        return 0
    while least < most:
        middle = (least + most + 1) // 2
        if one[least:middle] == other[least:middle]:
            least = middle
        else:
            most = middle - 1
    return least
