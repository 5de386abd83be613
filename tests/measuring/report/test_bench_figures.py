"""Figures of bench records: the numbers, colours and places that they show, expected by hand."""

import functools
import itertools
import xml.etree.ElementTree as ElementTree

import pytest
from support.measuring.bench_records import NAMES, fills, make_record, make_report, make_run, texts


@pytest.fixture
def made(tmp_path):
    """Makes the report of records and gives its text and the folder."""
    return functools.partial(make_report, tmp_path)


def test_cells_of_speedups_are_red_below_1_and_blue_above(made):
    runs = [make_run("plain"), make_run("probe:14", speedup=0.996), make_run("probe:29", speedup=40.0)]
    runs[1]["speedup_vs_ar_by_category"] = {"writing": 1.004, "math": 0.9}
    _, folder = made(make_record(*runs))
    plain, slow, fast = (fills(folder / "record1_speedup.svg")[i : i + 3] for i in (0, 3, 6))
    assert plain == [(255, 255, 255)] * 3
    sides = [red - blue for red, _, blue in slow]
    assert sides[0] > 15  # seen as red although another cell is 40 times as fast
    assert sides[1] < -15
    assert sides[2] > sides[0]
    assert all(blue - red > 100 for red, _, blue in fast)
    numbers = [text for text in texts(folder / "record1_speedup.svg") if text[0].isdigit()]
    assert " ".join(numbers) == "1.00 1.00 1.00 0.996 1.004 0.90 40.00 40.10 39.90"


def test_a_speedup_of_next_to_nothing_is_pale_though_no_other_is_greater(made):
    run = make_run("probe:14") | {"speedup_vs_ar": 1.01, "speedup_vs_ar_by_category": {"writing": 1.01, "math": 1.25}}
    _, folder = made(make_record(make_run("plain"), run))
    pale, same, full = fills(folder / "record1_speedup.svg")[3:]
    assert pale == same
    assert min(pale) > 210
    assert full == (67, 147, 195)
    run["speedup_vs_ar_by_category"]["math"] = 1.01
    assert fills(made(make_record(make_run("plain"), run))[1] / "record1_speedup.svg")[3:] == [pale] * 3


def test_figures_say_what_is_in_the_record(made):
    second = make_run("ngram:8@k=3", 8, 1.5, accepted_by_depth=[50, 0, 1])
    _, folder = made(make_record(*make_record()["runs"], second))
    runs, columns = ["plain", "probe:15+4", "ngram:8@k=3"], ["all", "writing", "math"]
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
    assert at["plain"][1] < at["probe:15+4"][1] - 15
    *_, highest, lowest = fills(folder / NAMES[0])
    assert highest == (67, 147, 195)
    assert lowest == (174, 209, 229)  # 0.15 of 0.35: 3/7 of the way from white


def test_points_share_a_colour_by_method_and_the_line_joins_the_best(made):
    runs = [make_run("probe:14", 32, 1.2), make_run("probe:4@k=1", 8, 1.1), make_run("probe:15+4", 32, 1.3)]
    _, folder = made(make_record(make_run("plain"), *runs, make_run("probe@k=1", 2, 1.05)))
    root = ElementTree.parse(folder / NAMES[2])
    labels = [node for node in root.iter("{http://www.w3.org/2000/svg}text") if node.text[:2] in ("pl", "pr")]
    labels.sort(key=lambda node: -float(node.get("y")))
    assert [node.text for node in labels] == ["plain", "probe@k=1", "probe:4@k=1", "probe:14", "probe:15+4"]  # by tau
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
