"""Labels of figures: as near to their points as they can be without overlapping."""

import pytest

from jax_probe_mtp.measuring.report import figures


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
