"""When what a job writes here is put at its address: not too often, and for a few percent of the time at most."""

import contextlib
import itertools
import time

import pytest
from support.files.stores import Store, StoreError, content, fill

from jax_probe_mtp.files.remote import working_copy
from jax_probe_mtp.files.remote.address import Address
from jax_probe_mtp.files.remote.working_copy import CopyOfAddress, WorkingCopy


@pytest.fixture
def clock(monkeypatch):
    now = [1000.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def copy(store, tmp_path, clock):
    """A job's files, of which each put takes two seconds."""

    def take(path):
        clock[0] += 2

    files = [tmp_path / name for name in ("f.run.json", "f", "f.warm")]
    kept = []
    copy = CopyOfAddress(files, [Address(f"store://b/{file.name}") for file in files], kept.append)
    copy.fetch()
    copy.check_writable()
    store.at_put = staticmethod(take)
    store.puts.clear()
    return copy, kept


def test_puts_take_little_of_the_time(copy, store, tmp_path, clock):
    copy, _ = copy
    began, answers = clock[0], tmp_path / "f"
    for _ in range(4000):
        clock[0] += 1
        with answers.open("ab") as file:
            file.write(b"answer\n")
        copy.chunk_ended()
    share = 2 * len(store.puts) / (clock[0] - began)
    assert 0.02 < share < 0.04
    assert len(store.puts) > 50


def test_small_puts_are_not_made_more_often_than_every_half_minute(copy, store, tmp_path, clock):
    copy, _ = copy
    store.at_put = staticmethod(lambda path: None)
    times = []
    for second in range(300):
        clock[0] += 1
        (tmp_path / "f").write_bytes(b"answer\n" * (second + 1))
        num = len(store.puts)
        copy.chunk_ended()
        times += [second] if len(store.puts) > num else []
    assert 8 <= len(times) <= 10
    assert {later - earlier for earlier, later in itertools.pairwise(times)} == {30}


def test_files_are_put_in_their_order_and_only_what_has_changed(copy, store, tmp_path, clock):
    copy, _ = copy
    for name in ("f.warm", "f", "f.run.json"):
        (tmp_path / name).write_bytes(name.encode())
    copy.put()
    assert store.puts == [(f"/b/{name}", name.encode()) for name in ("f.run.json", "f", "f.warm")]
    copy.put()
    assert len(store.puts) == 3
    (tmp_path / "f").write_bytes(b"g")
    copy.put()
    assert store.puts[3:] == [("/b/f", b"g")]


def test_a_put_that_failed_after_it_wrote_is_not_taken_for_another_run_s(copy, store, tmp_path, clock):
    copy, kept = copy
    (tmp_path / "f").write_bytes(b"answer\n")

    def fail(path):
        store.after_put = staticmethod(lambda path: None)
        raise StoreError("lost")

    store.after_put = staticmethod(fail)
    clock[0] += 100
    copy.chunk_ended()
    assert content("store://b/f") == b"answer\n"
    copy.put()
    assert (content("store://b/f"), kept) == (b"answer\n", [])


def test_many_answers_are_not_written_to_see_whether_they_can_be(store, tmp_path, monkeypatch):
    monkeypatch.setattr(working_copy, "BYTES_CHECKED", 10)
    for text, num_puts in ((b"x" * 10, 1), (b"x" * 11, 0)):
        fill("store://b/f", text)
        store.puts.clear()
        files = [tmp_path / "f.run.json", tmp_path / "f"]
        copy = CopyOfAddress(files, [Address("store://b/f.run.json"), Address("store://b/f")], lambda folder: None)
        copy.fetch()
        copy.check_writable()
        assert len(store.puts) == num_puts
        assert content("store://b/f") == text
    assert Store.puts == []


@pytest.mark.parametrize(
    ("error", "is_put"),
    [(None, 1), (ValueError, 1), (RuntimeError, 1), (BrokenPipeError, 0), (KeyboardInterrupt, 0), (SystemExit, 0)],
)
def test_what_leaves_the_block_says_whether_all_is_put(error, is_put):
    class Counted(WorkingCopy):
        puts = 0

        def put(self):
            self.puts += 1

    copy = Counted()
    with contextlib.suppress(BaseException), copy:
        if error:
            raise error
    assert copy.puts == is_put


def test_the_first_error_is_the_one_that_is_told(caplog):
    class Failing(WorkingCopy):
        def put(self):
            raise OSError("second")

    with pytest.raises(ValueError, match="first"), Failing():
        raise ValueError("first")
    assert caplog.messages == ["second"]
    with pytest.raises(OSError, match="second"), Failing():
        pass
