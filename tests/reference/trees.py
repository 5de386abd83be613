"""Trees as lists of (token, parent index, depth), the root first: of probabilities, of a table, of 80 fixed paths."""

import heapq

import numpy as np

NO_TOKEN = -1  # a node that drafts nothing
# The fixed tree of Token Recycling: 80 drafts, each the path of ranks that leads to it.
STATIC80 = [
    *[(i,) for i in range(8)],
    *[(0, i) for i in range(8)],
    *[(1, 0), (1, 1), (1, 2), (1, 3), (2, 0), (2, 1), (2, 2), (3, 0), (3, 1), (4, 0), (5, 0), (6, 0), (7, 0)],
    *[(0, 0, i) for i in range(8)],
    *[(0, 1, 0), (0, 1, 1), (0, 1, 2), (0, 2, 0), (0, 2, 1), (0, 3, 0), (0, 4, 0), (0, 5, 0), (0, 6, 0), (0, 7, 0)],
    *[(1, 0, 0), (1, 0, 1), (1, 1, 0), (2, 0, 0), (3, 0, 0), (4, 0, 0), (5, 0, 0)],
    *[(0, 0, 0, i) for i in range(5)],
    *[(0, 0, 1, 0), (0, 0, 1, 1), (0, 0, 2, 0), (0, 0, 3, 0), (0, 0, 4, 0)],
    *[(0, 1, 0, 0), (0, 2, 0, 0), (1, 0, 0, 0), (2, 0, 0, 0), (3, 0, 0, 0)],
    *[(0, 0, 0, 0, 0), (0, 0, 0, 0, 1), (0, 0, 0, 0, 2), (0, 0, 0, 1, 0), (0, 0, 0, 2, 0), (0, 0, 1, 0, 0)],
    *[(0, 1, 0, 0, 0), (1, 0, 0, 0, 0)],
    *[(0, 0, 0, 0, 0, 0), (0, 0, 0, 0, 0, 1), (0, 0, 0, 1, 0, 0)],
]


def build_tree(root, mask_scores, *, tree, num_masks, block_complexity, prune):
    """The tree under `root` as (token, parent index, depth) triples, root first, in the order they are chosen."""
    budget = block_complexity // (num_masks + 1) - 1 if tree == "dynamic" else None
    pools, parent_token, path, chain = [], root, 1.0, None
    for depth in range(1, num_masks + 1):
        score = mask_scores[depth - 1]
        probability = np.exp(score - score.max())
        probability /= probability.sum()
        ranked = [int(t) for t in np.argsort(-score, kind="stable")]
        if prune:
            ranked.remove(parent_token)
        size = budget - depth + 1 if tree == "dynamic" else tree[depth - 1]
        pool = [
            {"token": t, "depth": depth, "rank": rank, "score": path * probability[t], "parent": chain}
            for rank, t in enumerate(ranked[:size])
        ]
        pools.append(pool)
        parent_token, path, chain = pool[0]["token"], pool[0]["score"], pool[0]
    chosen = [node for pool in pools for node in pool]
    if tree == "dynamic":
        chosen = sorted(chosen, key=lambda node: (-node["score"], node["depth"], node["rank"]))[:budget]
    index = {id(node): i + 1 for i, node in enumerate(chosen)}
    triples = [(node["token"], index[id(node["parent"])] if node["parent"] else 0, node["depth"]) for node in chosen]
    return [(root, -1, 0), *triples]


def best_first_tree(root, table, *, num_nodes, max_depth):
    """The best paths by their probability, found one at a time; among equals the shallower, then the better parent's.

    Args:
      table: token -> its successors with their log-probabilities, best first.

    Returns:
      At most `num_nodes` (token, parent index, depth) triples, and the smallest gap between two scores in a row.
    """
    nodes, gap, heap = [(root, -1, 0)], np.inf, []

    def push_children(index, score, place):  # place: where the node itself is among those of its depth
        token, _, depth = nodes[index]
        for rank, (child, step) in enumerate(table.get(token, [])):
            if depth < max_depth:
                heapq.heappush(heap, (-(score + step), depth + 1, (place, rank), child, index))

    push_children(0, 0.0, ())
    while heap and len(nodes) < num_nodes:
        cost, depth, place, token, parent = heapq.heappop(heap)
        nodes.append((token, parent, depth))
        push_children(len(nodes) - 1, -cost, (cost, place))
        if heap:
            gap = min(gap, heap[0][0] - cost)
    return nodes, gap


def static80_tree(root, table):
    """The fixed tree, level by level: each path of ranks is followed through the table."""
    nodes = [(root, -1, 0)]
    for path in STATIC80:
        parent = 1 + STATIC80.index(path[:-1]) if path[:-1] else 0
        known = table.get(nodes[parent][0], [])
        nodes.append((known[path[-1]][0] if known else NO_TOKEN, parent, len(path)))
    return nodes
