import functools

import jax.numpy as jnp
import numpy as np
import pytest
from support.drafting.trees import make_tree

from jax_probe_mtp.decoding.verify import follow, walk
from jax_probe_mtp.drafting.candidates import NO_PARENT

# 0:10 ── 1:20 ── 3:40 ── 5:60        one tree for every row
#     └── 2:30    └── 4:50
TOKENS = [10, 20, 30, 40, 50, 60]
PARENTS = [NO_PARENT, 0, 0, 1, 1, 3]
DEPTHS = [0, 1, 1, 2, 2, 3]


def step_by_step(tree, table, **how):
    def look_up(node_B, depth, chosen_BD):
        return jnp.take_along_axis(table, node_B[:, None], axis=1)[:, 0]

    return walk(tree, look_up, **how)


WAYS = {"walk": step_by_step, "walk, looped": functools.partial(step_by_step, is_looped=True), "follow": follow}
every_way = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


def walk_along(next_after, way=step_by_step, **how):
    """Walks one row a dict {token: the model's next token}."""
    B = len(next_after)
    tree = make_tree([TOKENS] * B, [PARENTS] * B, [DEPTHS] * B)
    table = jnp.asarray([[row.get(token, -5) for token in TOKENS] for row in next_after])
    return way(tree, table, max_depth=3, **how)


EACH_DEPTH = [
    {10: 99},  # no child holds 99
    {10: 30, 30: 20},  # 30 is a leaf; 20 is elsewhere in the tree
    {10: 20, 20: 50, 50: 60},  # 60 hangs under 40, not under 50
    {10: 20, 20: 40, 40: 60, 60: 77},
]


@every_way
def test_rows_built_to_accept_each_depth(way):
    accepted = walk_along(EACH_DEPTH, way)
    assert accepted.num_accepted_B.tolist() == [0, 1, 2, 3]
    assert [row[: n + 1] for row, n in zip(accepted.token_BP.tolist(), [0, 1, 2, 3], strict=True)] == [
        [99],
        [30, 20],
        [20, 50, 60],
        [20, 40, 60, 77],
    ]
    assert accepted.node_BP.tolist() == [[0, 0, 0, 0], [0, 2, 2, 2], [0, 1, 4, 4], [0, 1, 3, 5]]


@every_way
@pytest.mark.parametrize("most", [0, 1, 2, 5])
def test_no_more_drafts_are_accepted_than_the_limit_allows(most, way):
    """The bonus is then the model's own token at the last node, though the tree holds it."""
    accepted = walk_along(EACH_DEPTH, way, max_accept=jnp.int32(most))
    free = walk_along(EACH_DEPTH)
    counts = [min(count, most) for count in [0, 1, 2, 3]]
    assert accepted.num_accepted_B.tolist() == counts
    for row, count in enumerate(counts):
        assert accepted.token_BP[row, : count + 1].tolist() == free.token_BP[row, : count + 1].tolist()
        assert accepted.node_BP[row, count:].tolist() == [int(free.node_BP[row, count])] * (4 - count)


@every_way
def test_a_token_of_a_deeper_node_is_not_accepted_early(way):
    accepted = walk_along([{10: 40}], way)
    assert accepted.num_accepted_B.tolist() == [0]
    assert accepted.token_BP[0, 0] == 40


@every_way
def test_of_equal_siblings_the_first_is_taken(way):
    """0:10 ─┬─ 1:20, and 2:20 ── 3:30, which is right but hangs under the other one."""
    tree = make_tree([[10, 20, 20, 30]], [[NO_PARENT, 0, 0, 2]], [[0, 1, 1, 2]])
    accepted = way(tree, jnp.asarray([[20, 30, 30, 40]]), max_depth=2)
    assert accepted.node_BP.tolist() == [[0, 1, 1]]
    assert accepted.token_BP.tolist() == [[20, 30, 30]]
    assert accepted.num_accepted_B.tolist() == [1]


@every_way
@pytest.mark.parametrize("depth", [0, 1])
def test_a_tree_of_a_root_and_its_children(way, depth):
    tree = make_tree(
        [[10, 20, 30][: 1 + 2 * depth]], [[NO_PARENT, 0, 0][: 1 + 2 * depth]], [[0, 1, 1][: 1 + 2 * depth]]
    )
    accepted = way(tree, jnp.asarray([[30, 40, 50][: 1 + 2 * depth]]), max_depth=depth)
    assert accepted.token_BP.tolist() == [[30, 50][: 1 + depth]]
    assert accepted.num_accepted_B.tolist() == [depth]


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_next_token_is_asked_with_the_depth_of_the_walk(depth):
    seen = []
    tree = make_tree([[1, 2, 3, 4]], [[NO_PARENT, 0, 1, 2]], [range(4)])

    def next_token(node_B, walked, chosen_BD):
        seen.append((int(node_B[0]), walked))
        if walked <= depth:  # later ones are asked for, and dropped
            assert chosen_BD[0, :walked].tolist() == [node + 2 for node in range(walked)]
        return jnp.where(walked < depth, node_B + 2, 99)

    accepted = walk(tree, next_token, max_depth=3)
    assert int(accepted.num_accepted_B[0]) == depth
    assert seen[: depth + 1] == [(i, i) for i in range(depth + 1)]
    assert np.asarray(accepted.token_BP)[0, depth] == 99
