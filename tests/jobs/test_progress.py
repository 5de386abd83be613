"""How far a run is, on stderr and in the file of --stats-json."""

import json
import re

import pytest
from support.files.job_runs import files

from jax_probe_mtp.generation.answers import Stats
from jax_probe_mtp.jobs import progress, stats_file
from jax_probe_mtp.jobs.progress import Progress, seconds_left


def test_progress_is_told_line_by_line_where_no_terminal_is(generate, whole, leave, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_A_LINE", 0.0)
    leave(whole[:2])
    code, _, err = generate(*files(tmp_path))
    assert code == 0
    lines = err.splitlines()[1:-1]  # between how many there were and how many there are
    rule = re.compile(r"(\d+) of 10 records, \d+\.\d tokens/s(, tau \d\.\d{3})?, about [\d:]+ left")
    done = [int(rule.fullmatch(line)[1]) for line in lines]
    assert done == sorted(done)
    assert min(done) > 2
    assert done[-1] == 10
    assert lines[-1].endswith("about 00:00 left")


@pytest.mark.parametrize(
    ("stats", "num_left", "under_way", "seconds"),
    [
        # 4 records in 20 s: 5 s each, whatever was compiled meanwhile
        (Stats(records=4, new_tokens=40, seconds=20.0, compile_seconds=300.0), 6, [], 30.0),
        # none has ended; two have 30 of 100 tokens: 0.6 records in 12 s, 20 s each, and 9.4 are left
        (Stats(seconds=12.0), 10, [(30, 100), (30, 100)], 188.0),
        # one may get 50 tokens and has 25, one 100 and has 10: 0.6 records again
        (Stats(seconds=12.0), 10, [(25, 50), (10, 100)], 188.0),
        # 2 ended with 20 tokens on average, one has 10 of about as many: 2.5 records in 10 s, 4 s each, and 3.5 are left
        (Stats(records=2, new_tokens=40, seconds=10.0), 4, [(10, 100)], 14.0),
        # the same, but it gets 16 at most: 2.625 records, and 3.375 are left
        (Stats(records=2, new_tokens=40, seconds=10.0), 4, [(10, 16)], 10.0 / 2.625 * 3.375),
        # the last one is longer than the others were, 40 of 100: 2.4 records in 12 s, 5 s each, and 0.6 is left
        (Stats(records=2, new_tokens=40, seconds=12.0), 1, [(40, 100)], 3.0),
        # of 3 that ended one could not run: 2 in 10 s
        (Stats(records=3, errors=1, new_tokens=40, seconds=10.0), 4, [], 20.0),
        (Stats(records=3, errors=1, new_tokens=40, seconds=10.0), 0, [], 0.0),
        (Stats(records=3, errors=3), 0, [], 0.0),
        (Stats(), 5, [], None),
        (Stats(records=3, errors=3), 5, [], None),
        (Stats(seconds=7.0), 5, [(0, 100)], None),
        (Stats(), 5, [(0, 100), (0, 50)], None),
    ],
)
def test_the_time_left_follows_from_what_was_done(stats, num_left, under_way, seconds):
    assert seconds_left(stats, num_left, under_way) == pytest.approx(seconds)


def test_records_that_were_there_before_and_compilation_do_not_count(monkeypatch, caplog):
    monkeypatch.setattr(progress, "SECONDS_A_LINE", 0.0)
    monkeypatch.setattr(progress.time, "monotonic", iter(range(0, 10**6, 1000)).__next__)  # the wall clock says nothing
    stats = Stats(seconds=10.0, compile_seconds=900.0)
    with caplog.at_level("INFO", "jax_probe_mtp"), Progress(100, 90, stats, lambda: [(50, 100)]) as shown:
        shown.show()  # half a record in 10 s, and 9.5 are left
        stats.records, stats.new_tokens, stats.committed, stats.calls, stats.seconds = 1, 100, 99, 66, 30.0
        shown.show()  # 1.5 records in 30 s, and 8.5 are left
    assert caplog.messages == [
        "90 of 100 records, 5.0 tokens/s, about 03:10 left",
        "91 of 100 records, 5.0 tokens/s, tau 1.500, about 02:50 left",
    ]


def test_where_nothing_can_be_said_the_time_left_is_unknown(monkeypatch, caplog):
    monkeypatch.setattr(progress, "SECONDS_A_LINE", 0.0)
    stats = Stats()
    with caplog.at_level("INFO", "jax_probe_mtp"), Progress(100, 90, stats, lambda: [(0, 100)]) as shown:
        shown.show()  # the first calls are under way
        stats.records = stats.errors = 3
        shown.show()
    assert caplog.messages == ["93 of 100 records, 0.0 tokens/s, time left unknown"]


def test_a_terminal_shows_the_same_time(monkeypatch, capsys):
    monkeypatch.setattr("sys.stderr.isatty", lambda: True, raising=False)
    stats = Stats(records=1, new_tokens=100, committed=99, calls=66, seconds=30.0)
    with Progress(100, 90, stats, lambda: [(50, 100)]) as shown:
        shown.show()
    last = capsys.readouterr().err.split("\r")[-1]
    assert re.search(r" 91/100 \[\d\d:\d\d, 5\.0 tokens/s, tau 1\.500, about 02:50 left\]\s*$", last)


def test_it_is_rewritten_as_the_run_goes(generate, tmp_path, monkeypatch):
    seen, honest = [], stats_file.write_json

    def write(path, record):
        honest(path, record)
        seen.append(json.loads(path.read_text()))

    monkeypatch.setattr(stats_file, "write_json", write)
    monkeypatch.setattr(stats_file, "SECONDS", 0.0)
    assert generate(*files(tmp_path), "--stats-json", tmp_path / "s.json")[0] == 0
    assert len(seen) > 3
    assert [record["is_running"] for record in seen] == [True] * (len(seen) - 1) + [False]
    ended = [record["records"] for record in seen]
    assert ended == sorted(ended)
    assert (ended[0] < 10, ended[-1]) == (True, 10)


def test_not_at_every_chunk_and_by_device(tmp_path, monkeypatch):
    moments = iter([100.0, 104.9, 105.0, 105.0, 107.0])  # made, asked twice, written, asked
    monkeypatch.setattr(stats_file.time, "monotonic", lambda: next(moments))
    path = tmp_path / "s.json"
    file = stats_file.StatsFile(path, {"mesh": "data=4"}, num_devices=4)
    stats = Stats()
    stats.new_tokens, stats.seconds = 600, 3.0
    file.write(stats)
    assert not path.exists()
    file.write(stats)
    first = json.loads(path.read_text())
    assert (first["tokens_per_second"], first["tokens_per_second_a_device"]) == (200, 50)
    assert (first["devices"], first["mesh"], first["is_running"]) == (4, "data=4", True)
    stats.new_tokens = 700
    file.write(stats)
    assert json.loads(path.read_text()) == first
    monkeypatch.setattr(stats_file.time, "monotonic", lambda: 107.0)
    file.write(stats, is_last=True)
    assert json.loads(path.read_text())["new_tokens"] == 700
    stats_file.StatsFile(None, {}, num_devices=1).write(stats, is_last=True)
    nowhere = stats_file.StatsFile(path / "below a file", {}, num_devices=1)
    monkeypatch.setattr(stats_file.time, "monotonic", lambda: 200.0)
    nowhere.write(stats)  # no reason to end a run
    with pytest.raises(OSError, match="below a file"):
        nowhere.write(stats, is_last=True)


@pytest.mark.parametrize("flag", ["--limit", "--retry-errors"])
def test_flags_of_a_job_are_not_for_one_prompt(generate, flag):
    code, out, err = generate("--prompt", "w7", flag, *(["3"] if flag == "--limit" else []))
    assert (code, out, err) == (2, "", f"error: {flag} is for --input; leave it out.\n")
