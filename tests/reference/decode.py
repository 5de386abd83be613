"""The method written a second time, slowly: NumPy in float64, no cache, no batch, no masks; one row, plain Python lists.

Every call reruns the model over the whole text. What a mask sees is spelled out by running it: the text up to its owner,
then masks 1..i, plainly causal. Trees are lists of dicts. Nothing here imports the code under test.
"""

import functools
import heapq

import jax
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


class Model:
    """A transformer over float64 copies of the parameters."""

    def __init__(self, params, cfg):
        self.p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
        self.cfg = cfg
        self.known = {}

    def embed(self, ids):
        return self.p["embed"][np.asarray(ids, int)]

    def next_logits(self, text):
        """Logits [V] after a text of token ids, kept: all ways of drafting ask for the same ones."""
        key = tuple(text)
        if key not in self.known:
            self.known[key] = self.logits(self.embed(text))[-1]
        return self.known[key]

    def logits(self, x_TD):
        """Logits [T, V] after each of T input vectors."""
        cfg, (T, _) = self.cfg, x_TD.shape
        K, G, h = cfg.num_kv_heads, cfg.num_heads // cfg.num_kv_heads, cfg.head_dim
        frequency = cfg.rope_theta ** (-np.arange(0, h, 2) / h) / np.asarray(cfg.rope_divisors or 1.0)
        angle = np.arange(T)[:, None] * frequency

        def turn(y):  # [T, h]: as complex numbers
            z = (y[:, : h // 2] + 1j * y[:, h // 2 :]) * np.exp(1j * angle)
            return np.concatenate([z.real, z.imag], axis=1)

        def norm(y, weight):
            return y / np.sqrt((y**2).mean(-1, keepdims=True) + cfg.norm_eps) * weight

        for layer in self.p["layers"]:
            y = norm(x_TD, layer["attn_norm"])
            attended = np.zeros_like(x_TD)
            for kv in range(K):
                heads = [y @ layer["qkv"][:, kv, i] for i in range(G + 2)]
                if cfg.has_qkv_bias:
                    heads = [head + layer["qkv_bias"][kv, i] for i, head in enumerate(heads)]
                *queries, key, value = heads
                if cfg.has_qk_norm:
                    queries = [norm(q, layer["q_norm"]) for q in queries]
                    key = norm(key, layer["k_norm"])
                for g, query in enumerate(queries):
                    score = turn(query) @ turn(key).T / np.sqrt(h)
                    score[np.triu_indices(T, 1)] = -np.inf
                    weight = np.exp(score - score.max(1, keepdims=True))
                    attended += weight / weight.sum(1, keepdims=True) @ value @ layer["out"][kv, g]
            x_TD = x_TD + attended
            y = norm(x_TD, layer["mlp_norm"])
            gate, up = y @ layer["gate_up"][:, 0], y @ layer["gate_up"][:, 1]
            x_TD = x_TD + (gate / (1 + np.exp(-gate)) * up) @ layer["down"]
        return norm(x_TD, self.p["final_norm"]) @ self.p.get("head", self.p["embed"]).T


@functools.cache
def noise(seed, position, size):
    """The noise of one position, by its definition."""
    key = jax.random.fold_in(jax.random.key(seed, impl="threefry2x32"), position)
    return np.asarray(jax.random.gumbel(key, (size,), np.float32), np.float64)


def scores(logits, position, *, temperature=0.0, top_k=0, top_p=1.0, seed=0):
    """What the next token maximises, by sorting."""
    if temperature == 0:
        return logits
    scaled = logits / temperature
    order = np.argsort(-scaled, kind="stable")
    if top_k:
        order = order[:top_k]
    mass = np.exp(scaled[order] - scaled.max())
    mass /= mass.sum()
    if top_p < 1:
        order = order[: np.searchsorted(np.cumsum(mass), top_p) + 1]
    kept = np.full(len(logits), -np.inf)
    kept[order] = (scaled + noise(seed, position, len(logits)))[order]
    return kept


def plain_decode(model, prompt, *, max_new_tokens, eos=(), **draw):
    """Plain decoding: the whole text through the model for every token. Returns tokens and the smallest top-two gap."""
    text, gap = list(prompt), np.inf
    for _ in range(max_new_tokens):
        score = scores(model.next_logits(text), len(text), **draw)
        second, best = np.sort(score)[-2:]
        gap = min(gap, best - second)
        text.append(int(np.argmax(score)))
        if text[-1] in eos:
            break
    return text[len(prompt) :], gap


def first_masks(model, prompt, *, init, num_masks, offset, seed):
    embeddings, table = model.embed(prompt), model.p["embed"]
    if init == "mean":
        return np.repeat(embeddings.mean(0)[None], num_masks, 0)
    if init == "last_k":
        return embeddings[len(prompt) - num_masks :]
    if init == "offset":
        return np.repeat((table.mean(0) + offset * table.std(0))[None], num_masks, 0)
    key = jax.random.key(seed, impl="threefry2x32")
    draw = np.asarray(jax.random.normal(key, (num_masks, table.shape[1]), np.float32), np.float64)
    return table.mean(0) + table.std(0) * draw


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


def probe_decode(model, prompt, probe, *, max_new_tokens, eos=(), mask_ema=0.1, rank_with_noise=True, **draw):
    """The whole method for one row.

    Args:
      probe: a dict of tree, num_masks, block_complexity, prune, mask_init, mask_offset.

    Returns:
      Tokens, the tree of each call, the drafts accepted in each call.
    """
    k, seed = probe["num_masks"], draw.get("seed", 0)
    masks = first_masks(model, prompt, init=probe["mask_init"], num_masks=k, offset=probe["mask_offset"], seed=seed)
    shape = {name: probe[name] for name in ("tree", "num_masks", "block_complexity", "prune")}

    def own_next(text):
        return int(np.argmax(scores(model.next_logits(text), len(text), **draw)))

    def ask(text):  # text ends at the last accepted node; its masks propose what comes after the token that follows it
        result = model.logits(np.concatenate([model.embed(text), masks]))[len(text) :]
        temperature = draw.get("temperature", 0.0)
        if temperature:
            result = result / temperature
            if rank_with_noise:
                result = result + np.stack([noise(seed, len(text) + 1 + i, result.shape[1]) for i in range(k)])
        return result

    new, trees, accepted = [own_next(prompt)], [], []
    asked = ask(list(prompt))
    masks = masks + mask_ema * (model.embed(new[-1:]) - masks)
    while len(new) < max_new_tokens and new[-1] not in eos:
        nodes = build_tree(new[-1], asked, **shape)
        trees.append(nodes)
        committed = walk(nodes, [*prompt, *new], own_next)
        accepted.append(len(committed) - 1)
        asked = ask([*prompt, *new, *committed[:-1]])
        for token in committed:
            masks = masks + mask_ema * (model.embed([token]) - masks)
        emit(new, committed, max_new_tokens, eos)
    return new, trees, accepted


def without_padding(nodes):
    """Of a node without a token its place in the list: where it hangs means nothing."""
    return [NO_TOKEN if node[0] == NO_TOKEN else node for node in nodes]


def walk(nodes, text, own_next):
    """The drafts that are the model's own next tokens, one after the other, and the token after them."""
    at, committed = 0, [own_next(text)]
    while True:
        child = [i for i, (token, parent, _) in enumerate(nodes) if parent == at and token == committed[-1]]
        if not child:
            return committed
        at = child[0]
        committed.append(own_next([*text, *committed]))


def emit(new, committed, max_new_tokens, eos):
    for token in committed:
        if len(new) < max_new_tokens and new[-1] not in eos:
            new.append(token)


def ngram_chain(text, *, num_drafts, max_ngram, match):
    """What followed an earlier place of the newest tokens, of as many of them as there is such a place for."""
    for n in range(min(max_ngram, len(text) - 1), 0, -1):
        ends = [end for end in range(n, len(text)) if text[end - n : end] == text[-n:]]
        if ends:
            end = {"recent": max, "first": min}[match](ends)
            return text[end : end + num_drafts]
    return []


def ngram_decode(model, prompt, *, num_drafts, max_ngram, match, max_new_tokens, eos=(), **draw):
    """Prompt lookup for one row.

    Returns:
      Tokens, the tree of each call, the drafts accepted in each call.
    """

    def own_next(text):
        return int(np.argmax(scores(model.next_logits(text), len(text), **draw)))

    new, trees, accepted = [own_next(prompt)], [], []
    while len(new) < max_new_tokens and new[-1] not in eos:
        chain = ngram_chain([*prompt, *new], num_drafts=num_drafts, max_ngram=max_ngram, match=match)
        chain += [NO_TOKEN] * (num_drafts - len(chain))
        trees.append([(new[-1], -1, 0), *((token, i, i + 1) for i, token in enumerate(chain))])
        committed = walk(trees[-1], [*prompt, *new], own_next)
        accepted.append(len(committed) - 1)
        emit(new, committed, max_new_tokens, eos)
    return new, trees, accepted


def successors(logits):
    """The eight best tokens with their log-probabilities, and the smallest gap that decided which they are."""
    order = np.argsort(-logits, kind="stable")
    log_probability = logits - logits.max()
    log_probability = log_probability - np.log(np.exp(log_probability).sum())
    gap = np.min(-np.diff(logits[order[:9]]))
    return [(int(token), float(log_probability[token])) for token in order[:8]], gap


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


def recycle_turns(model, prompt, table, gaps, *, num_nodes, max_depth=None, max_new_tokens, eos=(), **draw):
    """Token Recycling for one row. Yields where rows that share the table wait for each other.

    All learn from their prompts but the last token, all from the last, all draft, all learn from that call, and so on.
    """
    temperature = draw.get("temperature", 0.0) or 1.0

    def own_next(text):
        return int(np.argmax(scores(model.next_logits(text), len(text), **draw)))

    def learn(token, logits):
        table[token], gap = successors(logits / temperature)
        gaps.append(gap)

    after_prompt = model.logits(model.embed(prompt))
    for token, logits in zip(prompt[:-1], after_prompt[:-1], strict=True):
        learn(token, logits)
    yield
    learn(prompt[-1], after_prompt[-1])
    new, trees, accepted = [own_next(prompt)], [], []
    while len(new) < max_new_tokens and new[-1] not in eos:
        yield
        text = [*prompt, *new]
        if num_nodes == "static80":
            nodes = static80_tree(new[-1], table)
        else:
            nodes, gap = best_first_tree(new[-1], table, num_nodes=num_nodes, max_depth=max_depth)
            nodes += [(NO_TOKEN, -1, 0)] * (num_nodes - len(nodes))
            gaps.append(gap)
        trees.append(nodes)
        committed = walk(nodes, text, own_next)
        accepted.append(len(committed) - 1)
        yield
        for (token, _, _), logits in zip(nodes, logits_after_nodes(model, text, nodes), strict=True):
            if token != NO_TOKEN:
                learn(token, logits)
        emit(new, committed, max_new_tokens, eos)
    return new, trees, accepted


def logits_after_nodes(model, text, nodes):
    """Each node's logits, the text and the path to the node in front of it; None for one without a token."""
    logits = [None] * len(nodes)
    for i, (token, _, _) in reversed(list(enumerate(nodes))):  # a run gives those of the nodes above too
        if token != NO_TOKEN and logits[i] is None:
            path = [i]
            while path[0] != 0:
                path.insert(0, nodes[path[0]][1])
            tokens = [*text[:-1], *(nodes[j][0] for j in path)]
            for j, row in zip(path, model.logits(model.embed(tokens))[len(text) - 1 :], strict=True):
                logits[j] = row
    return logits


def recycle_batch(model, prompts, table, row_settings, **settings):
    """Rows that share a table.

    Args:
      table: token -> successors, goes on from what it holds.
      row_settings: for each row what it alone has, such as its seed.

    Returns:
      For each row tokens, the tree of each call, the drafts accepted in each call; the table; and the smallest gap that
      decided a rank or a tree: below rounding's reach it proves nothing.
    """
    table, gaps, results = dict(table), [], {}
    rows = {
        row: recycle_turns(model, prompt, table, gaps, **settings, **own)
        for row, (prompt, own) in enumerate(zip(prompts, row_settings, strict=True))
    }
    while rows:
        for row, turns in list(rows.items()):
            try:
                next(turns)
            except StopIteration as end:
                results[row] = end.value
                del rows[row]
    return [results[row] for row in range(len(prompts))], table, min(gaps)


def recycle_decode(model, prompt, *, table=None, **settings):
    """Token Recycling for one row: its tokens, trees and accepted counts, the table after it, the smallest gap.

    Args:
      table: what a warm run goes on with.
      settings: num_nodes, a number or "static80", max_depth, max_new_tokens, eos and how to draw.
    """
    [row], table, gap = recycle_batch(model, [prompt], table or {}, [settings])
    return *row, table, gap
