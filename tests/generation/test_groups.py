"""Groups of devices side by side, and a device's chunks: none waits for another, the host for none, and time is counted."""

import collections
import concurrent.futures
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from support.generation.row_streams import PROBE, PROMPTS, SETTINGS, S, answers

from jax_probe_mtp.decoding.rows import run_calls
from jax_probe_mtp.generation.answers import Stats, Update
from jax_probe_mtp.generation.groups import SideBySide
from jax_probe_mtp.generation.programs import CompileClock
from jax_probe_mtp.generation.scheduler import ContinuousDecoder


class Group:
    """A decoder whose chunks each end one record, when the test says so."""

    def __init__(self, name, log, *, num_rows=2, is_ready=lambda: True):
        self.name, self.log, self.num_rows, self.is_ready = name, log, num_rows, is_ready
        self.stats, self.shared = Stats(), None

    def run(self, items, should_stop):
        for number, _ in items:
            if should_stop():
                return
            self.log.append((self.name, number))
            self.stats.records += 1
            self.stats.seconds += 2.0 if self.name == "a" else 1.0
            self.stats.host_seconds += 0.5
            yield Update(finished=[(number, self.name)], new_text=[])

    def under_way(self):
        return [(1, 2)]


def side_by_side(*decoders, learns_shared=False, stats=None):
    return SideBySide(decoders, CompileClock(), learns_shared=learns_shared, stats=stats or Stats())


def finished(updates):
    return [record for update in updates for record in update.finished]


def test_a_group_that_is_busy_keeps_no_other_from_going_on():
    log = []
    slow = Group("a", log, is_ready=lambda: not any(slow.stats.records for _ in "a") or len(log) >= 9)
    ended = finished(side_by_side(slow, Group("b", log)).run((i, None) for i in range(10)))
    assert sorted(number for number, _ in ended) == list(range(10))
    assert collections.Counter(name for name, _ in log) == {"a": 2, "b": 8}
    assert [name for name, _ in log[:2]] == ["a", "b"]
    assert log[-1] == ("a", 2), "its second of the prompts that are dealt out: all others were taken by then"


def test_where_all_are_busy_the_first_to_end_goes_on_and_nobody_spins():
    class Device(Group):
        """Each chunk ends a moment after it has begun."""

        chunk, looks = None, 0

        def __init__(self, name, log):
            super().__init__(name, log, is_ready=self.has_ended)

        def has_ended(self):
            Device.looks += 1
            return self.chunk is None or self.chunk.done()

        def run(self, items, should_stop):
            for update in super().run(items, should_stop):
                self.chunk = concurrent.futures.Future()
                threading.Timer(0.02, self.chunk.set_result, [None]).start()
                yield update

    ended = finished(side_by_side(Device("a", []), Device("b", [])).run((i, None) for i in range(8)))
    assert sorted(number for number, _ in ended) == list(range(8))
    assert Device.looks < 100, "of thousands in the time that the chunks take"


def test_few_prompts_are_dealt_out_to_all_groups():
    log = []
    finished(side_by_side(Group("a", log, num_rows=8), Group("b", log, num_rows=8)).run((i, None) for i in range(4)))
    assert sorted(log) == [("a", 0), ("a", 2), ("b", 1), ("b", 3)]


def test_counts_are_sums_and_time_is_the_longest_groups():
    stats = Stats(records=1, seconds=5.0)
    both = side_by_side(Group("a", []), Group("b", []), stats=stats)
    finished(both.run((i, None) for i in range(4)))
    assert (stats.records, stats.seconds, stats.host_seconds) == (1 + 4, 5.0 + 2 * 2.0, 1.0)
    assert both.under_way() == [(1, 2), (1, 2)]


def test_a_stop_ends_all_groups():
    log = []
    both = side_by_side(Group("a", log), Group("b", log))
    ended = finished(both.run(((i, None) for i in range(100)), lambda: len(log) >= 5))
    assert len(ended) == 5


def test_an_error_of_one_group_comes_out():
    class Broken(Group):
        def run(self, items, should_stop):
            raise ValueError("broken")
            yield

    class Held(Group):
        is_closed = False

        def run(self, items, should_stop):
            try:
                yield from super().run(items, should_stop)
            finally:
                self.is_closed = True

    other = Held("a", [])
    with pytest.raises(ValueError, match="broken"):
        finished(side_by_side(other, Broken("b", [])).run((i, None) for i in range(4)))
    assert other.is_closed, "else its cache stays on its device"


def test_each_group_has_its_part_of_what_is_learned():
    both = side_by_side(Group("a", []), Group("b", []), learns_shared=True)
    both.shared = {"x": np.arange(6).reshape(2, 3)}
    assert [decoder.shared["x"].tolist() for decoder in both._decoders] == [[[0, 1, 2]], [[3, 4, 5]]]
    both._decoders[1].shared = {"x": np.array([[7, 8, 9]])}
    assert jax.tree.map(np.ndarray.tolist, both.shared) == {"x": [[0, 1, 2], [7, 8, 9]]}


def test_what_is_not_learned_is_the_same_for_all():
    both = side_by_side(Group("a", []), Group("b", []))
    both.shared = jnp.ones(3)
    assert isinstance(both._decoders[1].shared, np.ndarray), (
        "an array of the first group's device is none of the second's"
    )
    both._decoders[0].shared = jnp.arange(3)
    assert both.shared.tolist() == [0, 1, 2]
    assert isinstance(both.shared, np.ndarray)


def test_prompts_that_wait_are_whosever_row_is_free_first(checkpoint, programs):
    waiting = collections.deque()
    both = [
        ContinuousDecoder(checkpoint, PROBE, SETTINGS, capacity=S, is_sampled=True, programs=programs, waiting=waiting)
        for _ in "ab"
    ]
    items = enumerate(PROMPTS * 2)
    first, second = (decoder.run(items) for decoder in both)
    next(first)
    both[0].chunk.result()
    next(first)  # its rows are full, and it has taken prompts for the next free ones
    num_waiting = len(waiting)
    assert num_waiting > 0
    next(second)
    assert len(both[1].under_way()) == 3
    assert len(waiting) < num_waiting
    first.close()
    second.close()


@pytest.fixture
def timed(checkpoint, programs, monkeypatch):
    """A clock that the test sets, and a decoder with the run of one prompt by it."""
    monkeypatch.setattr(programs, "clock", CompileClock())
    now = [0.0]
    monkeypatch.setattr("time.perf_counter", lambda: now[0])
    decoder = ContinuousDecoder(checkpoint, PROBE, SETTINGS, capacity=S, is_sampled=True, programs=programs)
    return now, decoder, decoder.run([(0, PROMPTS[0])])


def test_what_is_compiled_for_another_group_is_nobodys_time(programs, timed):
    """The device ends its chunk after 1 s, the host compiles for 20 s meanwhile, and looks after 5 s more."""
    now, decoder, updates = timed
    now[0] += 1.0
    next(updates)
    decoder.chunk.result()
    begun, now[0] = now[0], now[0] + 20.0
    programs.clock.note(begun)
    now[0] += 5.0
    list(updates)
    assert decoder.stats.host_seconds == decoder.stats.seconds == pytest.approx(5.0)
    assert decoder.stats.compile_seconds == pytest.approx(20.0)


@pytest.fixture
def device(monkeypatch, programs):
    """An event that each chunk of calls waits for, as on a device that is slow; the chunks' threads."""
    goes_on, threads, honest = threading.Event(), [], programs.get

    def get(function, *args, **options):
        program = honest(function, *args, **options)
        if function is not run_calls:
            return program

        def slow(*args):
            threads.append(threading.current_thread())
            assert goes_on.wait(60)
            return program(*args)

        return slow

    monkeypatch.setattr(programs, "get", get)
    yield goes_on, threads
    goes_on.set()


def test_the_host_goes_on_while_the_device_works(checkpoint, programs, expected, device):
    goes_on, threads = device
    decoder = ContinuousDecoder(checkpoint, PROBE, SETTINGS, capacity=S, is_sampled=True, programs=programs)
    taken = []
    updates = decoder.run((taken.append(i) or i, prompt) for i, prompt in enumerate(PROMPTS))
    first = next(updates)  # with a call that comes back at its end, this would wait for ever
    assert first.finished == []
    assert not decoder.is_ready()
    assert len(taken) == 3
    goes_on.set()
    got = answers([first, *updates])
    assert {name: generation.token_ids for name, generation in got.items()} == {
        name: tokens for name, (tokens, _) in expected.items()
    }
    assert len(set(threads)) == 1
    assert threads[0] is not threading.current_thread()
    assert not threads[0].is_alive(), "a run leaves no thread behind"
    assert decoder.is_ready()


def test_what_the_device_waits_for_is_the_hosts_time(timed):
    now, decoder, updates = timed
    next(updates)
    while not decoder.is_ready():
        pass
    now[0] += 5.0  # the chunk has ended, and nobody looks
    list(updates)
    assert decoder.stats.host_seconds == decoder.stats.seconds == pytest.approx(5.0)
