"""The model: NumPy in float64, the whole text through it each time."""

import jax
import numpy as np


class Model:
    """A transformer over float64 copies of the parameters."""

    def __init__(self, params, cfg):
        self.p = jax.tree.map(lambda leaf: np.asarray(leaf, np.float64), params)
        K, G, h = cfg.num_kv_heads, cfg.num_heads // cfg.num_kv_heads, cfg.head_dim
        for layer in self.p["layers"]:  # an index for each head
            layer["qkv"] = layer["qkv"].reshape(-1, K, G + 2, h)
            layer["out"] = layer["out"].reshape(K, G, h, -1)
            if cfg.has_qkv_bias:
                layer["qkv_bias"] = layer["qkv_bias"].reshape(K, G + 2, h)
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
            return np.concatenate([z.real, z.imag], axis=1) * cfg.rope_scale

        def norm(y, weight):
            return y / np.sqrt((y**2).mean(-1, keepdims=True) + cfg.norm_eps) * weight

        for i, layer in enumerate(self.p["layers"]):
            turned = (lambda y: y) if i in cfg.no_rope_layers else turn
            y = norm(x_TD, layer["attn_norm"])
            attended = np.zeros_like(x_TD)
            for kv in range(K):
                heads = [y @ layer["qkv"][:, kv, i] for i in range(G + 2)]
                if cfg.has_qkv_bias:
                    heads = [head + layer["qkv_bias"][kv, n] for n, head in enumerate(heads)]
                *queries, key, value = heads
                if cfg.has_qk_norm:
                    queries = [norm(q, layer["q_norm"]) for q in queries]
                    key = norm(key, layer["k_norm"])
                for g, query in enumerate(queries):
                    score = turned(query) @ turned(key).T / np.sqrt(h)
                    score[np.triu_indices(T, 1)] = -np.inf
                    weight = np.exp(score - score.max(1, keepdims=True))
                    attended += weight / weight.sum(1, keepdims=True) @ value @ layer["out"][kv, g]
            x_TD = x_TD + attended
            y = norm(x_TD, layer["mlp_norm"])
            gate, up = y @ layer["gate"], y @ layer["up"]
            x_TD = x_TD + (gate / (1 + np.exp(-gate)) * up) @ layer["down"]
        return norm(x_TD, self.p["final_norm"]) @ self.p.get("head", self.p["embed"]).T
