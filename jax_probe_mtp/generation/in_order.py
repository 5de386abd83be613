"""Answers in the order of their prompts, whatever order they end in."""

import collections
from collections.abc import Iterable, Iterator

from jax_probe_mtp.generation.answers import Generation, Item, Numbered


class InOrder:
    """Gives generations on in the order in which their prompts were taken; those that end early wait."""

    def __init__(self) -> None:
        self._taken: collections.deque[int] = collections.deque()
        self._early: dict[int, Generation] = {}

    def watch(self, items: Iterable[tuple[int, Item]]) -> Iterator[tuple[int, Item]]:
        """Passes the items on as they are, and notes their order."""
        for number, item in items:
            self._taken.append(number)
            yield number, item

    def add(self, finished: Iterable[Numbered]) -> list[Numbered]:
        """Takes generations in any order, and gives those whose turn it is."""
        self._early.update(finished)
        ready = []
        while self._taken and self._taken[0] in self._early:
            number = self._taken.popleft()
            ready.append((number, self._early.pop(number)))
        return ready
