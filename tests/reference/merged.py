"""The merged draft: tables as dictionaries, the tree found one node at a time, weights learned a call at a time."""

import heapq
import math

import numpy as np

from reference.sources import logits_after_nodes, successors
from reference.trees import NO_TOKEN

LENGTHS = (1, 2, 3, 4, 6, 9)
MASK_CANDIDATES = 24
NAMES = (
    "successor rank, pair unknown",
    "successor rank, pair known",
    "successor bucket",
    "pair rank",
    "pair bucket",
    "mask rank",
    "mask bucket",
    "match, newest",
    "match, older",
    "longer match of another",
    "depth",
    "successor bucket, mask rank",
    "pair bucket, match",
)


class Learned:
    """Tables and weights: of one row, or of several.

    Attributes:
      token, pair, ngram: (length,) place -> (key, value).
      gradient: of the call that is going on; it is applied before the next tree.
    """

    def __init__(self, weights, *, tokens, pairs, ngrams):
        self.sizes = {"token": tokens, "pair": pairs, "ngram": ngrams}
        self.token, self.pair, self.ngram = {}, {}, {}
        self.weights = {name: [float(x) for x in np.float32(weights[name])] for name in NAMES}
        self.squares = {name: [20.0] * len(weights[name]) for name in NAMES}
        self.gradient = {name: [0.0] * len(weights[name]) for name in NAMES}

    @staticmethod
    def sizes_of_row(capacity, vocab_size):
        slots, ids = (2 ** math.ceil(math.log2(least)) for least in (max(capacity, 1024), vocab_size))
        return {"tokens": min(8 * slots, ids), "pairs": 32 * slots, "ngrams": 2 * slots}

    def keep(self, before, token, listed):
        self.token[token % self.sizes["token"]] = (token, listed)
        if before is not None:
            self.pair[place_of([before, token]) % self.sizes["pair"]] = ((before, token), listed)

    def keep_ngrams(self, text, token):
        for n in LENGTHS:
            if len(text) >= n:
                key = tuple(text[-n:])
                place = n, place_of(key) % self.sizes["ngram"]
                old_key, old = self.ngram.get(place, (None, []))
                others = [t for t in old if t != token] if old_key == key else []
                self.ngram[place] = (key, [token, *others][:3])

    def after_token(self, token):
        key, listed = self.token.get(token % self.sizes["token"], (None, []))
        return listed if key == token else []

    def after_pair(self, text):
        if len(text) < 2:
            return []
        key, listed = self.pair.get(place_of(text[-2:]) % self.sizes["pair"], (None, []))
        return listed if key == tuple(text[-2:]) else []

    def matches(self, text):
        """Token -> number of the longest n-gram that it followed, and its place among those that did, the newest first."""
        found = {}
        for number, n in enumerate(LENGTHS, start=1):
            if len(text) >= n:
                key, tokens = self.ngram.get((n, place_of(text[-n:]) % self.sizes["ngram"]), (None, []))
                if key == tuple(text[-n:]):
                    found |= {token: (number, place) for place, token in enumerate(tokens)}
        return found

    def total(self, known):
        whole = sum(round(self.weights[name][known[name]] * 64) for name in NAMES)
        return max(-768, min(768, whole))

    def add(self, known, accepted):
        error = accepted - 1 / (1 + math.exp(-self.total(known) / 64))
        for name in NAMES:
            self.gradient[name][known[name]] -= error

    def step(self):
        """AdaGrad."""
        for name in NAMES:
            for i, gradient in enumerate(self.gradient[name]):
                self.squares[name][i] += gradient**2
                self.weights[name][i] -= 0.1 * gradient / math.sqrt(self.squares[name][i] + 1e-7)
                self.gradient[name][i] = 0.0


def place_of(tokens):
    """The place of an n-gram: one token after the other, the newest first."""
    hashed = 0
    for token in reversed(tokens):
        hashed = ((hashed ^ token) * 0x9E3779B1) % 2**32
        hashed ^= hashed >> 16
    return hashed


class Merged:
    """One row.

    Args:
      probe: a `Probe` of one mask, or None; whether a node owned a mask is asked of `owners`.
      learned: what it learns, perhaps with others.

    Attributes:
      gaps: those that decided a rank or a bucket: below rounding's reach they prove nothing.
    """

    def __init__(self, model, learned, *, rows, mask_owners, probe, max_depth=8, temperature=0.0):
        self.model, self.learned, self.probe = model, learned, probe
        self.num_nodes, self.mask_owners = rows - mask_owners, mask_owners
        self.max_depth, self.temperature, self.gaps = min(max_depth, self.num_nodes - 1), temperature or 1.0, []
        if probe:
            probe.owners = lambda nodes: self.owners()

    def read(self, prompt):
        for i in range(1, len(prompt)):
            self.learned.keep_ngrams(prompt[:i], prompt[i])
        after = self.model.logits(self.model.embed(prompt))[:-1]
        for i, logits in enumerate(after):
            self.learned.keep(prompt[i - 1] if i else None, prompt[i], self.listed(logits))

    def listed(self, logits):
        """The eight best tokens, each with its log-probability's bucket."""
        best, gap = successors(logits / self.temperature)
        self.gaps.append(gap)
        return [(token, self.bucket(score, 0.3)) for token, score in best]

    def bucket(self, score, width):
        at = math.sqrt(-score) / width
        if at < 7.5:
            self.gaps.append(abs(at - round(at)))
        return min(7, math.floor(at))

    def draft(self, text):
        self.learned.step()
        self.nodes, self.known, self.costs, heap = [(text[-1], NO_TOKEN, 0)], [None], [0], []

        def push_children(parent, path):
            _, _, depth = self.nodes[parent]
            if depth < self.max_depth:
                for token, known in self.candidates([*text, *path], depth).items():
                    step = round(math.log1p(math.exp(-self.learned.total(known) / 64)) * 64)
                    entry = self.costs[parent] + step, depth + 1, parent, token
                    heapq.heappush(heap, (*entry, tuple(known.items()), path))

        push_children(0, [])
        while heap and len(self.nodes) < self.num_nodes:
            cost, depth, parent, token, known, path = heapq.heappop(heap)
            self.nodes.append((token, parent, depth))
            self.known.append(dict(known))
            self.costs.append(cost)
            push_children(len(self.nodes) - 1, [*path, token])
        self.nodes += [(NO_TOKEN, 0, 0)] * (self.num_nodes - len(self.nodes))
        return self.nodes

    def candidates(self, text, depth):
        """Each token that may follow, with all that is known of it."""
        after_token, after_pair = (
            {token: (rank, bucket) for rank, (token, bucket) in enumerate(listed)}
            for listed in (self.learned.after_token(text[-1]), self.learned.after_pair(text))
        )
        matched, guessed = self.learned.matches(text), {}  # token -> rank, bucket
        has_mask = depth == 0 and self.probe is not None and self.probe.asked is not None
        if has_mask:
            order = [int(t) for t in np.argsort(-self.probe.asked[0], kind="stable") if t != text[-1]]
            scores = self.probe.log_probabilities[0]
            guessed = {t: (rank, self.bucket(scores[t], 0.4)) for rank, t in enumerate(order[:MASK_CANDIDATES])}
        result = {}
        for token in [*after_token, *after_pair, *matched, *guessed]:
            rank, bucket = after_token.get(token, (8 if after_token else 9, 8))
            pair_rank, pair_bucket = after_pair.get(token, (8 if after_pair else 9, 8))
            match, place = matched.get(token, (0, 0))
            longest = max((number for number, _ in matched.values()), default=0)
            known = result[token] = {
                "successor rank, pair unknown": 10 if after_pair else rank,
                "successor rank, pair known": rank if after_pair else 10,
                "successor bucket": bucket,
                "pair rank": pair_rank,
                "pair bucket": pair_bucket,
                "mask rank": min(5, guessed[token][0].bit_length()) if token in guessed else 6 if has_mask else 7,
                "mask bucket": guessed[token][1] if token in guessed else 8,
                "match, newest": match if place == 0 else 0,
                "match, older": match if place > 0 else 0,
                "longer match of another": longest if longest > match else 0,
                "depth": depth,
            }
            known["successor bucket, mask rank"] = 8 * bucket + known["mask rank"]
            known["pair bucket, match"] = 7 * pair_bucket + known["match, newest"]
        return result

    def owners(self):
        """The nodes where the walk most likely ends."""
        share = [
            -1 if token == NO_TOKEN else round(math.exp(-cost / 64) * 2**20)
            for (token, _, _), cost in zip(self.nodes, [*self.costs, *[0] * len(self.nodes)], strict=False)
        ]
        ends = share[:]
        for (token, parent, _), part in zip(self.nodes[1:], share[1:], strict=True):
            if token != NO_TOKEN:
                ends[parent] -= part
        return sorted(range(len(ends)), key=lambda i: (-ends[i], i))[: self.mask_owners]

    def learn(self, text, nodes, path, committed):
        if len(nodes) == 1:  # the call of the last prompt token
            self.nodes, self.known, self.costs = [*nodes, *[(NO_TOKEN, 0, 0)] * (self.num_nodes - 1)], [None], [0]
        logits = logits_after_nodes(self.model, text, nodes)
        for i, (token, parent, _) in enumerate(nodes):
            if i and token != NO_TOKEN and parent in path:
                self.learned.add(self.known[i], float(i in path))
        off_path = [i for i in range(len(nodes)) if i not in path]
        for i in [*off_path, *path]:
            token, parent, _ = nodes[i]
            if token != NO_TOKEN:
                before = nodes[parent][0] if i else text[-2] if len(text) > 1 else None
                self.learned.keep(before, token, self.listed(logits[i]))
        for i, token in enumerate(committed):
            self.learned.keep_ngrams([*text, *committed[:i]], token)
        if self.probe:
            self.probe.learn(text, self.nodes, path, committed)
