"""A row that is given a new text: what its neighbours keep, what it leaves behind, and what a few calls report."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from support.batches import batch_of

from jax_probe_mtp.decoding import rows as row_batch
from jax_probe_mtp.decoding.batch import Request, idle_request
from jax_probe_mtp.drafting import Ngram, Probe, Recycle, recycle

EOS, B, S, T, R = 26, 3, 40, 12, 3  # rows, capacity, padded prompts, calls between two looks
SOURCES = {  # shallow trees: each depth is compiled for itself
    "probe": Probe(widths=(7, 3)),
    "ngram": Ngram(num_drafts=2, max_ngram=3),
    "recycle": Recycle(tree=4),
    "warm": Recycle(tree=4, warm=True),
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
jit_empty = jax.jit(row_batch.empty, static_argnames=STATIC)
jit_admit = jax.jit(row_batch.admit, static_argnames=STATIC)
jit_run_calls = jax.jit(row_batch.run_calls, static_argnames=(*STATIC, "num_calls"))


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


class Batch:
    """The functions under test with their arguments; nothing is donated, so that every state can be looked at."""

    def __init__(self, tiny, source, *, is_sampled=True, capacity=S):
        self.tiny, self.source, self.capacity = tiny, SOURCES[source], capacity
        *_, decode_cfg = self.newcomer(A)
        decode_cfg = dataclasses.replace(decode_cfg, is_sampled=is_sampled, has_logprobs=True)
        self.static = {"cfg": tiny.cfg, "source": self.source, "decode_cfg": decode_cfg}
        table = recycle.empty_table(1, tiny.cfg.vocab_size, self.source) if source == "warm" else None
        self.request = idle_request(B, [EOS], 0.1)
        self.state = jit_empty(tiny.params, self.request, table, **self.static)
        self.texts = [None] * B
        self.reports = []

    def newcomer(self, text, slots=T):
        return batch_of(
            self.tiny.cfg,
            self.source,
            [text.prompt],
            max_new_tokens=text.new,
            eos_token_ids=[EOS],
            seeds=[text.seed],
            capacity=self.capacity,
            prompt_slots=slots,
            **text.draw,
        )

    def put(self, row, prompt_1T, request):
        args = (prompt_1T, request, np.asarray([row], np.int32), self.request, self.state)
        self.request, self.state = jit_admit(self.tiny.params, *args, **self.static)

    def admit(self, row, text, slots=T):
        self.put(row, *self.newcomer(text, slots)[:2])
        self.texts[row] = text

    def run(self, num_calls=R, stopped=()):
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
            self.state.accepted_by_depth_BD[row].tolist(),
            self.slice(self.state.logprob_BT, row).view(np.int32).tolist(),  # bit for bit
        )


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


@pytest.fixture(scope="module")
def busy(tiny):
    """Makes a batch of a source, in the middle of three texts."""

    @functools.cache
    def make(source):
        batch = Batch(tiny, source)
        for row, text in enumerate((A, D, LONG)):
            batch.admit(row, text)
        batch.run()
        assert not np.any(batch.state.is_done_B)
        return batch

    return make


def _copy(batch):
    copy = object.__new__(Batch)
    copy.__dict__.update(batch.__dict__, texts=list(batch.texts), reports=[])
    return copy


@pytest.mark.parametrize("row", range(B))
@pytest.mark.parametrize("source", SOURCES)
def test_a_newcomer_leaves_all_other_rows_bit_for_bit(busy, source, row):
    batch = busy(source)
    after = _copy(batch)
    after.admit(row, C)
    others = [r for r in range(B) if r != row]
    before_rows, after_rows = rows_of((batch.request, batch.state)), rows_of((after.request, after.state))
    num_caches = 2 * batch.tiny.cfg.num_layers
    num_of_source = {"probe": 3, "ngram": 0, "recycle": 2, "warm": 0}[source]
    assert len(before_rows) == 6 + 6 + num_caches + num_of_source, "a leaf without rows is not looked at"
    for name, old in before_rows.items():
        assert bits(old[others]) == bits(after_rows[name][others]), name
    assert after.request.eos_E.tolist() == [EOS]
    assert np.float32(0.1) == after.request.mask_ema

    prompt, state = C.prompt, after.state
    assert state.token_BT[row, : len(prompt)].tolist() == prompt
    assert (int(state.length_B[row]), bool(state.is_done_B[row])) == (len(prompt) - 1, False)
    assert (int(state.calls_B[row]), int(state.accepted_by_depth_BD[row].sum())) == (0, 0)
    assert (after.request.prompt_length_B[row], after.request.max_new_tokens_B[row]) == (len(prompt), C.new)
    drawn = after.request.sampling
    assert (drawn.temperature_B[row], drawn.top_k_B[row], drawn.seed_B[row]) == (1.0, 40, 4)
    assert drawn.top_p_B[row] == np.float32(0.95)


@pytest.mark.parametrize(
    ("source", "has_prompt"),
    [*((source, False) for source in SOURCES), ("probe", True), ("ngram", True), ("recycle", True)],
)
def test_nobody_changes_nothing(busy, source, has_prompt):
    """An idle place, and a prompt that may have no tokens; a shared table would learn from such a prompt."""
    batch = busy(source)
    after = _copy(batch)
    nobody = jnp.zeros((1, T), jnp.int32), idle_request(1, [EOS], 0.1)
    if has_prompt:
        prompt_1T, request, _ = batch.newcomer(C)
        nobody = prompt_1T, request.replace(max_new_tokens_B=jnp.zeros(1, jnp.int32))
    for row in range(B):
        after.put(row, *nobody)
    before_leaves, after_leaves = (jax.tree.leaves((one.request, one.state)) for one in (batch, after))
    for old, new in zip(before_leaves, after_leaves, strict=True):
        assert bits(old) == bits(new)


def test_a_warm_table_goes_on(busy, tiny):
    batch = busy("warm")
    after = _copy(batch)
    after.admit(1, C)
    logits_TV = tiny.reference.logits(tiny.reference.embed(C.prompt)) / C.draw["temperature"]
    learnt = {}
    for token, logits in zip(C.prompt[:-1], logits_TV[:-1], strict=True):
        learnt[token], gap = reference.successors(logits)
        assert gap > 1e-5
    old, new = np.asarray(batch.state.source.id_EVC)[0], np.asarray(after.state.source.id_EVC)[0]
    for token in range(tiny.cfg.vocab_size):
        expected = [successor for successor, _ in learnt[token]] if token in learnt else old[token].tolist()
        assert new[token].tolist() == expected
    assert np.any(old[C.prompt[:-1]] >= 0), "nothing was there to be replaced"
    assert np.sum(np.any(old >= 0, axis=1)) > 20


HOW = [("probe", True), ("ngram", True), ("recycle", True), ("probe", False)]


@pytest.fixture(scope="module", params=HOW, ids=lambda how: how[0] + ("" if how[1] else " greedy program"))
def placed(request, tiny):
    """What one text gives in four places: alone, beside others, elsewhere, and in a row that held a longer text."""
    source, is_sampled = request.param
    long, texts = (LONG, (A, C)) if is_sampled else (GREEDY_LONG, (A,))
    outcomes = {}
    for i, text in enumerate(texts):
        alone = Batch(tiny, source, is_sampled=is_sampled)
        alone.admit(0, text)
        alone.run_until_done(0)

        beside = Batch(tiny, source, is_sampled=is_sampled)
        beside.admit(2, long)
        beside.run()
        beside.admit(0, text)
        beside.admit(1, texts[i - 1])
        beside.run_until_done(0)

        refilled = Batch(tiny, source, is_sampled=is_sampled)
        refilled.admit(1, long)
        refilled.run_until_done(1)
        assert int(refilled.state.length_B[1]) > len(text.prompt) + text.new, "the row held no longer text"
        refilled.admit(0, texts[i - 1])
        refilled.run()
        refilled.admit(1, text)
        refilled.admit(2, long)
        refilled.run_until_done(1)
        outcomes[i] = (
            text,
            {
                "alone": alone.outcome(0),
                "beside": beside.outcome(0),
                "refilled": refilled.outcome(1),
            },
        )
    return source, outcomes


def test_a_text_is_bit_for_bit_the_same_in_any_row_beside_and_after_anything(placed):
    for _, places in placed[1].values():
        assert places["beside"] == places["alone"]
        assert places["refilled"] == places["alone"]


def test_tokens_and_counts_are_the_references(placed, tiny):
    source, outcomes = placed
    for text, places in outcomes.values():
        tokens, accepted = of_reference(tiny, source, text)
        new, calls, by_depth, _ = places["refilled"]
        assert new == tokens
        assert calls == len(accepted)
        assert by_depth == [sum(count > depth for count in accepted) for depth in range(len(by_depth))]
    drafts = sum(sum(places["alone"][2]) for _, places in outcomes.values())
    assert drafts > 0, "no draft was right: choose other texts"


def test_logprobs_are_of_the_models_own_softmax(placed, tiny):
    """Before temperature and cuts, for accepted drafts as for the rest."""
    for text, places in placed[1].values():
        new, _, _, as_bits = places["refilled"]
        logits_TV = tiny.reference.logits(tiny.reference.embed([*text.prompt, *new]))[len(text.prompt) - 1 : -1]
        largest = logits_TV.max(axis=1, keepdims=True)
        log_softmax_TV = logits_TV - largest - np.log(np.exp(logits_TV - largest).sum(axis=1, keepdims=True))
        got = np.asarray(as_bits, np.int32).view(np.float32)
        np.testing.assert_allclose(got, log_softmax_TV[np.arange(len(new)), new], atol=1e-4)
        assert len(new) > 10


def lengths_after_calls(tiny, text):
    """Committed slots after the prefill's call and each of the others, to the end."""
    tokens, accepted = of_reference(tiny, "probe", text)
    lengths = [len(text.prompt)]
    for count in accepted:
        lengths.append(min(lengths[-1] + count + 1, len(text.prompt) + len(tokens) - 1))
    assert lengths[-1] == len(text.prompt) + len(tokens) - 1
    return lengths


@pytest.fixture(scope="module")
def probe_rows(tiny):
    """Rows 0 and 2 with a text before their first call, row 1 empty; and their lengths after each call."""
    batch = Batch(tiny, "probe")
    batch.admit(0, A)
    batch.admit(2, C)
    return batch, {0: lengths_after_calls(tiny, A), 2: lengths_after_calls(tiny, C)}


def _expected_lengths(lengths, first, num_calls):
    num_made = min(num_calls, max(map(len, lengths.values())) - first)
    return [
        [lengths[row][min(i, len(lengths[row]) - 1)] if row in lengths else 0 for i in range(first, first + num_made)]
        + [-1] * (num_calls - num_made)
        for row in range(B)
    ]


def test_reports_say_what_each_call_gave(probe_rows, tiny):
    batch, lengths = probe_rows
    assert len(lengths[0]) != len(lengths[2]), "choose texts of unequal numbers of calls"
    batch, first = _copy(batch), 0
    given = {0: [], 2: []}
    before = {0: len(A.prompt) - 1, 2: len(C.prompt) - 1}
    while first < max(map(len, lengths.values())):
        report = batch.run()
        assert report.length_BK.tolist() == _expected_lengths(lengths, first, R)
        for row in (0, 2):
            num_new = int(report.length_BK[row].max()) - before[row]
            before[row] += num_new
            given[row] += report.token_BL[row, :num_new].tolist()
            place = slice(before[row] - num_new + 1, before[row] + 1)
            assert bits(report.logprob_BL[row, :num_new]) == bits(batch.state.logprob_BT[row, place])
        first += R
        assert report.is_done_B.tolist() == [first >= len(lengths[0]), True, first >= len(lengths[2])]
    assert np.any(report.length_BK == -1), "the last chunk was full: choose another number of calls"
    for row, text in ((0, A), (2, C)):
        tokens, accepted = of_reference(tiny, "probe", text)
        assert given[row] == tokens == batch.new_tokens(row)
        assert report.calls_B[row] == len(accepted)
        assert report.accepted_by_depth_BD[row].tolist() == [sum(n > d for n in accepted) for d in range(2)]

    report = batch.run()  # nobody is left
    assert np.all(np.asarray(report.length_BK) == -1)


def test_chunks_of_one_call_are_one_of_as_many(probe_rows):
    batch, _ = probe_rows
    ones, together = _copy(batch), _copy(batch)
    for _ in range(R):
        ones.run(1)
    together.run(R)
    for one, other in zip(jax.tree.leaves(ones.state), jax.tree.leaves(together.state), strict=True):
        if jnp.issubdtype(one.dtype, jnp.floating):
            np.testing.assert_allclose(one, other, atol=1e-5)
        else:
            np.testing.assert_array_equal(one, other)
    [whole] = together.reports
    np.testing.assert_array_equal(np.concatenate([one.length_BK for one in ones.reports], axis=1), whole.length_BK)
    for row, text in ((0, A), (2, C)):
        lengths, tokens = [len(text.prompt) - 1, *whole.length_BK[row].tolist()], []
        for report, new in zip(ones.reports, np.diff(lengths), strict=True):
            tokens += report.token_BL[row, :new].tolist()
        assert tokens == whole.token_BL[row, : lengths[-1] - lengths[0]].tolist()


def test_a_stopped_row_ends_and_the_others_do_not_notice(probe_rows):
    batch, lengths = probe_rows
    batch = _copy(batch)
    batch.run()
    assert min(map(len, lengths.values())) > 2 * R, "a text ends too soon: choose others"
    going_on, stopped = _copy(batch), _copy(batch)
    free = going_on.run()
    report = stopped.run(stopped=[0])
    assert report.length_BK.tolist() == [[lengths[0][R - 1]] * R, [0] * R, lengths[2][R : 2 * R]]
    assert report.is_done_B.tolist() == [True, True, False]
    assert not free.is_done_B[0]
    assert stopped.outcome(0) == batch.outcome(0)
    assert stopped.outcome(2) == going_on.outcome(2) != batch.outcome(2)
    report = stopped.run(stopped=[2])  # the first one stays stopped, so no call is left to make
    assert report.length_BK.tolist() == [[-1] * R] * B
    assert np.all(report.is_done_B)


def _text_of_full_length(tiny, length, new):
    """The first prompt of this length, of a row of them, whose text does not end before the limit; and that text."""
    for first in range(61):
        text = Text(prompt=[(7 * i + first) % 61 for i in range(length)], new=new, seed=3, draw={"temperature": 0.8})
        limits = {"max_new_tokens": new, "eos": (EOS,), "seed": 3, "temperature": 0.8}
        tokens, gap = reference.plain_decode(tiny.reference, text.prompt, **limits)
        if len(tokens) == new and gap > 1e-3:
            return text, tokens
    raise AssertionError("choose other prompts")


@pytest.mark.parametrize(
    ("length", "new", "slots"), [(S, 1, S + 1), (10, S - 9, S + 1), (12, S - 11, 12), (1, S, T), (1, S, 1)]
)
def test_a_row_may_fill_its_capacity_from_any_prompt(tiny, length, new, slots):
    """The prompt padded to one more than the capacity, not padded, of one token; beside rows that keep what they have."""
    text, tokens = _text_of_full_length(tiny, length, new)
    batch = Batch(tiny, "probe")
    batch.admit(0, A)
    batch.admit(2, C)
    batch.run()
    before = rows_of(batch.state)
    batch.admit(1, text, slots)
    for name, new_leaf in rows_of(batch.state).items():
        assert bits(before[name][[0, 2]]) == bits(new_leaf[[0, 2]]), name
    start, given = length - 1, []
    while not batch.state.is_done_B[1]:
        report = batch.run()  # its last tokens are read next to the end of the array
        num_new = int(report.length_BK[1].max()) - start
        given += report.token_BL[1, :num_new].tolist()
        start += num_new
    assert int(batch.state.length_B[1]) == S
    assert given == tokens == batch.new_tokens(1)
    batch.run_until_done(0)
    batch.run_until_done(2)
    for row, other in ((0, A), (2, C)):
        assert batch.new_tokens(row) == of_reference(tiny, "probe", other)[0]


def test_empty_rows_have_nothing_to_do(tiny):
    batch = Batch(tiny, "probe")
    assert isinstance(batch.request, Request)
    assert np.all(batch.state.is_done_B)
    assert not np.any(batch.state.length_B)
    report = batch.run()
    assert report.length_BK.tolist() == [[-1] * R] * B
    assert report.is_done_B.tolist() == [True] * B
