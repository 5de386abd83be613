"""A batch whose rows come and go, and what the reference says of its texts."""

import dataclasses

import jax
import numpy as np
import reference

from jax_probe_mtp.decoding import rows
from jax_probe_mtp.decoding.request import idle_request
from jax_probe_mtp.drafting import Merged, Ngram, Probe, Recycle
from support.decoding.batches import batch_of
from support.drafting import merged

EOS, B, S, T, Q = 26, 3, 40, 12, 3  # rows, capacity, padded prompts, calls between two looks
SOURCES = {  # shallow trees: each depth is compiled for itself
    "probe": Probe(widths=(7, 3)),
    "ngram": Ngram(num_drafts=2, max_ngram=3),
    "recycle": Recycle(tree=4),
    "warm": Recycle(tree=4, warm=True),
    "merged": Merged(rows=8, mask_owners=2, depth=3, mask_init="mean"),
}
PROBE_OF_REFERENCE = {
    "tree": (7, 3),
    "num_masks": 2,
    "block_complexity": None,
    "prune": True,
    "mask_init": "mean",
    "mask_offset": 5.0,
}
CUTS = {"temperature": 1.0, "top_k": 40, "top_p": 0.95}
STATIC = ("cfg", "source", "decode_cfg")
jit_empty = jax.jit(rows.empty, static_argnames=STATIC)
jit_admit = jax.jit(rows.admit, static_argnames=STATIC)
jit_run_calls = jax.jit(rows.run_calls, static_argnames=(*STATIC, "num_calls"))


@dataclasses.dataclass(frozen=True, kw_only=True)
class Text:
    """A prompt and how to go on with it."""

    prompt: list[int]
    new: int = 15
    seed: int = 0
    draw: dict = dataclasses.field(default_factory=dict)


A = Text(prompt=[5, 9, 2, 44, 17, 3, 3])
C = Text(prompt=[60, 1, 33, 8], seed=4, draw=CUTS)
D = Text(prompt=[*range(12, 23)], new=18, seed=2**32 - 1, draw={"temperature": 0.7})
LONG = Text(prompt=[60, 1, 33, 8, 60, 1, 33, 8, 60, 1, 33, 8], new=29, seed=9, draw={"temperature": 1.5})  # fills S
GREEDY_LONG = dataclasses.replace(LONG, draw={})


class RowBatch:
    """The functions under test with their arguments; nothing is donated, so that every state can be looked at."""

    def __init__(self, tiny, source, *, is_sampled=True, capacity=S):
        self.tiny, self.source, self.capacity = tiny, SOURCES[source], capacity
        self.is_sampled = is_sampled
        decode_cfg = dataclasses.replace(self.arriving(A).config, has_logprobs=True)
        self.static = {"cfg": tiny.cfg, "source": self.source, "decode_cfg": decode_cfg}
        self.request = idle_request(B, [EOS], is_sampled=is_sampled)
        self.state = jit_empty(tiny.params, self.request, self.source.init_shared(tiny.cfg), **self.static)
        self.texts = [None] * B
        self.reports = []

    def arriving(self, text, slots=T):
        return batch_of(
            self.tiny.cfg,
            self.source,
            [text.prompt],
            max_new_tokens=text.new,
            eos_token_ids=[EOS],
            seeds=[text.seed],
            capacity=self.capacity,
            prompt_slots=slots,
            is_sampled=self.is_sampled,
            **text.draw,
        )

    def put(self, rows, prompt_NT, request):
        args = (prompt_NT, request, np.asarray(rows, np.int32), self.request, self.state)
        self.request, self.state = jit_admit(self.tiny.params, *args, **self.static)

    def admit(self, row, text, slots=T):
        batch = self.arriving(text, slots)
        self.put([row], batch.prompt_BT, batch.request)
        self.texts[row] = text

    def run(self, num_calls=Q, stopped=()):
        is_stopped_B = np.isin(np.arange(B), stopped)
        args = (self.request, self.state, is_stopped_B)
        self.state, report = jit_run_calls(self.tiny.params, *args, **self.static, num_calls=num_calls)
        self.reports.append(report)
        return report

    def run_until_done(self, row):
        while not self.state.is_done_B[row]:
            self.run()

    def new_tokens(self, row):
        return self.slice(self.state.token_BT, row).tolist()

    def slice(self, array_BT, row):
        return np.asarray(array_BT)[row, len(self.texts[row].prompt) : int(self.state.length_B[row]) + 1]

    def outcome(self, row):
        """Everything of a row that a caller sees."""
        return (
            self.new_tokens(row),
            int(self.state.calls_B[row]),
            self.state.accepted_by_depth_BX[row].tolist(),
            self.slice(self.state.logprob_BT, row).view(np.int32).tolist(),  # bit for bit
        )


def copy_of(batch):
    copy = object.__new__(RowBatch)
    copy.__dict__.update(batch.__dict__, texts=list(batch.texts), reports=[])
    return copy


def of_reference(tiny, source, text):
    """Tokens, and the drafts accepted in each call."""
    limits = {"max_new_tokens": text.new, "eos": (EOS,), "seed": text.seed} | text.draw
    plain, gap = reference.plain_decode(tiny.reference, text.prompt, **limits)
    assert gap > 1e-3, "choose another prompt: rounding could decide this one"
    if source == "probe":
        tokens, _, accepted = reference.probe_decode(tiny.reference, text.prompt, PROBE_OF_REFERENCE, **limits)
    elif source == "ngram":
        how = {"num_drafts": 2, "max_ngram": 3, "match": "recent"}
        tokens, _, accepted = reference.ngram_decode(tiny.reference, text.prompt, **how, **limits)
    elif source == "merged":
        tokens, _, accepted, _ = merged.of_reference(SOURCES[source], S)(tiny.reference, text.prompt, **limits)
    else:
        how = {"num_nodes": 4, "max_depth": 3}
        tokens, _, accepted, _, _ = reference.recycle_decode(tiny.reference, text.prompt, **how, **limits)
    assert tokens == plain
    return tokens, accepted


def rows_of(tree):
    """Leaves by name, each with its rows in front; what rows share is left out."""
    leaves = jax.tree_util.tree_leaves_with_path(tree)
    named = {jax.tree_util.keystr(path): np.asarray(leaf) for path, leaf in leaves}
    return {name: leaf for name, leaf in named.items() if leaf.shape[:1] == (B,)}


def bits(array):
    return np.ascontiguousarray(array).tobytes()
