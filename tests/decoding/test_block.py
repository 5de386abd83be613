import jax.numpy as jnp
import numpy as np
import pytest
from support.drafting.trees import make_tree

from jax_probe_mtp.decoding.block import (
    absolute_tail,
    block_can_attend,
    block_positions,
    block_visible,
    make_block,
    prompt_tail,
)
from jax_probe_mtp.drafting import Plain, Probe
from jax_probe_mtp.drafting.candidates import NO_PARENT
from jax_probe_mtp.drafting.tree import ancestors_or_self

# 0 ── 1 ── 3        and a star: 0 ── 1, 2, 3, 4
#  └── 2    └── 4
CHAIN_AND_STAR = jnp.asarray([[NO_PARENT, 0, 0, 1, 3], [NO_PARENT, 0, 0, 0, 0]])


def drawn(rows):
    return np.array([[cell == "x" for cell in row.split()] for row in rows])


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


def test_nodes_without_masks_sit_at_their_depth_too():
    depth = jnp.asarray([[0, 1, 1, 2], [0, 1, 2, 2]])
    position = block_positions(depth, jnp.asarray([10, 0]), num_masks=0)
    np.testing.assert_array_equal(position, [[10, 11, 11, 12], [0, 1, 2, 2]])


def test_a_block_of_owners_has_masks_behind_these_alone():
    # root -> child -> grandchild: the first row's root and grandchild own a mask each, the second's child and root.
    is_ancestor = ancestors_or_self(jnp.asarray([[NO_PARENT, 0, 1]] * 2), max_depth=2)
    owner_BO = jnp.asarray([[0, 2], [1, 0]])
    nodes = ["x . . . .", "x x . . .", "x x x . ."]
    np.testing.assert_array_equal(
        block_visible(is_ancestor, 1, owner_BO),
        [drawn([*nodes, "x . . x .", "x x x . x"]), drawn([*nodes, "x x . x .", "x . . . x"])],
    )
    position = block_positions(jnp.asarray([[0, 1, 2]] * 2), jnp.asarray([10, 20]), 1, owner_BO)
    np.testing.assert_array_equal(position, [[10, 11, 12, 11, 13], [20, 21, 22, 22, 21]])


def test_the_root_alone_is_written_where_it_stays():
    root = make_tree([[7], [8]], [[NO_PARENT]] * 2, [[0]] * 2)
    block = make_block(root, None, jnp.asarray([4, 2]), 9, Plain())
    assert block.start_B.tolist() == [4, 2]
    tree = make_tree([[7, 1], [8, 1]], [[NO_PARENT, 0]] * 2, [[0, 1]] * 2)
    block = make_block(tree, None, jnp.asarray([4, 2]), 9, Probe(widths=(1,)))
    assert block.start_B.tolist() == [9, 9]  # the scratch behind all that is committed
    assert block.longest_path == 2  # a draft and its mask
    assert block.position_BR.tolist() == [[4, 5, 5, 6], [2, 3, 3, 4]]


def test_a_prompts_tail_is_that_of_each_row_as_a_root():
    """Rows at positions 3 and 9 to 14, W = 4: each as a call of its own, written where it stays."""
    tails = prompt_tail(jnp.asarray([3, 9]), 6, 4)
    for b, first in enumerate((3, 9)):
        for row in range(6):
            position = jnp.asarray([[first + row]])
            alone = absolute_tail(jnp.ones((1, 1, 1), bool), position, position[0], position[0], window=4)
            is_read = alone["is_tail_BTJ"][0, 0]
            assert tails["anchor_BT"][b, row] == alone["anchor_BT"][0, 0]
            assert tails["is_tail_BTJ"][b, row].tolist() == is_read.tolist()
            own, expected = (each["tail_slot_BTJ"][n][is_read] for each, n in ((tails, (b, row)), (alone, (0, 0))))
            assert own.tolist() == expected.tolist()
