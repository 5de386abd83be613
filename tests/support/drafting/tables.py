"""Tables of successors as dicts, the way the reference keeps them."""

import numpy as np

NO_TOKEN = -1


def dicts(table):
    """One dict a table, token -> its (successor, log-probability) pairs, as the reference keeps them."""
    id_YVC, score_YVC = np.asarray(table.id_YVC), np.asarray(table.score_YVC)
    is_known_EV = id_YVC[..., 0] != NO_TOKEN
    assert np.all((id_YVC != NO_TOKEN) == is_known_EV[..., None])  # all eight are known or none
    assert np.all(np.isfinite(score_YVC) == is_known_EV[..., None])
    return [
        {
            int(token): list(zip(id_YVC[e, token].tolist(), score_YVC[e, token].tolist(), strict=True))
            for token in np.flatnonzero(is_known_EV[e])
        }
        for e in range(len(id_YVC))
    ]


def assert_same_dict(got, expected):
    assert got.keys() == expected.keys()
    for token, known in expected.items():
        assert [child for child, _ in got[token]] == [child for child, _ in known], token
        np.testing.assert_allclose([score for _, score in got[token]], [score for _, score in known], atol=1e-5)
