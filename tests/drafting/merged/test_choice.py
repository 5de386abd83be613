"""The rule by which sizes are chosen, on calls whose cost and gain are made up."""

import dataclasses

import numpy as np
import pytest

from jax_probe_mtp.drafting import Plain, parse_draft
from jax_probe_mtp.drafting.merged.choice import LOST, REST, Choice

SIZES = (Plain(), *(parse_draft(f"merged:{rows}") for rows in (16, 32, 64)))
DEPTH = 8


@dataclasses.dataclass
class World:
    """Milliseconds of a call of each size, and tokens that a row's call gives of it, on average."""

    costs: tuple[float, ...]
    taus: tuple[float, ...]

    def rate(self, size):
        return self.taus[size] / self.costs[size]

    @property
    def best(self):
        return max(range(4), key=self.rate)


def play(worlds, num_chunks, *, num_rows=1, seed=0):
    """Plays chunks in each world in turn; gives of each the tokens, milliseconds and sizes."""
    draw, choice, played = np.random.default_rng(seed), Choice(SIZES, num_rows, 8), []
    for world in worlds:
        tokens, time, sizes = 0, 0.0, []
        for _ in range(num_chunks):
            turn = choice.turn()
            assert choice.turn() == turn
            assert turn.source is SIZES[turn.size]
            row_calls = turn.calls * num_rows
            share = (world.taus[turn.size] - 1) / DEPTH
            gained = row_calls + (int(draw.binomial(row_calls * DEPTH, share)) if turn.size else 0)
            seconds = world.costs[turn.size] * turn.calls * draw.uniform(0.95, 1.05)
            choice.note(turn, seconds=seconds, calls=turn.calls, row_calls=row_calls, tokens=gained)
            tokens, time = tokens + gained, time + seconds
            sizes.append(turn.size)
        played.append((tokens, time, sizes))
    return played


WORLDS = {
    "a GPU, bfloat16": World((1.0, 1.03, 1.05, 1.1), (1.0, 2.4, 2.8, 3.2)),
    "a CPU": World((1.0, 2.9, 4.8, 9.0), (1.0, 2.4, 2.8, 3.2)),
    "a batch": World((1.0, 1.4, 2.1, 3.9), (1.0, 2.4, 2.8, 3.2)),
    "a text that nothing knows": World((1.0, 1.2, 1.3, 1.5), (1.0, 1.1, 1.12, 1.13)),
}


@pytest.mark.parametrize("name", WORLDS)
@pytest.mark.parametrize("num_rows", [1, 8])
def test_a_run_is_nearly_as_fast_as_the_best_size_in_hindsight(name, num_rows):
    world = WORLDS[name]
    for seed in range(5):
        [(tokens, time, sizes)] = play([world], 400, num_rows=num_rows, seed=seed)
        rate = tokens / time / num_rows
        assert rate >= 0.95 * world.rate(world.best)
        assert rate >= 0.98 * world.rate(0)
        assert sizes.count(world.best) > len(sizes) / 2


def test_the_best_sizes_of_these_worlds_differ():
    """Else a rule that always takes one size would do."""
    assert [world.best for world in WORLDS.values()] == [3, 0, 1, 0]


def test_a_text_that_changes_is_followed():
    repeats = World((1.0, 1.4, 2.1, 3.9), (1.0, 2.4, 5.0, 5.2))
    worlds = [WORLDS["a batch"], repeats, WORLDS["a batch"]]
    assert [world.best for world in worlds] == [1, 2, 1]
    for world, (_, _, sizes) in zip(worlds, play(worlds, 600), strict=True):
        assert sizes[-100:].count(world.best) >= 90


def test_trials_by_hand():
    """A call that drafts gives a row two tokens; one of the size in use takes a second, one of the others 9.

    Two chunks, a trial of the smaller neighbour; two, one of the larger. Each trial is two calls of 9 seconds. The larger
    one's gives as much as 2 seconds of the size in use, and the other's half of it: 16 and 17 seconds are lost, which is
    `LOST` of what comes until the next trial of its size.
    """
    choice, sizes, calls, seconds = Choice(SIZES, 8, 8), [], [], 0.0
    tries = {0: [], 2: []}
    while len(tries[0]) + len(tries[2]) < 4:
        turn = choice.turn()
        sizes.append(turn.size)
        calls.append(turn.calls)
        if turn.size != 1:
            tries[turn.size].append(seconds)
        took = turn.calls * (1.0 if turn.size == 1 else 9.0)
        seconds += took
        choice.note(
            turn, seconds=took, calls=turn.calls, row_calls=8 * turn.calls, tokens=(16 if turn.size else 8) * turn.calls
        )
    assert REST == 2
    assert sizes[:7] == [1, 1, 0, 1, 1, 2, 1]
    assert calls[:7] == [8, 8, 2, 8, 8, 2, 8]  # 16 calls of rows make a trial
    for size, lost in {0: 17, 2: 16}.items():
        first, again = tries[size]
        assert first + 18 + 0.97 * lost / LOST < again < first + 18 + 1.03 * lost / LOST  # a prior's counts are in it


def test_a_chunk_in_which_nothing_was_decoded_counts_for_nothing():
    choice = Choice(SIZES, 4, 8)
    for _ in range(REST):
        choice.note(choice.turn(), seconds=1.0, calls=8, row_calls=0, tokens=0)
    assert choice.turn().size == 0


def test_there_may_be_one_size():
    choice = Choice(SIZES[:1], 1, 8)
    for _ in range(10):
        assert choice.turn().size == 0
        choice.note(choice.turn(), seconds=1.0, calls=8, row_calls=8, tokens=8)
