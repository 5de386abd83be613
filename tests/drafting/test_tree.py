import jax.numpy as jnp
import numpy as np
import pytest

from jax_probe_mtp.drafting.candidates import NO_PARENT
from jax_probe_mtp.drafting.tree import ancestors_or_self

# 0 ── 1 ── 3        and a star: 0 ── 1, 2, 3, 4
#  └── 2    └── 4
CHAIN_AND_STAR = jnp.asarray([[NO_PARENT, 0, 0, 1, 3], [NO_PARENT, 0, 0, 0, 0]])


def drawn(rows):
    return np.array([[cell == "x" for cell in row.split()] for row in rows])


def test_ancestors_of_a_drawn_tree():
    reach = ancestors_or_self(CHAIN_AND_STAR, max_depth=3)
    expected_deep = drawn(["x . . . .", "x x . . .", "x . x . .", "x x . x .", "x x . x x"])
    expected_star = drawn(["x . . . .", "x x . . .", "x . x . .", "x . . x .", "x . . . x"])
    np.testing.assert_array_equal(reach, np.stack([expected_deep, expected_star]))


def test_ancestors_need_a_batch():
    with pytest.raises(ValueError, match=r"\[B, N\], got shape \(5,\)"):
        ancestors_or_self(CHAIN_AND_STAR[0], max_depth=3)
