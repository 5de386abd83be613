"""Reports of bench records: text and figures, expected by hand; what is refused, and that nothing is left then."""

import copy
import itertools
import json
import sys
import xml.etree.ElementTree as ElementTree

import matplotlib
import pytest

from jax_probe_mtp.measuring import bench_report, figures

COLUMNS = (
    "| run | rows a call | tau | call reduction | accepted by depth | outputs equal to plain decoding | seconds "
    "| speed-up (summed time) | median speed-up (quartiles) | median ms a call (quartiles) |"
)
NAMES = ["record1_tau.svg", "record1_speedup.svg", "record1_rows.svg", "record1_depth.svg"]


def make_run(name, rows=1, tau=1.0, speedup=1.0, **changed):
    """A run over the questions of `make_record`; by category tau and speed-up are 0.1 more, then 0.1 less."""
    offset = 0.1 * (name != "ar")
    return {
        "run": name,
        "rows_per_call": rows,
        "tau": tau,
        "tau_by_category": {"writing": tau + offset, "math": tau - offset},
        "call_reduction": 1 - 1 / tau,
        "calls": 100,
        "committed": round(100 * tau),
        "accepted_by_depth": [],
        "accepted_by_source": {},
        "exact_match": 1.0,
        "ties": 0,
        "differences": {},
        "seconds": 2 / speedup,
        "prefill_seconds": 0.1,
        "tokens_per_second": 50.0,
        "seconds_by_category": {"writing": 1.0, "math": 1.0},
        "speedup_vs_ar": speedup,
        "speedup_vs_ar_by_category": {"writing": speedup + offset, "math": speedup - offset},
        "speedup_quartiles": [speedup - offset, speedup, speedup + offset],
        "ms_per_call_quartiles": [9.5, 10.0, 10.256],
        "by_question": {},
        **changed,
    }


def make_record(*runs, **changed):
    drafting = make_run("probe:15+4", 60, 1.25, 1.5, accepted_by_depth=[25, 4], accepted_by_source={"probe": 29})
    return {
        "format": 1,
        "environment": {
            "jax_probe_mtp": "0.2.0",
            "git_commit": "abc123",
            "jax": "0.11.2",
            "jaxlib": "0.11.1",
            "numpy": "2.4.6",
            "python": "3.11.9",
            "backend": "gpu",
            "device": "NVIDIA H200",
            "dtype": "float32",
        },
        "model": {"name": "tiny_model.gguf", "fingerprint": "f"},
        "settings": {
            "questions": "spec_bench.jsonl",
            "questions_sha256": "0",
            "per_category": 2,
            "max_new_tokens": 100,
            "runs": ["ar", "probe:15+4"],
            "temperature": 0.0,
            "top_k": 0,
            "top_p": 1.0,
            "seed": 0,
            "batch_size": 4,
            "capacity": None,
            "use_chat_template": True,
        },
        "is_complete": True,
        "questions": [81, 82, "x"],
        "categories": {"81": "writing", "x": "math", "82": "writing"},
        "skipped": {},
        "runs": list(runs or (make_run("ar"), drafting)),
        **changed,
    }


def write(path, record):
    path.parent.mkdir(exist_ok=True)
    path.write_text(record if isinstance(record, str) else json.dumps(record), encoding="utf-8")
    return path


@pytest.fixture
def made(tmp_path):
    """Makes the report of records and gives its text and the folder."""

    def make(*records):
        paths = [write(tmp_path / f"r{i}.json", record) for i, record in enumerate(records)]
        bench_report.write_report(paths, tmp_path / "out")
        return (tmp_path / "out" / "report.md").read_text(encoding="utf-8"), tmp_path / "out"

    return make


def texts(path):
    """What a figure says, in the order it is drawn; fails when it is not XML."""
    return [node.text for node in ElementTree.parse(path).iter("{http://www.w3.org/2000/svg}text")]


def fills(path):
    """The colours of the cells, row by row, as (red, green, blue)."""
    group = next(node for node in ElementTree.parse(path).iter() if node.get("id") == "PathCollection_1")
    styles = [node.get("style", "") for node in group.iter()]
    return [tuple(bytes.fromhex(style.split("fill: #")[1][:6])) for style in styles if "fill: #" in style]


def test_a_whole_report(made):
    text, _ = made(make_record())
    head, *sections = text.split("## ")
    assert head.startswith("# Bench report\n\ntau: tokens a decode call gives.")
    captions = [
        "tau by run and category; the darker, the more tokens a call",
        "speed-up against plain decoding by run and category (summed wall time); blue is faster, red is slower",
        "tau against rows a call; one colour a method, whose line joins its best run at each number of rows",
        "acceptance by depth: share of the calls in which a draft of that depth was accepted",
    ]
    figures = [f"![{caption}]({name})\n\n{caption}\n" for name, caption in zip(NAMES, captions, strict=True)]
    assert sections == [
        f"""1. tiny_model.gguf, float32, NVIDIA H200, batch size 4, temperature 0.0

3 questions of spec_bench.jsonl (categories: 2, 1 to 2 of each), at most 100 new tokens. Record: r0.json.

jax_probe_mtp 0.2.0 (git commit abc123), jax 0.11.2, jaxlib 0.11.1, numpy 2.4.6, python 3.11.9, backend gpu.

{COLUMNS}
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |
| ar | 1 | 1.000 | 0.0% | none | 3/3 | 2.00 | 1.00 | 1.00 (1.00 to 1.00) | 10.00 (9.50 to 10.26) |
| probe:15+4 | 60 | 1.250 | 20.0% | 25, 4 | 3/3 | 1.33 | 1.50 | 1.50 (1.40 to 1.60) | 10.00 (9.50 to 10.26) |

tau by category:

| run | writing | math |
| --- | --- | --- |
| ar | 1.000 | 1.000 |
| probe:15+4 | 1.350 | 1.150 |

"""
        + "\n".join(figures)
    ]


def test_a_reduction_of_next_to_nothing_has_no_sign(made):
    text, _ = made(make_record(make_run("ar"), make_run("probe:14", 30, call_reduction=-1e-6)))
    assert "| probe:14 | 30 | 1.000 | 0.0% |" in text


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
        make_run("ar"),
        make_run("probe:14", exact_match=1 / 3, ties=1, differences=differences),
        make_run("probe:29", exact_match=1 / 3, ties=2, differences=differences),
        make_run("probe:4", exact_match=2 / 3, ties=1, differences={"81": "tie"}),
        make_run("ngram", exact_match=2 / 3, differences={"x": "diverged"}),
    ]
    text, _ = made(make_record(*runs, skipped={"161": "prompt of 900 tokens\nis too long"}))
    equal = [line.split(" | ")[5] for line in text.split("\n") if line.startswith("| ") and line.count("|") == 11][2:]
    assert equal == ["3/3", "1/3 (1 tie, 1 diverged)", "1/3 (2 ties)", "2/3 (1 tie)", "2/3 (1 diverged)"]
    assert "Questions skipped (1):\n\n- 161: prompt of 900 tokens is too long\n\n" in text
    assert (
        "First differences from plain decoding (6):\n\n- probe:14, question 81: tie at new token 5: plain 3\n" in text
    )
    assert "- probe:14, question x: diverged at new token 0\n- probe:29, question 81" in text


def test_sources_are_told_apart_where_there_are_several(made):
    sources = {"probe": 20, "ngram": 9}
    run = make_run("mix:14", accepted_by_depth=[20, 9], accepted_by_source=sources)
    assert "| 20, 9 (probe 20, ngram 9) |" in made(make_record(make_run("ar"), run))[0]


def test_what_was_not_measured_is_not_a_number(made):
    run = make_run("probe:14", 30) | {
        **dict.fromkeys(("tau", "call_reduction", "exact_match", "seconds", "speedup_vs_ar")),
        "calls": 0,
        "accepted_by_depth": [0],
        "tau_by_category": {},
        "speedup_vs_ar_by_category": {"math": float("nan")},  # Python writes NaN, which others do not read
        "speedup_quartiles": [None] * 3,
        "ms_per_call_quartiles": [None] * 3,
    }
    text, folder = made(make_record(make_run("ar"), run))
    row = "| probe:14 | 30 | n/a | n/a | 0 | 3/3 | n/a | n/a | n/a | n/a |"
    assert row in text
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
    row = made(make_record(make_run("ar"), make_run("probe:14", speedup=ratio)))[0].split("| probe:14 |")[1]
    assert row.split(" | ")[6] == text


def test_cells_of_speedups_are_red_below_1_and_blue_above(made):
    runs = [make_run("ar"), make_run("probe:14", speedup=0.996), make_run("probe:29", speedup=40.0)]
    runs[1]["speedup_vs_ar_by_category"] = {"writing": 1.004, "math": 0.9}
    _, folder = made(make_record(*runs))
    ar, slow, fast = (fills(folder / "record1_speedup.svg")[i : i + 3] for i in (0, 3, 6))
    assert ar == [(255, 255, 255)] * 3
    sides = [red - blue for red, _, blue in slow]
    assert sides[0] > 15  # seen as red although another cell is 40 times as fast
    assert sides[1] < -15
    assert sides[2] > sides[0]
    assert all(blue - red > 100 for red, _, blue in fast)
    numbers = [text for text in texts(folder / "record1_speedup.svg") if text[0].isdigit()]
    assert " ".join(numbers) == "1.00 1.00 1.00 0.996 1.004 0.90 40.00 40.10 39.90"


def test_a_speedup_of_next_to_nothing_is_pale_though_no_other_is_greater(made):
    run = make_run("probe:14") | {"speedup_vs_ar": 1.01, "speedup_vs_ar_by_category": {"writing": 1.01, "math": 1.25}}
    _, folder = made(make_record(make_run("ar"), run))
    pale, same, full = fills(folder / "record1_speedup.svg")[3:]
    assert pale == same
    assert min(pale) > 210
    assert full == (67, 147, 195)
    run["speedup_vs_ar_by_category"]["math"] = 1.01
    assert fills(made(make_record(make_run("ar"), run))[1] / "record1_speedup.svg")[3:] == [pale] * 3


def test_figures_say_what_is_in_the_record(made):
    second = make_run("ngram:8@k=3", 8, 1.5, accepted_by_depth=[50, 0, 1])
    _, folder = made(make_record(*make_record()["runs"], second))
    runs, columns = ["ar", "probe:15+4", "ngram:8@k=3"], ["all", "writing", "math"]
    values = "1.00 1.00 1.00 1.25 1.35 1.15 1.50 1.60 1.40"
    assert " ".join(texts(folder / NAMES[0])) == " ".join([*columns, *runs, values])
    assert set(texts(folder / NAMES[2])) >= {"rows a call", "tau", "1", "2", "4", "8", "16", "32", *runs}
    shares = ["25.0%", "4.0%", "50.0%", "0.0%", "1.0%"]
    assert sorted(texts(folder / NAMES[3])) == sorted(["depth 1", "depth 2", "depth 3", *runs[1:], *shares])
    tints = [sum(fill) for fill in fills(folder / NAMES[0])]
    assert tints[:3] == [765] * 3  # plain decoding is white
    assert sorted(range(9), key=lambda i: -tints[i]) == [0, 1, 2, 5, 3, 4, 8, 6, 7]  # the higher tau, the darker


def test_a_cell_stands_in_its_row_and_column(made):
    _, folder = made(make_record())
    nodes = ElementTree.parse(folder / NAMES[0]).iter("{http://www.w3.org/2000/svg}text")
    at = {node.text: (float(node.get("x", 0)), float(node.get("y", 0))) for node in nodes}
    assert at["1.25"][0] < at["1.35"][0] < at["1.15"][0]  # all, writing, math
    assert at["1.25"][1] == at["1.35"][1] == at["1.15"][1] == pytest.approx(at["probe:15+4"][1], abs=2)
    assert at["ar"][1] < at["probe:15+4"][1] - 15
    *_, highest, lowest = fills(folder / NAMES[0])
    assert highest == (67, 147, 195)
    assert lowest == (174, 209, 229)  # 0.15 of 0.35: 3/7 of the way from white


def test_points_share_a_colour_by_method_and_the_line_joins_the_best(made):
    runs = [make_run("probe:14", 32, 1.2), make_run("probe:4@k=1", 8, 1.1), make_run("probe:15+4", 32, 1.3)]
    _, folder = made(make_record(make_run("ar"), *runs, make_run("probe@k=1", 2, 1.05)))
    root = ElementTree.parse(folder / NAMES[2])
    labels = [node for node in root.iter("{http://www.w3.org/2000/svg}text") if node.text[:2] in ("ar", "pr")]
    labels.sort(key=lambda node: -float(node.get("y")))
    assert [node.text for node in labels] == ["ar", "probe@k=1", "probe:4@k=1", "probe:14", "probe:15+4"]  # by tau
    colours = [node.get("style").split("fill: ")[1][:7] for node in labels]
    assert colours == ["#1f77b4", *["#ff7f0e"] * 4]
    uses = [node for node in root.iter("{http://www.w3.org/2000/svg}use") if "#ff7f0e" in node.get("style")]
    points = sorted((float(node.get("x")), -float(node.get("y"))) for node in uses)
    lines = [
        node.get("d")
        for node in root.iter("{http://www.w3.org/2000/svg}path")
        if "stroke: #ff7f0e" in node.get("style", "")
    ]
    ends = [tuple(map(float, end.split())) for end in lines[0].replace("M", "").split("L")]
    assert len(points) == 4
    assert [(x, -y) for x, y in ends] == [points[0], points[1], points[3]]  # of the two at 32 rows the upper


def test_figures_stay_small_and_legible_at_full_size(made):
    categories = [f"category_{i}" for i in range(13)]
    runs = [make_run(f"method{i % 5}:{i}", 4 * i + 1, 1 + 0.01 * i, accepted_by_depth=[9] * 8) for i in range(15)]
    for run in runs:
        run["tau_by_category"] = run["speedup_vs_ar_by_category"] = dict.fromkeys(categories, 1.004)
    record = make_record(
        *runs, questions=list(range(13)), categories={str(i): name for i, name in enumerate(categories)}
    )
    _, folder = made(record)
    assert len(fills(folder / NAMES[0])) == 15 * 14
    for name in NAMES:
        assert (folder / name).stat().st_size < 60_000, name
        assert (folder / name).read_bytes().count(b"*{font-family: 'DejaVu Sans', sans-serif; ") == 1
    svg = ElementTree.parse(folder / "record1_rows.svg").iter("{http://www.w3.org/2000/svg}text")
    heights = sorted(float(node.get("y")) for node in svg if node.text.startswith("method"))
    assert len(heights) == 15
    assert min(b - a for a, b in itertools.pairwise(heights)) > 9  # 9 points is the size of the text


@pytest.mark.parametrize(
    ("places", "apart"),
    [
        ([], []),
        ([0.2, 0.6], [0.2, 0.6]),
        ([0.5, 0.5, 0.5], [0.5, 0.75, 1.0]),
        ([0.9, 0.95], [0.75, 1.0]),
        ([0.1, 0.8, 0.8, 0.9], [0.1, 0.5, 0.75, 1.0]),
    ],
)
def test_labels_are_kept_apart(places, apart):
    assert figures.spread(places, 0.25) == pytest.approx(apart)


def test_the_same_records_give_the_same_bytes(tmp_path, monkeypatch):
    path = write(tmp_path / "r.json", make_record())
    first = bench_report.write_report([path], tmp_path / "a")
    monkeypatch.setitem(matplotlib.rcParams, "font.size", 30.0)  # a user's own style
    monkeypatch.setitem(matplotlib.rcParams, "axes.facecolor", "black")
    monkeypatch.setenv("SOURCE_DATE_EPOCH", "86400")
    second = bench_report.write_report([path], tmp_path / "b")
    assert [file.name for file in first] == [file.name for file in second] == ["report.md", *NAMES]
    assert [file.read_bytes() for file in first] == [file.read_bytes() for file in second]
    assert matplotlib.rcParams["font.size"] == 30.0
    assert "matplotlib.pyplot" not in sys.modules


def test_each_record_has_its_section_and_its_figures(tmp_path):
    paths = [write(tmp_path / folder / "r.json", make_record()) for folder in ("a", "b")]  # one stem
    other = make_record(make_run("ar"), make_run("ngram", 8, 1.5))
    other["model"]["name"] = "other"
    write(paths[1], other)
    files = bench_report.write_report(paths, tmp_path / "new" / "out")
    names = [file.name for file in files]
    assert names == ["report.md", *NAMES, "record2_tau.svg", "record2_speedup.svg", "record2_rows.svg"]
    assert sorted(file.name for file in (tmp_path / "new" / "out").iterdir()) == sorted(names)
    _, first, second = files[0].read_text(encoding="utf-8").split("\n## ")
    assert first.startswith("1. tiny_model.gguf")
    assert second.startswith("2. other")
    assert [first.count(f"({name})") for name in names[1:]] == [1, 1, 1, 1, 0, 0, 0]
    assert [second.count(f"({name})") for name in names[1:]] == [0, 0, 0, 0, 1, 1, 1]
    assert "ngram" in texts(files[5])
    assert "ngram" not in texts(files[1])


def test_odd_names_break_neither_the_table_nor_the_figures(made):
    record = make_record(make_run("ar"), make_run("a|b$x$<&\x00\ud800", 2, 1.1))
    record["model"]["name"] = "my|mo\\|del\n*"
    text, folder = made(record)
    assert "## 1. my\\|mo\\\\\\|del \\*, float32" in text
    assert "\n| a\\|b$x$\\<\\&\ufffd\ufffd | 2 | 1.100 |" in text
    for name in NAMES[:3]:
        assert "a|b$x$<&\ufffd\ufffd" in texts(folder / name)


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
        ("{}", "(format is null, and 1 is what can be read)"),
        (changed("format", 2), "(format is 2, and"),
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
    monkeypatch.setattr(figures, "heatmap", lambda *args: "")  # quick; both get only what was checked
    monkeypatch.setattr(figures, "scatter", lambda *args, **labels: "")
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
    write(path, make_record(make_run("ar")))
    (tmp_path / "out" / "record1_rows.svg.partial").mkdir()  # in the way of the last file
    with pytest.raises(OSError, match=r"record1_rows"):
        bench_report.write_report([path], tmp_path / "out")
    assert {file: file.read_bytes() for file in old} == old


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch):
    path = write(tmp_path / "r.json", make_record())
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(ValueError, match=r"^figures need matplotlib: pip install 'jax-probe-mtp\[report\]'\.$"):
        bench_report.write_report([path], tmp_path / "out")
    assert not (tmp_path / "out").exists()
