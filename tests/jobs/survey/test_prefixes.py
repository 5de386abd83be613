"""Prompts that begin alike: who shares how much."""

import random

from jax_probe_mtp.generation.chunks import MOST_PREFIXES
from jax_probe_mtp.jobs.prefixes import LEAST_SHARED, SharedPrefixes


def shared_by(texts, least_saved=4096):
    found = SharedPrefixes(least_saved)
    for text in texts:
        found.see(text)
    return [found.of(index) for index in range(len(texts))]


def drawn(seed, length):
    return random.Random(seed).choices(range(61), k=length)


SYSTEM, OTHER = drawn("system", 500), drawn("other", 300)


def test_all_prompts_of_a_file_share_what_they_begin_with():
    assert shared_by([[*SYSTEM, 60, *drawn(i, 50)] for i in range(20)]) == [501] * 20
    assert (
        shared_by([[*SYSTEM, i, *drawn(i, 500)] for i in range(20)]) == [500] * 20
    )  # though each has as much of its own


def test_equal_prompts_share_all_but_the_last_token():
    assert shared_by([SYSTEM] * 20) == [499] * 20
    assert shared_by([*[SYSTEM] * 10, SYSTEM[:300], *[SYSTEM] * 10]) == [299] * 21


def test_samples_of_prompts_share_those_with_a_short_beginning_too():
    texts = [[*SYSTEM[:100], *drawn(i, 300)] for i in range(4) for _ in range(6)]
    found = shared_by(texts)
    assert found == [399] * 24


def test_beginnings_that_alternate_are_told_apart():
    texts = [[*(SYSTEM if i % 3 else OTHER), i] for i in range(40)]
    assert shared_by(texts) == [500 if i % 3 else 300 for i in range(40)]


def test_more_beginnings_in_turn_than_are_kept_are_not_shared():
    """Each would push out the one that comes next."""
    stems = [drawn(name, 100) for name in range(MOST_PREFIXES + 1)]
    assert shared_by([[*stem, i] for i in range(40) for stem in stems]) == [0] * 40 * len(stems)
    assert shared_by([[*stem, i] for i in range(40) for stem in stems[1:]]) == [100] * 40 * MOST_PREFIXES


def test_a_stray_one_costs_at_most_the_one_before_it():
    stray = [*SYSTEM[:70], 60, *drawn("stray", 200)]
    texts = [[*SYSTEM, i] for i in range(20)]
    for place in (0, 1, 10, 20):
        found = shared_by([*texts[:place], stray, *texts[place:]])
        assert found.count(500) >= 18, (place, found)
        assert max(found) == 500


def test_short_and_rare_beginnings_are_not_shared():
    short = SYSTEM[: LEAST_SHARED - 1]
    assert shared_by([[*short, i, *drawn(i, 100)] for i in range(61)]) == [0] * 61
    assert shared_by([[*SYSTEM, i] for i in range(9)]) == [0] * 9  # 8 x 500 tokens do not pay for the programs
    assert shared_by([[*SYSTEM, i] for i in range(10)]) == [500] * 10
    assert shared_by([[], [1], *[[*SYSTEM, i] for i in range(10)], []]) == [0, 0, *[500] * 10, 0]


def test_any_prompts_share_only_what_they_have_in_common():
    """Against a slow look at every two prompts: of one group, all begin with the same tokens."""
    draw, num_shared = random.Random(0), 0
    for _ in range(300):
        stems = [draw.choices(range(3), k=draw.randrange(1, 300)) for _ in range(draw.randrange(1, 5))]
        stems += [[*stem[: draw.randrange(len(stem))], *draw.choices(range(3), k=80)] for stem in stems]
        texts = [[*draw.choice(stems), *draw.choices(range(3), k=draw.randrange(60))] for _ in range(60)]
        found = SharedPrefixes(1)
        for text in texts:
            found.see(text)
        of_group = {}
        for index, text in enumerate(texts):
            shared = found.of(index)
            if shared:
                assert LEAST_SHARED <= shared < len(text)
                of_group.setdefault(found._group_of[index], set()).add(tuple(text[:shared]))
                num_shared += 1
        assert all(len(beginnings) == 1 for beginnings in of_group.values())
    assert num_shared > 1000
