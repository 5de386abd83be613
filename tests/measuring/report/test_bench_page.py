"""The page of bench records: what it says and in which order, that nothing is fetched, and that no text becomes HTML."""

import html.parser
import re
from collections import Counter

import pytest
from support.measuring.bench_records import make_record, make_report, make_run

VOID = {"meta", "br", "link", "img", "input"}


class Page(html.parser.HTMLParser):
    """Reads a page as a browser would, and fails where elements are not closed."""

    def __init__(self, text):
        super().__init__()
        self.open, self.tags, self.attributes, self.texts = [], Counter(), [], []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += attrs
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags[tag] += 1
        self.attributes += attrs

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if data.strip() and self.open[-1] != "style":
            self.texts.append(" ".join(data.split()))


@pytest.fixture
def page_of(tmp_path):
    """Makes the report of records and gives its page, read and as text."""

    def make(*records):
        _, folder = make_report(tmp_path, *records)
        text = (folder / "report.html").read_text(encoding="utf-8")
        return Page(text), text

    return make


def test_the_answer_comes_first_and_the_rest_in_order(page_of):
    page, text = page_of(make_record())
    answer = (
        "For tiny_model.gguf on NVIDIA H200: the best draft is probe:15+4, with 1.25 tokens a call and 1.50 times plain "
        "decoding's speed; all outputs (3) are plain decoding's."
    )
    title = "tiny_model.gguf, float32, NVIDIA H200, batch size 4, temperature 0.0"
    assert page.texts[:3] == [f"Bench report: {title}", "Bench report", answer]
    headings = [
        "Runs",
        "tau by category",
        "Drafts accepted at each depth",
        "Settings and environment",
        "To run it again",
    ]
    places = [page.texts.index(heading) for heading in headings]
    assert places == sorted(places)
    start = page.texts.index("probe:15+4", places[0])
    assert page.texts[start : start + 6] == ["probe:15+4", "1.250", "100", "50.0", "1.50", "3/3"]
    start = page.texts.index("probe:15+4", places[2])
    assert page.texts[start : start + 4] == ["probe:15+4", "100", "25 (25.0%)", "4 (4.0%)"]
    assert page.tags["svg"] == page.tags["figure"] == 4
    assert text.count('<tr class="best"><th scope="row">probe:15+4</th>') == 3


def test_a_page_is_one_file(page_of):
    page, text = page_of(make_record(), make_record())
    assert page.tags["script"] == page.tags["link"] == page.tags["img"] == page.tags["iframe"] == 0
    assert "@import" not in text
    assert "@font-face" not in text
    assert not re.search(r"url\((?!#)", text)
    targets = [value for name, value in page.attributes if name in ("src", "href", "xlink:href", "action")]
    assert targets
    assert all(target.startswith("#") for target in targets)
    assert (
        "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; style-src 'unsafe-inline'\">"
        in text
    )


def test_figures_of_one_page_share_no_names(page_of):
    page, text = page_of(make_record(), make_record())
    names = [value for name, value in page.attributes if name == "id"]
    assert len(names) == len(set(names))
    used = re.findall(r'(?:href="|url\()#([^")]+)', text)
    assert set(used) <= set(names)
    assert any(name.startswith("record2_rows_") for name in used)
    styles = re.findall(r'<style type="text/css">(.*?)</style>', text, flags=re.DOTALL)
    assert len(styles) == 8
    assert all(style.startswith("#record") for style in styles)  # none is the page's


def test_no_text_is_read_as_html(page_of):
    bad = "<script>alert(1)</script>\"'&<b>"
    run = make_run(bad, 2, 1.1, 1.2, accepted_by_depth=[9], differences={bad: bad}, ties=0, exact_match=2 / 3)
    record = make_record(
        make_run("plain"), run, skipped={bad: bad}, categories={"81": bad, "82": bad, "x": "\x00\ud800"}
    )
    record["model"]["name"] = record["environment"]["device"] = record["settings"]["questions"] = bad
    record["environment"]["git_commit"] = record["settings"]["mesh"] = bad
    page, text = page_of(record)
    assert page.tags["script"] == page.tags["b"] == 0
    assert f"{bad}, question {bad}: {bad}" in page.texts
    assert "&lt;script&gt;alert(1)&lt;/script&gt;&#34;&#39;&amp;&lt;b&gt;" in text
    assert page.texts.count(bad) >= 5  # of the tables and the figures
    assert not re.search(r"[\x00\ud800]", text)


def test_several_records_have_their_answers_at_the_top(page_of):
    other = make_record(make_run("plain"), make_run("ngram:7", 8, 1.5, 0.9), is_complete=False)
    other["model"]["name"] = "other"
    page, _ = page_of(make_record(), other)
    first, second = page.texts[2:4]
    assert first.startswith("For tiny_model.gguf on NVIDIA H200: the best draft is probe:15+4,")
    assert second.startswith(
        "For other on NVIDIA H200: no draft is faster than plain decoding; the fastest is ngram:7,"
    )
    assert [value for name, value in page.attributes if name == "href" and value.startswith("#record")][:2] == [
        "#record1",
        "#record2",
    ]
    assert page.texts.count("This record is not complete: its bench was cut off, and other questions are missing.") == 1


def test_few_differences_are_shown_and_many_folded(page_of):
    def of(num):
        differences = {str(i): "tie" for i in range(num)}
        run = make_run("probe:14", differences=differences, ties=num, exact_match=(20 - num) / 20)
        questions = list(range(20))
        return make_record(run, questions=questions, categories={str(i): "math" for i in questions})

    assert "<details open>\n<summary>First differences from plain decoding (8)</summary>" in page_of(of(8))[1]
    assert "<details>\n<summary>First differences from plain decoding (9)</summary>" in page_of(of(9))[1]
