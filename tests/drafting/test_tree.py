import jax.numpy as jnp
import numpy as np
import pytest

from jax_probe_mtp.decoding.block import block_can_attend, block_layout, block_positions, block_visible
from jax_probe_mtp.drafting.tree import NO_PARENT, ancestors_or_self

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


def test_the_mask_of_a_drawn_block():
    # root -> child; two masks each; 3 slots of capacity, of which the first row has committed 2, the second none.
    is_ancestor = ancestors_or_self(jnp.asarray([[NO_PARENT, 0]] * 2), max_depth=1)
    can_attend = block_can_attend(block_visible(is_ancestor, num_masks=2), jnp.asarray([2, 0]), start=3, num_slots=10)
    block = [
        "x . | . . . .",  # root
        "x x | . . . .",  # child
        "x . | x . . .",  # root's mask 1
        "x . | x x . .",  # root's mask 2
        "x x | . . x .",  # child's mask 1
        "x x | . . x x",  # child's mask 2
    ]
    expected = drawn([row.replace("| ", "") for row in block])
    after = drawn(["."] * 6)  # a slot behind the block
    np.testing.assert_array_equal(can_attend[0], np.concatenate([drawn(["x x ."] * 6), expected, after], axis=1))
    np.testing.assert_array_equal(can_attend[1], np.concatenate([drawn([". . ."] * 6), expected, after], axis=1))


def test_the_mask_of_a_row_that_sits_at_the_end_of_its_text():
    can_attend = block_can_attend(jnp.ones((2, 1, 1), jnp.bool_), jnp.asarray([2, 0]), jnp.asarray([2, 0]), num_slots=4)
    np.testing.assert_array_equal(can_attend[:, 0], drawn(["x x x .", "x . . ."]))


def test_a_block_of_more_rows_begins_at_one_slot():
    with pytest.raises(ValueError, match=r"a block of 3 rows .* array of \(2,\)"):
        block_can_attend(jnp.ones((2, 3, 3), jnp.bool_), jnp.asarray([2, 0]), jnp.asarray([2, 0]), num_slots=4)


def test_every_row_attends_to_itself():
    is_visible = block_visible(ancestors_or_self(CHAIN_AND_STAR, max_depth=3), 3)
    assert np.all(np.diagonal(is_visible, axis1=1, axis2=2))


def test_positions_of_a_drawn_block():
    depth = jnp.asarray([[0, 1, 1, 2]])
    position = block_positions(depth, jnp.asarray([10]), num_masks=2)
    nodes, masks = [10, 11, 11, 12], [11, 12, 12, 13, 12, 13, 13, 14]
    np.testing.assert_array_equal(position, [nodes + masks])


def test_layout_of_a_block_without_masks():
    owner, index = block_layout(3, 0)
    assert owner.tolist() == [0, 1, 2]
    assert index.tolist() == [0, 0, 0]
