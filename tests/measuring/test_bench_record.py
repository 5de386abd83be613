"""Bench records that are refused, each by its file and the first thing in it that is wrong."""

import copy

import pytest
from support.measuring.bench_records import make_record, make_run, write

from jax_probe_mtp.measuring import bench_record
from jax_probe_mtp.measuring.report import bench_report, figures


def changed(where, value):
    """A record whose entry at a path such as `runs 1 tau` is another; `del` leaves it out."""
    record = make_record()
    *path, last = (int(key) if key.isdigit() and len(key) == 1 else key for key in where.split())
    holder = record
    for key in path:
        holder = holder[key]
    if value == "del":
        del holder[last]
    else:
        holder[last] = value
    return record


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("{", "is not JSON that can be read"),
        ("[" * 100_000, "is not JSON that can be read"),
        ("[]", "(it is no object)"),
        ("{}", "(format is null, and 2 is what can be read)"),
        (changed("format", 3), "(format is 3, and"),
        (changed("runs", "del"), "(runs is missing)"),
        (changed("runs", []), "(runs is empty)"),
        (changed("runs", {}), "(runs is no list)"),
        (changed("runs 1", "ar"), "(runs[1] is no object)"),
        (changed("runs 1 tau", "del"), "(runs[1].tau is missing)"),
        (changed("runs 1 tau", "1.2"), '(runs[1].tau is "1.2")'),
        (changed("runs 1 tau", True), "(runs[1].tau is true)"),
        (changed("runs 1 tau", 10**400), "(runs[1].tau is 1000"),
        (changed("runs 1 tau_by_category math", []), '(runs[1].tau_by_category["math"] is [])'),
        (changed("runs 1 rows_per_call", 0), '(run "probe:15+4" has 0 rows a call)'),
        (changed("runs 1 ties", 1), '(run "probe:15+4" has 1 ties among 0 differences)'),
        (changed("runs 1 exact_match", 0.66), '(run "probe:15+4": exact_match 0.66 of 3, but 0 differences)'),
        (changed("runs 1 speedup_quartiles", [1.0]), "(runs[1].speedup_quartiles holds 1 values, not 3)"),
        (changed("runs 1 accepted_by_depth", [1, 2.5]), "(runs[1].accepted_by_depth[1] is 2.5)"),
        (changed("environment jax", "del"), "(environment.jax is missing)"),
        (changed("categories x", "del"), "(a question has no category)"),
        (changed("is_complete", "false"), '(is_complete is "false")'),
    ],
)
def test_bad_records_are_refused_by_name(tmp_path, content, says):
    good, bad = write(tmp_path / "good.json", make_record()), write(tmp_path / "bad.json", content)
    with pytest.raises(ValueError, match=r"bad\.json is not") as caught:
        bench_report.write_report([good, bad], tmp_path / "out")
    assert says in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "out").exists()  # the good one alone leaves nothing either


def every_place(value, path=()):
    """The path to each value inside, a container's own included."""
    if path:
        yield path
    for key, inner in value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ():
        yield from every_place(inner, (*path, key))


def test_no_other_shape_gets_past_the_checks(tmp_path, monkeypatch):
    monkeypatch.setattr(figures, "heatmap", lambda *args: "<svg />")  # quick; both get only what was checked
    monkeypatch.setattr(figures, "scatter", lambda *args, **labels: "<svg />")
    run = make_run("probe:14", accepted_by_depth=[1], exact_match=2 / 3, ties=1, differences={"81": "tie"})
    record = make_record(run, skipped={"161": "too long"}, questions=[81, 82, "x"])
    num_refused = 0
    for place in every_place(record):
        for value in ("del", None, "x", -1, 1e300, True, [], {}, [[]]):
            bad = copy.deepcopy(record)
            holder = bad
            for key in place[:-1]:
                holder = holder[key]
            if value == "del":
                del holder[place[-1]]
            else:
                holder[place[-1]] = value
            path = write(tmp_path / "r.json", bad)
            try:
                bench_report.write_report([path], tmp_path / "out")
            except ValueError as error:
                assert str(path) in str(error), (place, value)  # noqa: PT017 - it need not raise
                num_refused += 1
    assert num_refused > 200


def test_names_and_drafts_of_an_earlier_version_are_read_as_todays(tmp_path):
    """One kind of drafts was all that a run had; what came of each question did not say so."""
    names = ["ar", "probe:4@init=last_k,ema=0.5", "probe:dynamic60k2", "ngram:4@n=2", "recycle:30@warm=1"]
    result = {"calls": 4, "committed": 9, "seconds": 1.0, "prefill_seconds": 0.5, "difference": None}
    runs = [make_run(names[0], by_question={"81": result | {"accepted_by_depth": []}})]
    for name in names[1:]:
        kind = name.split(":")[0]
        answer = result | {"accepted_by_depth": [3, 2]}
        runs.append(make_run(name, accepted_by_source={kind: 5}, by_question={"81": answer}))
    record = make_record(*runs)
    record["settings"]["runs"] = names
    record["format"] = 1
    read = bench_record.read_record(write(tmp_path / "r.json", record))
    now = [
        "plain",
        "probe:4@mask_init=last_k,mask_ema=0.5",
        "dynamic:60@mask_init=mean",
        "ngram:4@max_ngram=2",
        "recycle:30@warm=1",
    ]
    assert read["settings"]["runs"] == [run["run"] for run in read["runs"]] == now
    kinds = [run["by_question"]["81"]["accepted_by_kind"] for run in read["runs"]]
    assert kinds == [{}, {"probe": 5}, {"probe": 5}, {"ngram": 5}, {"recycle": 5}]


def test_a_record_is_read_without_importing_what_it_names(tmp_path, monkeypatch):
    (tmp_path / "named_in_a_record.py").write_text("raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    record = make_record(make_run("plain"), make_run("named_in_a_record:Source", 3, 1.1))
    read = bench_record.read_record(write(tmp_path / "r.json", record))
    assert [run["run"] for run in read["runs"]] == ["plain", "named_in_a_record:Source"]
