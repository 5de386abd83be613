"""Answers and sums as a notebook shows them, expected by hand."""

import dataclasses

from jax_probe_mtp.generation.answers import Generation, Stats

ANSWER = Generation(
    id="a",
    prompt_ids=[1, 2],
    token_ids=[5, 6, 7, 8, 9, 2],
    text='1 < 2 & "so"\n<script>alert(1)</script>',
    finish_reason="stop",
    draft="probe:14",
    calls=2,
    committed=5,
    accepted_by_depth=[2, 0, 1],
)


def test_an_answer_shows_its_text_and_what_it_took():
    assert ANSWER._repr_html_() == (
        '<pre style="white-space: pre-wrap">1 &lt; 2 &amp; &quot;so&quot;\n&lt;script&gt;alert(1)&lt;/script&gt;</pre>'
        "<table><tr><th>finish reason</th><td>stop</td></tr><tr><th>tokens</th><td>6</td></tr>"
        "<tr><th>calls</th><td>2</td></tr><tr><th>tau</th><td>2.500</td></tr>"
        "<tr><th>drafts of probe:14 accepted</th><td>2 at depth 1, 1 at depth 3</td></tr></table>"
    )


def test_an_answer_that_could_not_run_says_why():
    none = {"token_ids": [], "calls": 0, "committed": 0, "accepted_by_depth": [0], "draft": "my<b>:Source"}
    shown = dataclasses.replace(ANSWER, text="", finish_reason="error", error="too <long>", **none)._repr_html_()
    assert shown == (
        '<pre style="white-space: pre-wrap"></pre><table><tr><th>finish reason</th><td>error: too &lt;long&gt;</td></tr>'
        "<tr><th>tokens</th><td>0</td></tr><tr><th>calls</th><td>0</td></tr><tr><th>tau</th><td>no call</td></tr>"
        "<tr><th>drafts of my&lt;b&gt;:Source accepted</th><td>none</td></tr></table>"
    )


def test_sums_show_what_there_is():
    stats = Stats(seconds=0.5)
    stats.count(ANSWER)
    assert stats._repr_html_() == (
        "<table><tr><th>records</th><td>1</td></tr><tr><th>calls</th><td>2</td></tr><tr><th>new tokens</th><td>6</td></tr>"
        "<tr><th>tau</th><td>2.500</td></tr><tr><th>tokens per second</th><td>12.0</td></tr>"
        "<tr><th>seconds</th><td>0.50</td></tr></table>"
    )
    assert Stats()._repr_html_() == "<table><tr><th>tau</th><td>1.000</td></tr></table>"
