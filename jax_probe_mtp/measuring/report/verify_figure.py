"""Draws what tells outputs of another model apart: the match rate along the text, and how large the gaps are."""

import numpy as np

from jax_probe_mtp.measuring.report import figures
from jax_probe_mtp.measuring.report.figures import Line, Panel
from jax_probe_mtp.sameness.output import Examined

_STYLE = {"color": "#0072B2", "linewidth": 1.6}
_WIDTH = 8  # places of a text that make one point
# Powers of ten of a gap in nats; a quarter of one each.
_GAPS = np.arange(-5, 1.26, 0.25)


class VerifyFigure:
    """Adds up outputs as they are examined; memory does not grow with their number."""

    def __init__(self) -> None:
        """Begins with no output."""
        figures.require_matplotlib()
        self._tokens, self._best = np.zeros(0, np.int64), np.zeros(0, np.int64)
        self._above = np.zeros(len(_GAPS), np.int64)

    def add(self, found: Examined) -> None:
        """Adds an output."""
        if found.choices is None:
            return
        gap = np.asarray(found.choices.best_score_BA) - np.asarray(found.choices.given_score_BA)
        is_used = np.ones(gap.shape, np.bool_) if found.is_ambiguous is None else ~found.is_ambiguous
        missing = -(-gap.size // _WIDTH) - len(self._tokens)
        if missing > 0:
            self._tokens, self._best = (np.pad(counts, (0, missing)) for counts in (self._tokens, self._best))
        place = np.arange(gap.size) // _WIDTH
        np.add.at(self._tokens, place[is_used], 1)
        np.add.at(self._best, place[is_used & (gap <= 0)], 1)
        self._above += (gap[is_used][:, None] > 10.0**_GAPS).sum(0)

    def svg(self) -> str:
        """Gives the figure as SVG text."""
        rates = [
            float(best / tokens) if tokens else None for best, tokens in zip(self._best, self._tokens, strict=True)
        ]
        total = max(int(self._tokens.sum()), 1)
        shares = [float(1 - count / total) for count in self._above]
        panels = [
            Panel(
                f"the model's best, by place: {_WIDTH} tokens a point",
                [Line("outputs", rates, _STYLE)],
            ),
            Panel("within a gap: 1e-5 to 18 nats, 4 points a power of ten", [Line("outputs", shares, _STYLE)]),
        ]
        return figures.line_panels(panels, x_label="point", y_label="share of tokens")
