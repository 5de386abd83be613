"""The rule by which sizes are chosen, on calls whose cost and gain are made up."""

import dataclasses

import numpy as np
import pytest

from jax_probe_mtp.drafting import Plain, parse_draft
from jax_probe_mtp.drafting.merged.choice import LOST, MEASURED, REST, Choice
from jax_probe_mtp.drafting.merged.costs import Costs

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


def play(worlds, num_chunks, *, num_rows=1, seed=0, costs=None):
    """Plays chunks in each world in turn; gives of each the tokens, milliseconds and sizes. A program's first call is slow."""
    draw, choice, played, seen = np.random.default_rng(seed), Choice(SIZES, 8, "b", costs), [], set()
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
            seconds += 0 if turn.size in seen else 50
            seen.add(turn.size)
            choice.note(turn, seconds=seconds, calls=turn.calls, row_calls=row_calls, tokens=gained)
            tokens, time = tokens + gained, time + world.costs[turn.size] * turn.calls
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

    A size's first chunk is a call that loads it. Then two chunks, a trial of the smaller neighbour, loaded first and as long as
    its cost takes, since it is plain decoding; two, one of the larger. Each is eight calls of 9 seconds. The larger one's
    gives as much as 8 seconds of the size in use, and the other's half of it: 64 and 68 seconds are lost, which is `LOST` of
    what comes until the next trial of its size.
    """
    choice, sizes, calls, seconds = Choice(SIZES, 8), [], [], 0.0
    tries = {0: [], 2: []}
    while len(tries[0]) < 7 or len(tries[2]) < 3:
        turn = choice.turn()
        sizes.append(turn.size)
        calls.append(turn.calls)
        if turn.size != 1:
            tries[turn.size].append(seconds)
        took = turn.calls * (1.0 if turn.size == 1 else 9.0)
        seconds += took if turn.calls > 1 else 0  # what loads counts for nothing
        choice.note(
            turn, seconds=took, calls=turn.calls, row_calls=8 * turn.calls, tokens=(16 if turn.size else 8) * turn.calls
        )
    assert REST == 2
    assert sizes[:14] == [1, 1, 1, 0, 0, 0, 0, 0, 0, 1, 1, 2, 2, 1]
    assert calls[:14] == [1, 8, 8, 1, 8, 8, 8, 8, 8, 8, 8, 1, 8, 8]
    for size, lost in {0: 68, 2: 64}.items():
        *_, first, again = tries[size][: 7 if size == 0 else 3]
        assert first + 72 + 0.97 * lost / LOST < again < first + 72 + 1.03 * lost / LOST  # a prior's counts are in it


def test_a_cost_is_measured_once_and_kept():
    """Of five chunks the middle one; the first call, and a chunk that ended early, count for nothing."""
    kept = []
    costs = Costs(keepers=[lambda costs: kept.append(costs.as_json()["seconds"])])
    choice, times = Choice(SIZES[:1], 8, "4 rows", costs), [99.0, 8.0, 80.0, 16.0, 17.0, 24.0, 400.0, 500.0]
    for number, seconds in enumerate(times):
        turn = choice.turn()
        calls = 3 if number == 4 else turn.calls
        choice.note(turn, seconds=seconds, calls=calls, row_calls=4 * calls, tokens=4 * calls)
    assert MEASURED == 5
    assert kept == [{"4 rows": {"plain": 3.0}}]  # of 1, 10, 2, 3 and 50 seconds a call
    assert Choice(SIZES[:1], 8, "4 rows", costs).turn().calls == 8  # nothing is left to measure


def test_what_another_group_of_devices_has_measured_is_known_at_once():
    costs = Costs()
    one, other = (Choice(SIZES, 8, "b", costs) for _ in range(2))

    def play_one(choice, seconds):
        turn = choice.turn()
        choice.note(turn, seconds=seconds * turn.calls, calls=turn.calls, row_calls=turn.calls, tokens=turn.calls)

    play_one(other, 9.0)  # loads its first size
    while costs.get("b", "merged:16") is None:
        play_one(one, 1.0)
    play_one(other, 9.0)
    assert other._sizes[1].cost == one._sizes[1].cost == 1.0


def test_with_known_costs_the_clock_changes_nothing():
    """A run that is gone on with chooses by the costs in its file and by what is accepted."""
    world = WORLDS["a batch"]
    names = ["plain", "merged:16", "merged:32", "merged:64"]
    known = Costs(seconds={"b": dict(zip(names, world.costs, strict=True))})
    [(_, _, sizes)] = play([world], 300, num_rows=8, costs=known)
    assert {sizes.count(size) > 0 for size in (0, 1, 2)} == {True}
    choice, draw, again = Choice(SIZES, 8, "b", known), np.random.default_rng(0), []
    for _ in range(300):
        turn = choice.turn()
        row_calls, share = turn.calls * 8, (world.taus[turn.size] - 1) / DEPTH
        gained = row_calls + (int(draw.binomial(row_calls * DEPTH, share)) if turn.size else 0)
        draw.uniform(0.95, 1.05)  # `play` draws this too
        choice.note(turn, seconds=draw.spawn(1)[0].uniform(0, 9), calls=8, row_calls=row_calls, tokens=gained)
        again.append(turn.size)
    assert again == sizes


def test_a_chunk_in_which_nothing_was_decoded_counts_for_nothing():
    choice = Choice(SIZES, 8)
    for _ in range(REST):
        choice.note(choice.turn(), seconds=1.0, calls=8, row_calls=0, tokens=0)
    choice.note(choice.turn(), seconds=0.1, calls=0, row_calls=0, tokens=0)  # no text was left to decode
    choice.note(choice.turn(), seconds=1.0, calls=8, row_calls=0, tokens=0)
    assert choice.turn().size == 0


def test_there_may_be_one_size():
    choice = Choice(SIZES[:1], 8)
    for _ in range(10):
        assert choice.turn().size == 0
        choice.note(choice.turn(), seconds=1.0, calls=8, row_calls=8, tokens=8)


def test_plain_calls_are_made_until_a_sizes_program_is_there():
    choice, there, asked = Choice(SIZES, 8), {SIZES[0]}, []

    def has(source):
        asked.append(source)
        return source in there

    def play_one(seconds):
        turn = choice.turn(has)
        choice.note(turn, seconds=seconds, calls=turn.calls, row_calls=turn.calls, tokens=turn.calls * (1 + turn.size))
        return turn.size

    assert [play_one(None) for _ in range(3)] == [0, 0, 0]
    assert asked == [SIZES[1]] * 3
    there.add(SIZES[1])
    assert [play_one(8.0) for _ in range(3)] == [1, 1, 1]  # loaded, and two chunks
    assert [play_one(8.0) for _ in range(5)] == [0] * 5  # the other neighbour's turn, if it were there
    assert SIZES[2] in asked
    there.add(SIZES[2])
    assert [play_one(8.0) for _ in range(4)] == [1, 1, 2, 2]


def test_calls_beside_a_compilation_cost_and_decide_nothing():
    costs = Costs()
    choice = Choice(SIZES, 8, "b", costs)
    for seconds in [9.0, *[None] * 20]:
        turn = choice.turn()
        assert turn.size == 1
        choice.note(turn, seconds=seconds, calls=turn.calls, row_calls=8, tokens=8)
    assert costs.as_json()["seconds"] == {}
    for _ in range(REST):
        turn = choice.turn()
        choice.note(turn, seconds=8.0, calls=turn.calls, row_calls=8, tokens=8)
    assert choice.turn().size == 0
    choice.note(choice.turn(), seconds=8.0, calls=1, row_calls=1, tokens=1)
    assert choice.turn().size == 0  # it was loaded to be tried
    choice.note(choice.turn(), seconds=None, calls=8, row_calls=8, tokens=8)
    assert choice.turn().size == 2, "nothing was decided: now it is the other neighbour's turn"
