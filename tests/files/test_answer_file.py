"""Answers on disk: runs that end at any moment go on."""

import errno
import json
import logging
import os
import re
import stat
import subprocess
import sys

import pytest
from support.files.answer_files import ONE, RUN, THREE, TWO, counts, failing, filled, ids_of, says

from jax_probe_mtp.files import answer_file
from jax_probe_mtp.files.answer_file import AnswerFile
from jax_probe_mtp.files.merge import merge
from jax_probe_mtp.files.run_file import run_path


def test_goes_on_where_an_earlier_run_was(tmp_path):
    path = tmp_path / "answers.jsonl"
    with AnswerFile(path, RUN) as file:
        assert (len(file.done), file.num_kept, file.num_errors, file.num_written) == (0, 0, 0, 0)
        file.write([ONE, TWO])
        assert (file.num_kept, file.num_errors, file.num_written) == (0, 1, 2)
    assert json.loads((tmp_path / "answers.jsonl.run.json").read_text()) == RUN
    with AnswerFile(path, RUN) as file:
        assert (len(file.done), file.num_kept, file.num_errors, file.num_written) == (2, 2, 1, 2)
        assert ["one" in file.done, 2 in file.done, "2" in file.done, "three" in file.done] == [True, True, True, False]
        file.write([])
        file.write([THREE])
        assert (file.num_kept, file.num_errors, file.num_written) == (2, 1, 3)
        assert "three" not in file.done
    assert path.read_text(encoding="utf-8") == (
        '{"id": "one", "text": "été \u2028 \\n", "finish_reason": "stop"}\n'
        '{"id": 2, "text": "", "finish_reason": "error"}\n'
        '{"id": "three", "text": "海", "finish_reason": "length"}\n'
    )
    assert sorted(each.name for each in tmp_path.iterdir()) == ["answers.jsonl", "answers.jsonl.run.json"]


def test_records_are_on_the_disk_when_write_returns(tmp_path, monkeypatch):
    synced = []

    def fsync(descriptor):
        synced.append(
            (os.fstat(descriptor).st_ino, os.fstat(descriptor).st_size, stat.S_ISDIR(os.fstat(descriptor).st_mode))
        )

    monkeypatch.setattr(os, "fsync", fsync)
    path = tmp_path / "answers.jsonl"
    with AnswerFile(path, RUN) as file:
        run = run_path(path).stat()
        assert synced[0][:2] == (run.st_ino, run.st_size)  # what made them is there before the first answer
        assert synced[1][0] == tmp_path.stat().st_ino
        assert [is_folder for *_, is_folder in synced] == [False, True]
        file.write([ONE, TWO])
        assert synced[2:] == [(path.stat().st_ino, path.stat().st_size, False)]
        assert ids_of(path) == ["one", 2]


def test_an_answer_that_is_no_json_leaves_the_file_as_it_was(tmp_path):
    with AnswerFile(tmp_path / "answers.jsonl", RUN) as file:
        file.write([ONE])
        with pytest.raises(ValueError, match="not JSON compliant"):
            file.write([TWO, {"id": 3, "gap": float("nan")}])
        file.write([THREE])
        assert (file.num_written, file.num_errors) == (2, 0)
    assert ids_of(tmp_path / "answers.jsonl") == ["one", "three"]


def test_a_file_cut_anywhere_keeps_its_whole_lines(tmp_path, caplog):
    path = filled(tmp_path / "answers.jsonl", ONE, TWO, THREE)
    whole = path.read_bytes()
    first, second = 1 + whole.index(b"\n"), 1 + whole.index(b"\n", whole.index(b"\n") + 1)
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        kept = (size >= first) + (size >= second) + (size == len(whole))
        caplog.clear()
        with caplog.at_level(logging.WARNING, "jax_probe_mtp"), AnswerFile(path, RUN) as file:
            assert (file.num_kept, file.num_written, len(file.done)) == (kept, kept, kept)
            assert file.num_errors == (kept >= 2)
            assert path.read_bytes() == whole[: [0, first, second, len(whole)][kept]]
            dropped = size - [0, first, second, len(whole)][kept]
            messages = [record.getMessage() for record in caplog.records]
            assert len(messages) == (dropped > 0)
            assert all(re.match(says(path, f"dropped {dropped} bytes", f"record {kept}"), each) for each in messages)
            file.write([{"id": "next"}])
        assert ids_of(path) == [*["one", 2, "three"][:kept], "next"]


@pytest.mark.parametrize(
    "tail",
    [
        b"\0" * 5000,
        b"\0" * 10 + b"\n",
        b"\0\n\0\0\n\n\0",
        b'{"id": "n", "te\0\0\0\0\n',
        b'{"id": "n", "text": "cut"}',  # it parses, by luck
        b'{"id": "n", "te\n',
        b'{"id": "n"}x\n',
        b'{"id": null}\n',
        b'{"text": "n"}\n',
        b'["id"]\n',
        b"7\n",
        b'"id"\n',
        b"\n",
        b"\xff\n",
        '{"id": "n"}\n'.encode("utf-16-be"),
        b"[" * 100_000 + b"\n",
        b'{"id": "\\ud800"}\n',
    ],
    ids=lambda value: str(value)[:30],
)
def test_a_torn_tail_is_dropped(tmp_path, tail):
    path = filled(tmp_path / "answers.jsonl", ONE, TWO)
    whole = path.read_bytes()
    path.write_bytes(whole + tail)
    with AnswerFile(path, RUN) as file:
        assert (file.num_kept, path.read_bytes()) == (2, whole)
    if tail.strip(b"\0\n") and tail.endswith(b"\n"):  # not at the end it is no torn write
        path.write_bytes(whole + tail + b'{"id": "later"}\n')
        with pytest.raises(ValueError, match=says(path, "line 3 is no record", "mend that line or delete it")):
            AnswerFile(path, RUN)
        assert path.read_bytes() == whole + tail + b'{"id": "later"}\n'


def test_nuls_in_the_middle_are_no_torn_tail(tmp_path):
    path = filled(tmp_path / "answers.jsonl", ONE)
    path.write_bytes(path.read_bytes() + b"\0\n\0\0\n" + b'{"id": "later"}\n')
    with pytest.raises(ValueError, match=says(path, "line 2 is no record")):
        AnswerFile(path, RUN)


def test_an_id_that_is_there_twice_is_refused(tmp_path):
    path = filled(tmp_path / "answers.jsonl", ONE, TWO, THREE, {"id": "2"})
    with pytest.raises(ValueError, match=says(path, "line 4 has the id '2' of", "line 2")):
        AnswerFile(path, RUN)


def test_one_run_at_a_time(tmp_path):
    path = filled(tmp_path / "answers.jsonl", ONE)
    first = AnswerFile(path, RUN)
    with path.open("ab") as file:
        file.write(b'{"id": "half')  # the first is writing it
    with pytest.raises(ValueError, match=says("another run is writing", path)):
        AnswerFile(path, RUN)
    assert path.read_bytes().endswith(b"half")
    first.close()
    assert AnswerFile(path, RUN).num_kept == 1


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_goes_on_where_files_cannot_be_locked(tmp_path, monkeypatch, number):
    monkeypatch.setattr(answer_file.fcntl, "flock", failing(number, os.strerror(number)))
    assert ids_of(filled(tmp_path / "answers.jsonl", ONE)) == ["one"]


def test_another_failure_of_the_lock_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(answer_file.fcntl, "flock", failing(errno.EIO, "disk gone"))
    with pytest.raises(OSError, match="disk gone"):
        AnswerFile(tmp_path / "answers.jsonl", RUN)


def test_works_without_locks_at_all(tmp_path):
    code = f"""
import sys
sys.modules["fcntl"] = None  # as on Windows
from pathlib import Path
from jax_probe_mtp.files.answer_file import AnswerFile
with AnswerFile(Path({str(tmp_path / "answers.jsonl")!r}), {RUN!r}) as file:
    file.write([{ONE!r}])
"""
    subprocess.run([sys.executable, "-c", code], check=True)
    assert ids_of(tmp_path / "answers.jsonl") == ["one"]


def test_a_link_keeps_pointing_where_it_does(tmp_path):
    (tmp_path / "far").mkdir()
    link, real = tmp_path / "link.jsonl", tmp_path / "far" / "real.jsonl"
    link.symlink_to(real)
    filled(link, ONE)
    assert run_path(link) == real.with_name("real.jsonl.run.json")
    assert AnswerFile(real, RUN).num_kept == 1  # by either name
    assert counts(merge([link], tmp_path / "merged.jsonl", None)) == (1, 0)
    target = tmp_path / "link2.jsonl"
    target.symlink_to(tmp_path / "far" / "merged.jsonl")
    merge([real], target, None)
    assert (link.is_symlink(), target.is_symlink()) == (True, True)
    assert ids_of(real) == ids_of(tmp_path / "far" / "merged.jsonl") == ["one"]


FULL = """
import json, resource, sys
from pathlib import Path
from jax_probe_mtp.files.answer_file import AnswerFile
for path, limit, size in json.loads(sys.argv[1]):
    with AnswerFile(Path(path), {"settings": {}}) as file:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        try:
            for i in range(0, 100, size):
                file.write([{"id": i + j, "text": "x" * 83, "finish_reason": "error"} for j in range(size)])
        except OSError as error:
            result = [file.num_written, file.num_errors, str(error)]
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    print(json.dumps(result))
"""


def test_a_full_disk_leaves_whole_records(tmp_path):
    # A line of a one-digit id is 131 bytes with its newline.
    cases = [(1024, 1, 7), (1024, 4, 7), (1024, 50, 7), (1048, 4, 8), (1047, 4, 7), (100, 3, 0)]
    files = [(str(tmp_path / f"{i}.jsonl"), limit, size) for i, (limit, size, _) in enumerate(cases)]
    command = [sys.executable, "-c", FULL, json.dumps(files)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    for i, (line, (_, _, whole)) in enumerate(zip(done.stdout.splitlines(), cases, strict=True)):
        path = tmp_path / f"{i}.jsonl"
        num_written, num_errors, message = json.loads(line)
        assert (num_written, num_errors) == (whole, whole)
        parts = [path, "File too large", f"{whole} records are whole", "free some space", "same command"]
        assert re.match(says(*parts), message)
        assert ids_of(path) == list(range(whole))
        with AnswerFile(path, {"settings": {}}) as file:
            assert (file.num_kept, 0 in file.done, whole in file.done) == (whole, whole > 0, False)


def test_what_may_not_be_on_the_disk_is_taken_back(tmp_path, monkeypatch):
    path = tmp_path / "answers.jsonl"
    with AnswerFile(path, RUN) as file:
        file.write([ONE])
        with monkeypatch.context() as patch:
            patch.setattr(os, "fsync", failing(errno.EDQUOT, "over the quota"))
            with pytest.raises(OSError, match=says(path, "over the quota", "1 records are whole")):
                file.write([TWO, THREE])
        assert (ids_of(path), file.num_written, file.num_errors) == (["one"], 1, 0)
        file.write([THREE])
    assert ids_of(path) == ["one", "three"]


def test_what_an_interrupt_left_is_written_over(tmp_path):
    path = tmp_path / "answers.jsonl"
    with AnswerFile(path, RUN) as file:
        file.write([ONE])
        with path.open("ab") as other:
            other.write(b'{"id": "hal')  # Ctrl-C came between two parts of a write
        file.write([TWO])
    assert ids_of(path) == ["one", 2]


# The child writes records in batches of 1 to 3 as fast as it can, and goes on where the file is; its parent kills it.
KILLED = """
import os, random, signal, sys, time
from pathlib import Path
from jax_probe_mtp.files.answer_file import AnswerFile
path, delays = Path(sys.argv[1]), random.Random(3)
class InBits:
    def __init__(self, file):
        self.file = file
    def __getattr__(self, name):
        return getattr(self.file, name)
    def write(self, data):
        return self.file.write(data[:100])
for _ in range(20):
    ready, wake = os.pipe()
    child = os.fork()
    if not child:
        sizes = random.Random(5)
        with AnswerFile(path, {"settings": {}}) as file:
            file._file = InBits(file._file)  # so that many moments are within a write
            os.write(wake, b"x")
            i = 0
            while True:
                batch = []
                while len(batch) < sizes.randint(1, 3):
                    if f"record {i}" not in file.done:
                        batch.append({"id": f"record {i}", "text": "x" * sizes.randint(0, 20_000)})
                    i += 1
                file.write(batch)
    os.close(wake)
    os.read(ready, 1)
    time.sleep(delays.uniform(0, 0.05))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
with AnswerFile(path, {"settings": {}}) as file:
    print(file.num_kept)
"""


def test_a_run_killed_at_any_moment_goes_on(tmp_path):
    path = tmp_path / "answers.jsonl"
    done = subprocess.run([sys.executable, "-c", KILLED, str(path)], capture_output=True, text=True, check=True)
    ids = ids_of(path)
    assert len(ids) == int(done.stdout) > 20
    assert ids == [f"record {i}" for i in range(len(ids))]  # each once, none missing
