"""The part of a leaf and the block of the file that fills it."""

import itertools

import numpy as np
import pytest

from checkpoints_convert.mapping.transforms import LAYOUTS

D, F, K, G, h = 5, 12, 6, 3, 4
LEAVES = {  # layout: a leaf that has it, and the axis over which it is split
    "same": ((11, D), 0),
    "transposed": ((F, D), 0),
    **dict.fromkeys(["q", "k", "v", "q_rope_pairs", "k_rope_pairs"], ((D, K, G + 2, h), 1)),
    **dict.fromkeys(["q_bias", "k_bias", "v_bias"], ((K, G + 2, h), 0)),
    "out": ((K, G, h, D), 0),
    "gate": ((D, 2, F), 2),
    "up": ((D, 2, F), 2),
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
        "gate": (range(D), range(1, 2), range(F)),  # which the gate has none of
        "transposed": (range(3), range(2)),  # two axes
    }.items():
        with pytest.raises(AssertionError):
            LAYOUTS[name].file_ranges(np.empty(LEAVES[name][0]), part)
