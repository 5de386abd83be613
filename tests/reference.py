"""The method written a second time, slowly: NumPy in float64, no cache, no batch, no masks; one row, plain Python lists.

Every call reruns the model over the whole text. What a mask sees is spelled out by running it: the text up to its owner,
then masks 1..i, plainly causal. Trees are lists of dicts. Nothing here imports the code under test.
"""

import jax
import numpy as np


class Model:
    """A transformer over float64 copies of the parameters."""

    def __init__(self, params, cfg):
        self.p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
        self.cfg = cfg

    def embed(self, ids):
        return self.p["embed"][np.asarray(ids, int)]

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
        score = scores(model.logits(model.embed(text))[-1], len(text), **draw)
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
        return int(np.argmax(scores(model.logits(model.embed(text))[-1], len(text), **draw)))

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
        text, at, count = [*prompt, *new], 0, 0
        committed = [own_next(text)]
        while True:
            child = [i for i, (token, parent, _) in enumerate(nodes) if parent == at and token == committed[-1]]
            if not child:
                break
            at, count = child[0], count + 1
            text.append(committed[-1])
            committed.append(own_next(text))
        accepted.append(count)
        asked = ask(text)
        for token in committed:
            masks = masks + mask_ema * (model.embed([token]) - masks)
            if len(new) < max_new_tokens and new[-1] not in eos:
                new.append(token)
    return new, trees, accepted
