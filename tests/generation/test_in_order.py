"""Answers in the order of their prompts, whatever order they end in."""

import itertools

from support.generation.row_streams import refused

from jax_probe_mtp.generation.in_order import InOrder


def test_in_order_gives_each_when_its_turn_comes():
    numbers = [3, 5, 6, 10, 11]
    for permutation in itertools.permutations(numbers):
        in_order = InOrder()
        assert list(in_order.watch((number, refused(number)) for number in numbers)) == [
            (number, refused(number)) for number in numbers
        ]
        got = []
        for count, number in enumerate(permutation, start=1):
            got += [n for n, _ in in_order.add([(number, refused(number))])]
            early = set(permutation[:count])
            assert got == list(itertools.takewhile(early.__contains__, numbers))
