"""`scripts/stress/kill_runs.py`: a run that is killed a few times ends with the answers of one that is left alone."""

import json

from support.killed_runs import killed_runs


def test_runs_that_are_killed_lose_and_repeat_nothing(tiny, tmp_path):
    record = killed_runs("kill_runs.py", tiny, tmp_path)
    assert (record["records"], record["answers"], record["kills"]) == (30, 30, 4)
    assert (record["ids_there_once"], record["equal_to_the_whole_run"]) == (True, True)
    assert record["exit_status_of_the_last_run"] == 0
    assert 1 <= record["kills_that_left_new_answers"] <= 4
    assert record["kills_that_left_a_torn_line"] <= 4
    lines = [(tmp_path / "runs" / name).read_text().splitlines() for name in ("killed.jsonl", "whole.jsonl")]
    assert sorted(lines[0]) == sorted(lines[1])
    assert {json.loads(line)["id"] for line in lines[0]} == {f"record {i}" for i in range(30)}
