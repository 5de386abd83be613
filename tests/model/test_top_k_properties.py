"""The best k against a stable sort, over drawn vocabularies full of ties."""

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from support.drafting.drawn_trees import rows_of, several

from jax_probe_mtp.model import top_k
from jax_probe_mtp.model.top_k import BLOCK

V = 12 * BLOCK + 5
LEVELS = np.float32([-np.inf, np.finfo(np.float32).min, -0.0, 0.0, np.inf])  # -inf is less than the least number
SMALL = top_k.COUNTED_BLOCK
EDGES = [0, 1, SMALL - 1, SMALL, BLOCK - 1, BLOCK, 11 * BLOCK, 12 * BLOCK - 1, 12 * BLOCK, V - 1]


@st.composite
def plains(draw):
    """A vocabulary of few levels, with runs of one level over it: ties within blocks, across and behind them."""
    levels = st.sampled_from(draw(st.lists(st.sampled_from(LEVELS), min_size=2, max_size=3, unique_by=repr)))
    values = np.random.default_rng(draw(st.integers(0, 999))).choice(draw(st.lists(levels, min_size=1, max_size=2)), V)
    ids, lengths = st.sampled_from(EDGES) | st.integers(0, V - 1), st.sampled_from([1, 1, 2, 7, 200])
    for first, length, level in draw(st.lists(st.tuples(ids, lengths, levels), max_size=8)):
        values[first : first + length] = level
    return values


def best_by_sorting(values, k):
    """Two stable sorts: 0 before -0, as `jax.lax.top_k` has it, then by value; of equal ones the lower id first."""
    by_sign = np.argsort(np.signbit(values), kind="stable")
    return by_sign[np.argsort(-values[by_sign], kind="stable")][:k]


_BEST = {way: jax.jit(way, static_argnums=1) for way in (top_k._by_blocks, top_k._by_counting)}


@pytest.mark.parametrize("way", _BEST, ids=lambda way: way.__name__)
@several(max_examples=250)
@given(values_BV=rows_of(plains()), k=st.sampled_from([1, 5, 12]))
def test_the_best_k_are_those_of_a_stable_sort(way, values_BV, k):
    values_Bk, id_Bk = map(np.asarray, _BEST[way](np.stack(values_BV), k))
    for values, got, ids in zip(values_BV, values_Bk, id_Bk, strict=True):
        assert ids.tolist() == best_by_sorting(values, k).tolist()
        assert got.tobytes() == values[ids].tobytes()  # the sign of a zero too
