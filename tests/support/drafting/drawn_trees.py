"""Trees that hypothesis draws."""

import functools

from hypothesis import settings
from hypothesis import strategies as st

NO_PARENT = -1
N, MAX_DEPTH, B = 8, 4, 2  # of every drawn tree and batch of them

several = functools.partial(settings, derandomize=True, deadline=None)


@st.composite
def trees(draw, num_nodes=N):
    """The parent of each node, parents before their children; no node is deeper than `MAX_DEPTH`."""
    parent = [NO_PARENT]
    while len(parent) < num_nodes:
        parent.append(draw(st.sampled_from([node for node in range(len(parent)) if depth(parent, node) < MAX_DEPTH])))
    return parent


def path(parent, node):
    """The nodes from the root to `node`, both included."""
    return [] if node == NO_PARENT else [*path(parent, parent[node]), node]


def depth(parent, node):
    return len(path(parent, node)) - 1


def rows_of(strategy):
    return st.lists(strategy, min_size=B, max_size=B)
