"""The part of a leaf and the block of the file that fills it."""

import itertools

import numpy as np
import pytest

from checkpoints_convert.mapping.transforms import LAYOUTS
from checkpoints_convert.params.fill import part_by_head

D, F, K, G, h = 5, 12, 6, 3, 4
LEAVES = {  # layout: a leaf that has it, and the axis over which it is split
    "same": ((11, D), 0),
    "transposed": ((F, D), 0),
    **dict.fromkeys(["q", "k", "v", "q_rope_pairs", "k_rope_pairs"], ((D, K, G + 2, h), 1)),
    **dict.fromkeys(["q_bias", "k_bias", "v_bias"], ((K, G + 2, h), 0)),
    "out": ((K, G, h, D), 0),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_a_part_of_a_leaf_is_a_block_of_the_file(name):
    layout, (shape, axis) = LAYOUTS[name], LEAVES[name]
    leaf = np.full(shape, -1)
    file = np.arange(layout.view(leaf).size).reshape(layout.file_shape(leaf))
    layout.view(leaf)[...] = file.reshape(layout.view(leaf).shape)
    for start, stop in itertools.combinations(range(shape[axis] + 1), 2):
        part = tuple(range(start, stop) if i == axis else range(n) for i, n in enumerate(shape))
        view = layout.view(leaf[np.ix_(*part)])
        block = file[np.ix_(*layout.file_ranges(leaf, part))]
        np.testing.assert_array_equal(block.ravel(), view.ravel())


def test_a_part_that_is_no_block_of_the_file_is_not_taken_for_one():
    for name, part in {
        "out": (range(K), range(1), range(h), range(D)),  # of each kv head one query
        "q": (range(D), range(K), range(G + 2), range(2)),  # of each head two numbers
        "transposed": (range(3), range(2)),  # two axes
    }.items():
        with pytest.raises(AssertionError):
            LAYOUTS[name].file_ranges(np.empty(LEAVES[name][0]), part)


@pytest.mark.parametrize("apart", [(D, K, G + 2, h), (K, G + 2, h), (K, G, h, D), (D, 1, G + 2, h)])
def test_whole_kv_heads_of_a_leaf_are_a_part_of_it_with_axes_apart(apart):
    """Of one or two axes, numbered: the part's numbers are those of the part by heads."""
    shape = {4: lambda: (D, apart[1] * (G + 2) * h) if apart[0] == D else (K * G * h, D), 3: lambda: (K * (G + 2) * h,)}
    shape = shape[len(apart)]()
    leaf = np.arange(np.prod(shape)).reshape(shape)
    axis, heads = (1, apart[1]) if len(apart) == 4 and apart[0] == D else (0, K)
    each = shape[axis] // heads
    for start, stop in itertools.combinations(range(heads + 1), 2):
        part = tuple(range(start * each, stop * each) if i == axis else range(n) for i, n in enumerate(shape))
        by_head = part_by_head(part, shape, apart)
        assert [len(r) for r in by_head] == [stop - start if i == axis else n for i, n in enumerate(apart)]
        np.testing.assert_array_equal(leaf.reshape(apart)[np.ix_(*by_head)].ravel(), leaf[np.ix_(*part)].ravel())


def test_a_part_of_a_head_is_not_taken_for_one():
    with pytest.raises(AssertionError):
        part_by_head((range(D), range(h)), (D, K * (G + 2) * h), (D, K, G + 2, h))
