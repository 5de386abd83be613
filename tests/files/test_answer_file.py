"""Answers on disk: runs that end at any moment go on, and parts become one file."""

import errno
import json
import logging
import os
import re
import stat
import subprocess
import sys

import pytest

from jax_probe_mtp.files import answer_file, run_file
from jax_probe_mtp.files.answer_file import AnswerFile
from jax_probe_mtp.files.merge import merge
from jax_probe_mtp.files.prompt_file import PromptFile
from jax_probe_mtp.files.run_file import run_path

RUN = {"model": {"name": "a", "fingerprint": "f00"}, "settings": {"temperature": 0.0, "seed": 7}}
ONE = {"id": "one", "text": "été \u2028 \n", "finish_reason": "stop"}
TWO = {"id": 2, "text": "", "finish_reason": "error"}
THREE = {"id": "three", "text": "海", "finish_reason": "length"}


def ids_of(path):
    text = path.read_text(encoding="utf-8")
    assert text == "" or text.endswith("\n")
    return [json.loads(line)["id"] for line in text.split("\n")[:-1]]


def filled(path, *answers, run=RUN):
    with AnswerFile(path, run) as file:
        file.write(answers)
    return path


def says(*parts):
    """Matches one line that holds the parts in this order."""
    return r"\A[^\n]*" + r"[^\n]*".join(re.escape(str(part)) for part in parts) + r"[^\n]*\Z"


def failing(number, reason):
    def fail(*_):
        raise OSError(number, reason)

    return fail


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
        with pytest.raises(ValueError, match=says(path, "line 3 is no record", "head -n 2")):
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


@pytest.mark.parametrize(
    ("run", "then", "now"),
    [
        (
            {"model": {"name": "b", "fingerprint": "f00"}, "settings": {"temperature": 1.0, "seed": 7}},
            "model.name 'a', settings.temperature 0.0,",
            "'b', 1.0;",
        ),
        ({"model": RUN["model"], "settings": {"temperature": 0.0}}, "settings.seed 7,", "nothing;"),
        (RUN | {"version": 3}, "version nothing,", "3;"),
        (RUN | {"version": None}, "version nothing,", "None;"),
        (RUN | {"settings": {"temperature": 0.0, "seed": None}}, "settings.seed 7,", "None;"),
        (RUN | {"model": {"name": "x" * 200, "fingerprint": "f00"}}, "model.name 'a',", "'" + "x" * 59 + ";"),
        (
            {"settings": {"seed": 8}},
            "model.name 'a', model.fingerprint 'f00', settings.temperature 0.0,",
            "nothing, nothing, nothing;",
        ),
    ],
)
def test_answers_of_another_run_are_not_gone_on_with(tmp_path, run, then, now):
    path = filled(tmp_path / "answers.jsonl", ONE)
    with path.open("ab") as file:
        file.write(b'{"torn')
    before = {each.name: each.read_bytes() for each in tmp_path.iterdir()}
    message = f"{path} was made with {then} but this run has {now} name another --output or give the same command."
    with pytest.raises(ValueError, match=r"\A" + re.escape(message) + r"\Z"):
        AnswerFile(path, run)
    assert {each.name: each.read_bytes() for each in tmp_path.iterdir()} == before
    assert AnswerFile(path, RUN).num_kept == 1  # and the file is free


def test_a_run_is_compared_as_json_says_it(tmp_path):
    path = filled(tmp_path / "answers.jsonl", ONE, run={"stops": ("a", "b"), "lambda": 0.1})
    assert AnswerFile(path, {"lambda": 0.1, "stops": ("a", "b")}).num_kept == 1


def test_answers_whose_run_is_not_known_are_left_alone(tmp_path):
    path = tmp_path / "answers.jsonl"
    path.write_text("someone's notes")
    for content, message in [(None, "answers.jsonl.run.json"), ("", "no JSON object"), ("[]", "no JSON object")]:
        if content is not None:
            run_path(path).write_text(content)
        with pytest.raises(ValueError, match=says(path, message)):
            AnswerFile(path, RUN)
        assert path.read_text() == "someone's notes"


def test_an_empty_file_starts_anew(tmp_path):
    path = tmp_path / "answers.jsonl"
    run_path(path).write_text('{"of": "another run"}')
    with AnswerFile(path, RUN):
        pass
    assert json.loads(run_path(path).read_text()) == RUN
    with AnswerFile(path, RUN | {"settings": {}}) as file:
        assert file.num_kept == 0
    assert json.loads(run_path(path).read_text()) == RUN | {"settings": {}}


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
    assert merge([link], tmp_path / "merged.jsonl", None) == (1, 0)
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


def test_no_room_for_what_the_run_is(tmp_path, monkeypatch):
    monkeypatch.setattr(run_file, "write_json", failing(errno.ENOSPC, "No space left on device"))
    with pytest.raises(OSError, match=says(tmp_path / "answers.jsonl.run.json", "No space left", "free some space")):
        AnswerFile(tmp_path / "answers.jsonl", RUN)


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


def prompts_of(folder, *ids):
    path = folder / "prompts.jsonl"
    path.write_text("".join(json.dumps({"id": name, "prompt": "x"}) + "\n" for name in ids))
    return PromptFile(path)


@pytest.mark.parametrize("taken", ["a.jsonl.run.json", "prompts.jsonl"])
def test_a_merge_does_not_replace_what_is_no_merge(tmp_path, taken):
    parts = [filled(tmp_path / "a.jsonl", ONE), filled(tmp_path / "b.jsonl", TWO)]
    prompts_of(tmp_path, "one")
    before = (tmp_path / taken).read_bytes()
    with pytest.raises(ValueError, match=rf"{taken} .*name another --output"):
        merge(parts, tmp_path / taken, None)
    assert (tmp_path / taken).read_bytes() == before


def test_merges_in_the_order_of_the_prompts(tmp_path):
    parts = [filled(tmp_path / "a.jsonl", ONE, TWO), filled(tmp_path / "b.jsonl"), filled(tmp_path / "c.jsonl", THREE)]
    prompts = prompts_of(tmp_path, 9, "2", "three", "one", "x")  # 2 and "2" are one id
    output = tmp_path / "out.jsonl"
    assert merge(parts, output, prompts) == (3, 2)
    lines = {name: part.read_bytes().splitlines(keepends=True) for name, part in zip("abc", parts, strict=True)}
    assert output.read_bytes() == lines["a"][1] + lines["c"][0] + lines["a"][0]
    assert merge(parts[::-1], output, None) == (3, 0)  # in place of the old one
    assert output.read_bytes() == lines["c"][0] + lines["a"][0] + lines["a"][1]
    assert merge(parts[1:2], output, prompts) == (0, 5)
    assert merge(parts[:1], output, None) == (2, 0)
    with AnswerFile(output, RUN) as file:  # and a run goes on with it
        assert (file.num_kept, file.num_errors) == (2, 1)
        file.write([THREE])
    assert ids_of(output) == ["one", 2, "three"]
    assert not list(tmp_path.glob("*.partial"))


def test_merges_many(tmp_path):
    names = [f"record {i}" for i in range(3000)]
    parts = [
        filled(
            tmp_path / f"part {k}.jsonl",
            *({"id": name, "text": "x" * (i % 7)} for i, name in enumerate(names) if i % 3 == k),
        )
        for k in range(3)
    ]
    order = names[::-1]
    assert merge(parts, tmp_path / "out.jsonl", prompts_of(tmp_path, *order)) == (3000, 0)
    assert ids_of(tmp_path / "out.jsonl") == order


@pytest.fixture
def two(tmp_path):
    return [filled(tmp_path / "a.jsonl", ONE, TWO), filled(tmp_path / "b.jsonl", THREE)]


def refused(message, parts, output, prompts=None):
    """Merging fails with the message, and changes nothing."""
    before = {each: each.read_bytes() for each in output.parent.iterdir() if each.is_file()}
    with pytest.raises((ValueError, OSError), match=message):
        merge(parts, output, prompts)
    assert {each: each.read_bytes() for each in output.parent.iterdir() if each.is_file()} == before


def test_merges_files_of_one_run_only(tmp_path, two):
    other = filled(tmp_path / "c.jsonl", {"id": 5}, run=RUN | {"settings": {"temperature": 0.0, "seed": 8}})
    refused(says(two[0], "settings.seed 7", other, "8;"), [*two, other], tmp_path / "out.jsonl")
    run_path(two[1]).unlink()
    refused(says(two[1], "b.jsonl.run.json"), two, tmp_path / "out.jsonl")


def test_merges_an_id_only_once(tmp_path, two):
    other = filled(tmp_path / "c.jsonl", {"id": 5}, {"id": "2"})
    refused(says("the id 2 is in", two[0], other), [*two, other], tmp_path / "out.jsonl")
    refused(says("the id '2' is in", other, two[0]), [other, *two], tmp_path / "out.jsonl")


def test_merges_no_torn_file(tmp_path, two):
    with two[1].open("ab") as file:
        file.write(b'{"id": 3')
    refused(says(two[1], "has not ended", "go on"), two, tmp_path / "out.jsonl")


def test_merges_no_file_in_use(tmp_path, two):
    (tmp_path / "out.jsonl").touch()
    for path in (two[1], tmp_path / "out.jsonl"):
        with AnswerFile(path, RUN):
            refused(says("another run is writing", path), two, tmp_path / "out.jsonl")
    assert merge(two, tmp_path / "out.jsonl", None) == (3, 0)


def test_merges_no_answer_that_the_prompts_do_not_ask_for(tmp_path, two):
    prompts = prompts_of(tmp_path, "one", "three", "four")
    refused(says(two[0], "line 2", prompts.path, "has no id 2"), two, tmp_path / "out.jsonl", prompts)


def test_merges_into_a_file_of_its_own(tmp_path, two):
    prompts = prompts_of(tmp_path, "one", 2, "three")
    for path in (two[0], two[1], prompts.path):
        refused(says(path, "is read"), two, path, prompts)
    (tmp_path / "link.jsonl").symlink_to("b.jsonl")
    refused(says("b.jsonl", "is read"), two, tmp_path / "link.jsonl")
    refused(says("b.jsonl", "is read"), [two[0], tmp_path / "link.jsonl"], two[1])
    partial = two[1].rename(tmp_path / "c.jsonl.partial")
    refused(says(partial, "is read"), [two[0], partial], tmp_path / "c.jsonl")


def test_merges_files_that_are_there_and_differ(tmp_path, two):
    (tmp_path / "link.jsonl").symlink_to("a.jsonl")
    os.mkfifo(tmp_path / "pipe")
    for parts, message in [
        ([], says("no files")),
        ([*two, tmp_path / "link.jsonl"], says("link.jsonl", "twice")),
        ([*two, tmp_path / "none.jsonl"], "none.jsonl"),
        ([*two, tmp_path / "pipe"], says("pipe", "not a file")),
    ]:
        refused(message, parts, tmp_path / "out.jsonl")


def test_a_full_disk_leaves_the_old_merge(tmp_path, two, monkeypatch):
    merge(two[:1], tmp_path / "out.jsonl", None)
    monkeypatch.setattr(os, "fsync", failing(errno.ENOSPC, "No space left on device"))
    refused(says("out.jsonl", "No space left", "nothing was changed", "free some space"), two, tmp_path / "out.jsonl")


@pytest.mark.parametrize("step", ["replace", "run"])
def test_a_merge_that_is_cut_off_never_pairs_answers_with_another_run(tmp_path, two, monkeypatch, step):
    output = filled(tmp_path / "out.jsonl", {"id": "old"}, run={"settings": {}})
    failed = failing(errno.EIO, "cut off")
    monkeypatch.setattr(*((os, "replace", failed) if step == "replace" else (run_file, "write_json", failed)))
    with pytest.raises(OSError, match="cut off"):
        merge(two, output, None)
    monkeypatch.undo()
    assert ids_of(output) == (["old"] if step == "replace" else ["one", 2, "three"])
    for run in (RUN, {"settings": {}}):
        with pytest.raises(ValueError, match=r"out\.jsonl\.run\.json"):
            AnswerFile(output, run)
    assert merge(two, output, None) == (3, 0)
