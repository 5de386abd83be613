"""Reports of bench records: their text, expected by hand; what is refused, and that nothing is left then."""

import functools
import sys

import matplotlib
import pytest
from support.measuring.bench_records import NAMES, make_record, make_report, make_run, texts, write

from jax_probe_mtp.files import whole_files
from jax_probe_mtp.measuring.report import bench_report

COLUMNS = (
    "| run | tau | calls | tokens a second | speed-up (summed time) | outputs equal to plain decoding "
    "| median speed-up (quartiles) | median ms a call (quartiles) | rows a call | call reduction | seconds |"
)


@pytest.fixture
def made(tmp_path):
    """Makes the report of records and gives its text and the folder."""
    return functools.partial(make_report, tmp_path)


def test_a_whole_report(made):
    text, _ = made(make_record())
    head, *sections = text.split("## ")
    assert head.startswith("# Bench report\n\ntau: tokens a decode call gives.")
    captions = [
        "tau by run and category; the bluer, the more tokens a call",
        "speed-up against plain decoding by run and category (summed wall time); blue is faster, red is slower",
        "tau against rows a call; one colour a method, whose line joins its best run at each number of rows",
        "acceptance by depth: share of the calls in which a draft of that depth was accepted",
    ]
    figures = [f"![{caption}]({name})\n\n{caption}\n" for name, caption in zip(NAMES, captions, strict=True)]
    assert sections == [
        f"""1. tiny_model.gguf, float32, NVIDIA H200, batch size 4, temperature 0.0

**For tiny_model.gguf on NVIDIA H200: the best draft is probe:15+4, with 1.25 tokens a call and 1.50 times plain decoding's \
speed; all outputs (3) are plain decoding's.**

Runs:

{COLUMNS}
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| plain | 1.000 | 100 | 50.0 | 1.00 | 3/3 | 1.00 (1.00 to 1.00) | 10.00 (9.50 to 10.26) | 1 | 0.0% | 2.00 |
| probe:15+4 | 1.250 | 100 | 50.0 | 1.50 | 3/3 | 1.50 (1.40 to 1.60) | 10.00 (9.50 to 10.26) | 60 | 20.0% | 1.33 |

tau by category:

| run | writing | math |
| --- | --- | --- |
| plain | 1.000 | 1.000 |
| probe:15+4 | 1.350 | 1.150 |

Drafts accepted at each depth:

| run | calls | depth 1 | depth 2 |
| --- | --- | --- | --- |
| probe:15+4 | 100 | 25 (25.0%) | 4 (4.0%) |

"""
        + "\n".join(figures)
        + """
3 questions of spec_bench.jsonl (categories: 2, 1 to 2 of each), at most 100 new tokens. Record: r0.json.

jax_probe_mtp 0.2.0 (git commit abc123), jax 0.11.2, jaxlib 0.11.1, numpy 2.4.6, python 3.11.9, backend gpu.

To run it again:

    jax-probe-mtp bench --model tiny_model.gguf --dtype float32 --questions spec_bench.jsonl --per-category 2 \
--runs 'plain;probe:15+4' --max-new-tokens 100 --batch-size 4 --output R.json
    jax-probe-mtp bench report R.json --output FOLDER
"""
    ]


def test_a_reduction_of_next_to_nothing_has_no_sign(made):
    text, _ = made(make_record(make_run("plain"), make_run("probe:14", 30, call_reduction=-1e-6)))
    assert "| 30 | 0.0% | 2.00 |" in text


def test_the_settings_that_matter_are_named(made):
    record = make_record(questions=[81, "x"])
    record["environment"] |= {"git_commit": None, "jax_probe_mtp": None}  # run from a folder that is not installed
    record["settings"] |= {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "seed": 7, "use_chat_template": False}
    text, _ = made(record)
    assert "batch size 4, temperature 0.8\n" in text
    assert "(categories: 2, 1 of each), at most 100 new tokens, top-k 40, top-p 0.9, seed 7, no chat template." in text
    assert "\njax_probe_mtp of no known version (git commit not known), jax 0.11.2" in text


def test_a_record_that_is_not_complete_says_so(made):
    assert "not complete" not in made(make_record())[0]
    assert "\n\n**This record is not complete: " in made(make_record(is_complete=False))[0]


def test_skipped_questions_and_differences_are_listed(made):
    differences = {"81": "tie at new token 5: plain 3", "x": "diverged at new token 0"}
    runs = [
        make_run("plain"),
        make_run("probe:14", exact_match=1 / 3, ties=1, differences=differences),
        make_run("probe:29", exact_match=1 / 3, ties=2, differences=differences),
        make_run("probe:4", exact_match=2 / 3, ties=1, differences={"81": "tie"}),
        make_run("ngram", exact_match=2 / 3, differences={"x": "diverged"}),
    ]
    text, _ = made(make_record(*runs, skipped={"161": "prompt of 900 tokens\nis too long"}))
    equal = [line.split(" | ")[5] for line in text.split("\n") if line.startswith("| ") and line.count("|") == 12][2:]
    assert equal == ["3/3", "1/3 (1 tie, 1 diverged)", "1/3 (2 ties)", "2/3 (1 tie)", "2/3 (1 diverged)"]
    assert "Questions skipped (1):\n\n- 161: prompt of 900 tokens is too long\n\n" in text
    assert (
        "First differences from plain decoding (6):\n\n- probe:14, question 81: tie at new token 5: plain 3\n" in text
    )
    assert "- probe:14, question x: diverged at new token 0\n- probe:29, question 81" in text


def test_sources_are_told_apart_where_there_are_several(made):
    sources = {"probe": 20, "ngram": 9}
    run = make_run("mix:14", accepted_by_depth=[20, 9], accepted_by_source=sources)
    text, _ = made(make_record(make_run("plain"), run))
    assert "| run | calls | depth 1 | depth 2 | by source |" in text
    assert "| mix:14 | 100 | 20 (20.0%) | 9 (9.0%) | probe 20, ngram 9 |" in text


def test_what_was_not_measured_is_not_a_number(made):
    run = make_run("probe:14", 30) | {
        **dict.fromkeys(("tau", "call_reduction", "exact_match", "seconds", "tokens_per_second", "speedup_vs_ar")),
        "calls": 0,
        "accepted_by_depth": [0],
        "tau_by_category": {},
        "speedup_vs_ar_by_category": {"math": float("nan")},  # Python writes NaN, which others do not read
        "speedup_quartiles": [None] * 3,
        "ms_per_call_quartiles": [None] * 3,
    }
    text, folder = made(make_record(make_run("plain"), run))
    assert "| probe:14 | n/a | 0 | n/a | n/a | 3/3 | n/a | n/a | 30 | n/a | n/a |" in text
    assert "| probe:14 | 0 | 0 |" in text
    assert "no draft was measured beside plain decoding." in text
    assert "| probe:14 | n/a | n/a |" in text
    assert texts(folder / "record1_speedup.svg").count("n/a") == 3
    assert "probe:14" not in texts(folder / "record1_rows.svg")
    assert not (folder / "record1_depth.svg").exists()  # no calls, no share of them
    made(make_record(questions=[]))  # nothing measured yet


@pytest.mark.parametrize(
    ("ratio", "text"),
    [
        (1.0, "1.00"),
        (0.996, "0.996"),
        (1.004, "1.004"),
        (0.99951, "0.9995"),
        (0.994, "0.99"),
        (0.5, "0.50"),
        (12.345, "12.35"),
    ],
)
def test_a_speedup_near_1_shows_on_which_side_it_is(made, ratio, text):
    row = made(make_record(make_run("plain"), make_run("probe:14", speedup=ratio)))[0].split("| probe:14 |")[1]
    assert row.split(" | ")[3] == text


def test_the_same_records_give_the_same_bytes(tmp_path, monkeypatch):
    monkeypatch.delitem(sys.modules, "matplotlib.pyplot", raising=False)  # of a test before
    path = write(tmp_path / "r.json", make_record())
    first = bench_report.write_report([path], tmp_path / "a")
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 30.0)  # a user's own style
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "black")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    second = bench_report.write_report([path], tmp_path / "b")
    assert [file.name for file in first] == [file.name for file in second] == ["report.html", "report.md", *NAMES]
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]
    assert matplotlib.rcParams["font.size"] == 30.0
    assert "matplotlib.pyplot" not in sys.modules


def test_each_record_has_its_section_and_its_figures(tmp_path):
    paths = [write(tmp_path / folder / "r.json", make_record()) for folder in ("a", "b")]  # one stem
    other = make_record(make_run("plain"), make_run("ngram:7", 8, 1.5))
    other["model"]["name"] = "other"
    write(paths[1], other)
    files = bench_report.write_report(paths, tmp_path / "new" / "out")
    names = [file.name for file in files]
    assert names == ["report.html", "report.md", *NAMES, "record2_tau.svg", "record2_speedup.svg", "record2_rows.svg"]
    assert sorted(file.name for file in (tmp_path / "new" / "out").iterdir()) == sorted(names)
    _, first, second = files[1].read_text(encoding="utf-8").split("\n## ")
    assert first.startswith("1. tiny_model.gguf")
    assert second.startswith("2. other")
    assert [first.count(f"({name})") for name in names[2:]] == [1, 1, 1, 1, 0, 0, 0]
    assert [second.count(f"({name})") for name in names[2:]] == [0, 0, 0, 0, 1, 1, 1]
    assert "ngram:7" in texts(files[6])
    assert "ngram:7" not in texts(files[2])


def test_odd_names_break_neither_the_table_nor_the_figures(made):
    record = make_record(make_run("plain"), make_run("a|b$x$<&\x00\ud800", 2, 1.1))
    record["model"]["name"] = "my|mo\\|del\n*"
    text, folder = made(record)
    assert "## 1. my\\|mo\\\\\\|del \\*, float32" in text
    assert "\n| a\\|b$x$\\<\\&\ufffd\ufffd | 1.100 | 100 |" in text
    for name in NAMES[:3]:
        assert "a|b$x$<&\ufffd\ufffd" in texts(folder / name)


def test_files_that_cannot_be_read(tmp_path):
    good = write(tmp_path / "good.json", make_record())
    (tmp_path / "latin.json").write_bytes(b'{"model": "\xe9"}')
    with pytest.raises(ValueError, match=r"latin\.json is not JSON that can be read"):
        bench_report.write_report([good, tmp_path / "latin.json"], tmp_path / "out")
    with pytest.raises(FileNotFoundError):
        bench_report.write_report([good, tmp_path / "none.json"], tmp_path / "out")
    with pytest.raises(ValueError, match="at least one bench record"):
        bench_report.write_report([], tmp_path / "out")
    with pytest.raises(ValueError, match=r"good\.json is a file, and a report is several files; name a folder"):
        bench_report.write_report([good], good)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["good.json", "latin.json"]


def test_a_record_is_not_overwritten(tmp_path):
    path = write(tmp_path / "report.md", make_record())
    before = path.read_bytes()
    with pytest.raises(ValueError, match=r"report\.md is a record that the report would overwrite"):
        bench_report.write_report([path], tmp_path)
    assert path.read_bytes() == before


def test_a_failure_while_writing_leaves_the_old_report_whole(tmp_path, monkeypatch):
    path = write(tmp_path / "r.json", make_record())
    old = {file: file.read_bytes() for file in bench_report.write_report([path], tmp_path / "out")}
    write(path, make_record(make_run("plain")))
    monkeypatch.setattr(whole_files.secrets, "token_hex", lambda size: "x")
    (tmp_path / "out" / "record1_rows.svg.x.partial").mkdir()  # in the way of the last file
    with pytest.raises(OSError, match=r"record1_rows"):
        bench_report.write_report([path], tmp_path / "out")
    assert {file: file.read_bytes() for file in old} == old


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "r.json", make_record())
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"^figures need matplotlib: pip install 'jax-probe-mtp\[report\]'\.$"):
        bench_report.write_report([path], tmp_path / "out")
    assert not (tmp_path / "out").exists()
