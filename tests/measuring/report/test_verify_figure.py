"""The figure of a file of outputs: its points are shares that can be counted by hand."""

import re

import numpy as np
import pytest

from jax_probe_mtp.decoding.settings import Prompt
from jax_probe_mtp.measuring.report import figures, verify_figure
from jax_probe_mtp.measuring.report.verify_figure import VerifyFigure
from jax_probe_mtp.sameness.output import Examined, Output
from jax_probe_mtp.sameness.own_choices import Choices
from jax_probe_mtp.sameness.verdicts import Verdict


def examined(gaps, is_ambiguous=None):
    gap = np.asarray(gaps, np.float32)
    return Examined(
        output=Output(prompt=Prompt(id=1, token_ids=[1]), token_ids=[0] * gap.size),
        verdict=Verdict(id=1, kind="same", num_tokens=gap.size),
        choices=Choices(best_BA=np.zeros(gap.size), best_score_BA=gap, given_score_BA=gap * 0),
        is_ambiguous=is_ambiguous,
    )


def test_points_are_shares_of_tokens(monkeypatch):
    drawn = []
    monkeypatch.setattr(figures, "line_panels", lambda panels, **labels: drawn.extend(panels) or "<svg/>")
    figure = VerifyFigure()
    figure.add(examined([0, 0, 0, 0.5, 0, 0, 0, 0, 2.0]))  # 8 tokens are the first point, one the second
    figure.add(examined([0, 1e-3], np.asarray([False, True])))
    figure.add(Examined(output=Output(prompt=Prompt(id=2, token_ids=[1]), token_ids=[]), verdict=None))
    assert figure.svg() == "<svg/>"
    along, within = (panel.lines[0].values for panel in drawn)
    assert along == [pytest.approx(8 / 9), 0.0]
    by_gap = dict(zip(verify_figure._GAPS.tolist(), within, strict=True))
    assert by_gap[-1.0] == pytest.approx(8 / 10)  # of ten tokens two are more than 0.1 nats behind
    assert by_gap[0.0] == pytest.approx(9 / 10)
    assert by_gap[0.5] == 1


def test_the_figure_is_drawn_the_same_each_time():
    texts = set()
    for _ in range(2):
        figure = VerifyFigure()
        figure.add(examined([0, 0.1, 0]))
        texts.add(figure.svg())
    [svg] = texts
    assert svg.count('<g id="axes_') == 2
    assert re.search(r"share of tokens", svg)
