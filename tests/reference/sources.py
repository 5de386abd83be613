"""The draft sources: what each drafts from a text, what it learns of a call.

A source has `read(prompt)`, `draft(text)` and `learn(text, nodes, path, committed)`: the text in front of the call, its
tree, the nodes that were accepted (the root first), the tokens that the call gave.
"""

import itertools

import jax
import numpy as np

from reference.sampling import noise
from reference.trees import NO_TOKEN, best_first_tree, build_tree, static80_tree


class Probe:
    """The method: masks propose what comes after the token that follows the last accepted node."""

    def __init__(self, model, prompt, probe, *, mask_ema=0.1, rank_with_noise=True, owners=None, draw):
        """Begins with the first masks.

        Args:
          probe: a dict of tree, num_masks, block_complexity, prune, mask_init, mask_offset.
          owners: nodes -> indices of those that own masks; None where all do.
        """
        k, self.seed, self.temperature = probe["num_masks"], draw.get("seed", 0), draw.get("temperature", 0.0)
        self.model, self.ema, self.rank_with_noise, self.owners = model, mask_ema, rank_with_noise, owners
        self.shape = {name: probe[name] for name in ("tree", "num_masks", "block_complexity", "prune")}
        self.masks = first_masks(
            model, prompt, init=probe["mask_init"], num_masks=k, offset=probe["mask_offset"], seed=self.seed
        )
        self.asked = None

    def read(self, prompt):
        """Learns nothing of the prompt but from its last token, as from any call."""

    def draft(self, text):
        if self.asked is None:
            return [(text[-1], -1, 0)]
        return build_tree(text[-1], self.asked, **self.shape)

    def learn(self, text, nodes, path, committed):
        has_masks = self.owners is None or path[-1] in self.owners(nodes)
        self.asked = self.ask([*text, *committed[:-1]]) if has_masks else None
        for token in committed:
            self.masks = self.masks + self.ema * (self.model.embed([token]) - self.masks)

    def ask(self, text):
        """What the masks of the last accepted node, with which the text ends, score."""
        result = self.model.logits(np.concatenate([self.model.embed(text), self.masks]))[len(text) :]
        if self.temperature:
            result = result / self.temperature
        self.log_probabilities = log_softmax(result)
        if self.temperature and self.rank_with_noise:
            drawn = [noise(self.seed, len(text) + 1 + i, result.shape[1]) for i in range(len(result))]
            result = result + np.stack(drawn)
        return result


def log_softmax(logits):
    above = logits - logits.max(-1, keepdims=True)
    return above - np.log(np.exp(above).sum(-1, keepdims=True))


def first_masks(model, prompt, *, init, num_masks, offset, seed):
    embeddings, table = model.embed(prompt), model.p["embed"]
    if not isinstance(init, str):  # tuned masks
        return np.asarray(init, np.float64)
    if init == "mean":
        return np.repeat(embeddings.mean(0)[None], num_masks, 0)
    if init == "last_k":
        return embeddings[len(prompt) - num_masks :]
    if init == "offset":
        return np.repeat((table.mean(0) + offset * table.std(0))[None], num_masks, 0)
    if init == "vocabulary":
        return np.repeat(table.mean(0)[None], num_masks, 0)
    if init == "zero":
        return np.zeros((num_masks, table.shape[1]))
    key = jax.random.key(seed, impl="threefry2x32")
    draw = np.asarray(jax.random.normal(key, (num_masks, table.shape[1]), np.float32), np.float64)
    return table.mean(0) + table.std(0) * draw


def chosen_mask(model, prompt, tried):
    """The (init, lambda) of `tried` that guesses best in the prompt itself, by a loop over places, and each one's lead.

    A mask is what it would be after 32 tokens of decoding; a place counts 40 / (40 + rank); another than the first must be
    better by 1.3 standard errors.
    """
    places = [t for t in range(len(prompt) - 32, len(prompt) - 2) if t >= 0]
    if len(places) < 15:
        return tried[0], None
    scores = np.zeros((len(places), len(tried)))
    for (row, t), (column, (init, ema)) in itertools.product(enumerate(places), enumerate(tried)):
        mask = first_masks(model, prompt, init=init, num_masks=1, offset=0.0, seed=0)
        for token in prompt[max(0, t - 31) : t + 1]:
            mask = mask + ema * (model.embed([token]) - mask)
        logits = model.logits(np.concatenate([model.embed(prompt[: t + 1]), mask]))[-1]
        scores[row, column] = 40 / (40 + np.sum(logits > logits[prompt[t + 2]]))
    more = scores - scores[:, :1]
    lead = more.mean(0) - 1.3 * more.std(0) / np.sqrt(len(places))
    return tried[int(np.argmax(lead))], lead


class Ngram:
    """Prompt lookup: the text itself is all that it knows."""

    def __init__(self, *, num_drafts, max_ngram, match):
        self.num_drafts = num_drafts
        self.rule = {"num_drafts": num_drafts, "max_ngram": max_ngram, "match": match}

    def read(self, prompt):
        pass

    def draft(self, text):
        chain = ngram_chain(text, **self.rule)
        chain += [NO_TOKEN] * (self.num_drafts - len(chain))
        return [(text[-1], -1, 0), *((token, i, i + 1) for i, token in enumerate(chain))]

    def learn(self, text, nodes, path, committed):
        pass


def ngram_chain(text, *, num_drafts, max_ngram, match):
    """What followed an earlier place of the newest tokens, of as many of them as there is such a place for."""
    for n in range(min(max_ngram, len(text) - 1), 0, -1):
        ends = [end for end in range(n, len(text)) if text[end - n : end] == text[-n:]]
        if ends:
            end = {"recent": max, "first": min}[match](ends)
            return text[end : end + num_drafts]
    return []


class Recycle:
    """Token Recycling: a table of the best successors, of one row or of several.

    Attributes:
      gaps: those that decided a rank or a tree: below rounding's reach they prove nothing.
    """

    def __init__(self, model, table, *, num_nodes, max_depth=None, temperature=0.0):
        self.model, self.table, self.temperature = model, table, temperature or 1.0
        self.num_nodes, self.max_depth, self.gaps = num_nodes, max_depth, []

    def read(self, prompt):
        for token, logits in zip(prompt[:-1], self.model.logits(self.model.embed(prompt))[:-1], strict=True):
            self.keep(token, logits)

    def draft(self, text):
        if self.num_nodes == "static80":
            return static80_tree(text[-1], self.table)
        nodes, gap = best_first_tree(text[-1], self.table, num_nodes=self.num_nodes, max_depth=self.max_depth)
        self.gaps.append(gap)
        return nodes + [(NO_TOKEN, -1, 0)] * (self.num_nodes - len(nodes))

    def learn(self, text, nodes, path, committed):
        for (token, _, _), logits in zip(nodes, logits_after_nodes(self.model, text, nodes), strict=True):
            if token != NO_TOKEN:
                self.keep(token, logits)

    def keep(self, token, logits):
        self.table[token], gap = successors(logits / self.temperature)
        self.gaps.append(gap)


def successors(logits):
    """The eight best tokens with their log-probabilities, and the smallest gap that decided which they are."""
    order = np.argsort(-logits, kind="stable")
    log_probability = logits - logits.max()
    log_probability = log_probability - np.log(np.exp(log_probability).sum())
    gap = np.min(-np.diff(logits[order[:9]]))
    return [(int(token), float(log_probability[token])) for token in order[:8]], gap


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
