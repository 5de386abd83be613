"""How far a run is, on stderr."""

import re

from support.files.job_runs import files

from jax_probe_mtp.jobs import progress


def test_progress_is_told_line_by_line_where_no_terminal_is(generate, whole, leave, tmp_path, monkeypatch):
    monkeypatch.setattr(progress, "SECONDS_A_LINE", 0.0)
    leave(whole[:2])
    code, _, err = generate(*files(tmp_path))
    assert code == 0
    lines = err.splitlines()[1:]
    rule = re.compile(r"(\d+) of 10 records, \d+\.\d tokens/s, tau \d\.\d{3}, about [\d:]+ left")
    done = [int(rule.fullmatch(line)[1]) for line in lines]
    assert done == sorted(done)
    assert min(done) > 2
    assert done[-1] == 10
    assert lines[-1].endswith("about 00:00 left")
