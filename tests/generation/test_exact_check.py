"""The exact mode: no bit of logits, keys or values depends on accepted drafts, in any dtype; in slot order it does."""

import dataclasses
import functools

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from checkpoints import EOS, make_checkpoint
from support.decoding.batches import batch_of

from jax_probe_mtp import Prompt, Settings
from jax_probe_mtp.decoding.block import absolute_tail
from jax_probe_mtp.decoding.config import DecodeConfig
from jax_probe_mtp.decoding.loop import prefill, run_steps
from jax_probe_mtp.decoding.request import NO_LIMIT
from jax_probe_mtp.decoding.step import run_block
from jax_probe_mtp.drafting import DynamicProbe, Merged, Ngram, Probe, Recycle
from jax_probe_mtp.generation import exact_check
from jax_probe_mtp.generation.decoder import Decoder
from jax_probe_mtp.generation.programs import Programs
from jax_probe_mtp.generation.scheduler import ContinuousDecoder
from jax_probe_mtp.model.logits import Logits

pytestmark = pytest.mark.full_compile

PROMPTS = [[5, 9, 2, 44, 17, 3, 3], [60, 1, 33, 8], [12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22]]
SEEDS = [7, 2**32 - 1, 5]
NEW_TOKENS, CAPACITY = 24, 48
DRAWN = {"temperature": 1.0, "top_k": 40, "top_p": 0.95}
CASES = {
    "probe-7": (Probe(widths=(7,)), {}),
    "probe-dynamic-drawn": (DynamicProbe(rows=30, num_masks=2), DRAWN),
    "recycle-12": (Recycle(tree=12), {}),
    "merged-16": (Merged(rows=16, mask_owners=3, mask_init="mean"), {}),
    "ngram-drawn": (Ngram(num_drafts=5, max_ngram=2), DRAWN),
}
DTYPES = ("float32", "bfloat16")


def of_dtype(tiny, dtype):
    return jax.tree.map(lambda leaf: leaf.astype(dtype), tiny.params)


@functools.cache
def program(cfg, source, decode_cfg, dtype):
    """Makes prefill and loop one program: another limit of accepted drafts compiles no other one."""
    chex.clear_trace_counter()  # it takes all functions of one source code for one

    @chex.assert_max_traces(n=1)
    def run(params, prompt_BT, request):
        state = prefill(params, prompt_BT, request, cfg, source, decode_cfg)
        return run_steps(params, request, state, cfg, source, decode_cfg)

    return jax.jit(run)


def decode_twice(tiny, dtype, case, *, is_exact):
    """Gives the states at the end, without and with accepted drafts, of the same executable."""
    source, draw = CASES[case]
    sizes = {"max_new_tokens": NEW_TOKENS, "eos_token_ids": [], "seeds": SEEDS, "capacity": CAPACITY}
    batch = batch_of(tiny.cfg, source, PROMPTS, is_exact=is_exact, logprobs=True, **sizes, **draw)
    run = program(tiny.cfg, source, dataclasses.replace(batch.config, attention="plain"), dtype)
    params, request = of_dtype(tiny, dtype), batch.request
    states = [run(params, batch.prompt_BT, request.replace(max_accept=np.int32(n))) for n in (0, NO_LIMIT)]
    return jax.device_get(states)


def bits(array):
    return np.ascontiguousarray(array).tobytes()


def differing(plain, drafted):
    """What has other bits: tokens, log-probabilities, keys and values of the committed slots, row by row."""
    found = set()
    for row, prompt in enumerate(PROMPTS):
        length = len(prompt) + NEW_TOKENS - 1
        assert plain.length_B[row] == drafted.length_B[row] == length
        new = slice(len(prompt), length + 1)
        for name in ("token_BT", "logprob_BT"):
            if bits(getattr(plain, name)[row, new]) != bits(getattr(drafted, name)[row, new]):
                found.add(name)
        for name in ("k", "v"):
            pairs = zip(getattr(plain.cache, name), getattr(drafted.cache, name), strict=True)
            if any(bits(a[row, :, :length]) != bits(b[row, :, :length]) for a, b in pairs):
                found.add(name)
    return found


@pytest.mark.parametrize(
    ("case", "dtype"),
    [*((case, "float32") for case in CASES), ("probe-dynamic-drawn", "bfloat16"), ("merged-16", "bfloat16")],
)
def test_accepted_drafts_change_no_bit(tiny, case, dtype):
    plain, drafted = decode_twice(tiny, dtype, case, is_exact=True)
    assert differing(plain, drafted) == set()
    assert plain.accepted_by_depth_BX.sum() == 0
    assert plain.calls_B.tolist() == [NEW_TOKENS - 1] * 3
    assert drafted.accepted_by_depth_BX.sum() > 0, "no draft was ever right: this proves nothing"
    assert drafted.calls_B.sum() < plain.calls_B.sum()


def test_slot_order_does_change_bits(tiny):
    plain, drafted = decode_twice(tiny, "float32", "recycle-12", is_exact=False)
    assert {"k", "v", "logprob_BT"} <= differing(plain, drafted)


def test_float32_tokens_are_the_references(tiny):
    for case, (_, draw) in CASES.items():
        for state in decode_twice(tiny, "float32", case, is_exact=True):
            for row, prompt in enumerate(PROMPTS):
                row_draw = {"temperature": 0.0} | draw | {"seed": SEEDS[row]}
                expected, gap = reference.plain_decode(tiny.reference, prompt, max_new_tokens=NEW_TOKENS, **row_draw)
                assert gap > 1e-3, "choose another prompt: rounding could decide this one"
                assert state.token_BT[row, len(prompt) :][:NEW_TOKENS].tolist() == expected


def test_a_limit_between_none_and_all(tiny):
    """Of a tree of depth 2 a call may accept one draft: fewer calls than plainly, more than freely."""
    source, _ = CASES["recycle-12"]
    sizes = {"max_new_tokens": NEW_TOKENS, "eos_token_ids": [], "capacity": CAPACITY}
    results = {}
    for limit in (0, 1, None):
        batch = batch_of(tiny.cfg, source, PROMPTS, max_accept=limit, **sizes)
        run = program(tiny.cfg, source, batch.config, "float32")
        results[limit] = run(tiny.params, batch.prompt_BT, batch.request)
    accepted = {limit: np.asarray(state.accepted_by_depth_BX).sum(0) for limit, state in results.items()}
    assert accepted[0].tolist() == [0] * 6
    assert accepted[1][0] > 0
    assert accepted[1][1:].sum() == 0 < accepted[None][1:].sum()
    tokens = [np.asarray(state.token_BT)[:, : 11 + NEW_TOKENS].tolist() for state in results.values()]
    for row, prompt in enumerate(PROMPTS):
        assert len({tuple(each[row][: len(prompt) + NEW_TOKENS]) for each in tokens}) == 1
    with pytest.raises(ValueError, match="max_accept must be at least 0, which is plain decoding, got -1"):
        batch_of(tiny.cfg, source, PROMPTS, max_accept=-1, **sizes)


def test_the_tail_of_a_drawn_block():
    """Root at position 11 with a chain of two below it, W = 4, the block from slot 20 on: rows at 11, 12, 13."""
    is_visible = jnp.asarray([np.tril(np.ones((3, 3), bool))])
    tail = absolute_tail(is_visible, jnp.asarray([[11, 12, 13]]), jnp.asarray([11]), 20, window=4)
    anchor, slot, is_read = tail.values()
    assert anchor.tolist() == [[7, 8, 9]]
    where = [
        [s if r else None for s, r in zip(*row, strict=True)]
        for row in zip(slot[0].tolist(), is_read[0].tolist(), strict=True)
    ]
    assert where == [
        [7, 8, 9, 10, 20],
        [8, 9, 10, 20, 21],
        [9, 10, 20, 21, 22],
    ]


def test_siblings_read_their_own_path():
    """0 with children 1 and 2, 3 below 2; a root at position 0."""
    is_visible = jnp.asarray([[[1, 0, 0, 0], [1, 1, 0, 0], [1, 0, 1, 0], [1, 0, 1, 1]]], bool)
    tail = absolute_tail(is_visible, jnp.asarray([[0, 1, 1, 2]]), jnp.asarray([0]), 9, window=2)
    _, slot, is_read = tail.values()
    read = [
        [s for s, r in zip(*row, strict=True) if r] for row in zip(slot[0].tolist(), is_read[0].tolist(), strict=True)
    ]
    assert read == [[9], [9, 10], [9, 11], [9, 11, 12]]


@pytest.fixture(scope="module")
def checkpoints(tiny):
    return {dtype: dataclasses.replace(make_checkpoint(tiny), params=of_dtype(tiny, dtype)) for dtype in DTYPES}


@pytest.mark.parametrize(
    ("dtype", "source", "rows"),
    [("float32", Probe(widths=(5, 2)), 1), ("bfloat16", Probe(widths=(7,)), 3)],
    ids=["float32", "bfloat16"],
)
def test_the_self_test_tells_the_two_apart(checkpoints, dtype, source, rows):
    checkpoint = checkpoints[dtype]
    programs = Programs(checkpoint, source)

    def check(is_exact):
        decode_cfg = DecodeConfig(capacity=CAPACITY, attention="plain", is_exact=is_exact)
        return exact_check.check(programs, checkpoint, source, decode_cfg, rows)

    N, D = source.num_nodes, source.max_depth
    # Three lengths; of a row D + 1 roots, and in the call with drafts of depth d all nodes from d on.
    assert check(is_exact=True) == 3 * rows * (D + 1 + sum(N - d for d in range(1, D + 1)))
    assert check(is_exact=True) == 0  # known already
    if dtype == "float32":
        with pytest.raises(
            ValueError, match=r"^not exact on this device: \d+ of \d+ rows of logits .* leave --exact out"
        ):
            check(is_exact=False)
    small = DecodeConfig(capacity=1, is_exact=True)  # no room for a draft: the test makes some
    assert exact_check.check(programs, checkpoint, source, small, rows) > 0


def test_one_row_of_logits_that_differs_is_enough(checkpoints, monkeypatch):
    checkpoint, (source, _) = checkpoints["float32"], CASES["probe-7"]

    def run_badly(*args):
        logits, cache = run_block(*args)
        place = 1, source.num_nodes - 1, 17
        return Logits.of(logits.part_Xv.at[place].multiply(1 + 2**-20)), cache

    monkeypatch.setattr(exact_check, "run_block", run_badly)
    decode_cfg = DecodeConfig(capacity=CAPACITY, is_exact=True)
    with pytest.raises(ValueError, match=r"^not exact on this device: 3 of 54 rows of logits"):  # one at each length
        exact_check.check(Programs(checkpoint, source), checkpoint, source, decode_cfg, 2)


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_stream_is_exact_beside_any_neighbours(checkpoints, dtype):
    """Nine records through three rows: plainly, with drafts, and with drafts in another order."""
    source, _ = CASES["probe-7"]
    prompts = [Prompt(id=i, token_ids=[(7 * i) % 57, i, 3], temperature=i % 2 * 0.8) for i in range(9)]
    decoder = Decoder(checkpoints[dtype], source)
    settings = Settings(max_new_tokens=20, batch_size=3, capacity=CAPACITY, is_exact=True, logprobs=True)

    def answers(prompts, **more):
        got = decoder.run(prompts, dataclasses.replace(settings, **more))
        return {answer.id: (answer.token_ids, answer.logprobs, answer.calls) for answer in got}

    plain, drafted, turned = answers(prompts, max_accept=0), answers(prompts), answers(prompts[::-1])
    assert {name: answer[:2] for name, answer in drafted.items()} == {
        name: answer[:2] for name, answer in plain.items()
    }
    assert turned == drafted
    assert sum(answer[2] for answer in drafted.values()) < sum(answer[2] for answer in plain.values())
    assert len(decoder.groups.programs[0]) == 4, "empty, admit, run_calls and the self-test's; one more was compiled"


def test_a_run_that_would_not_be_exact_does_not_begin(checkpoints, monkeypatch):
    def refuse(*_):
        raise ValueError("not exact")

    monkeypatch.setattr(exact_check, "check", refuse)
    source, _ = CASES["probe-7"]
    settings = Settings(max_new_tokens=4, capacity=CAPACITY)
    made = {
        is_exact: ContinuousDecoder(
            checkpoints["float32"],
            source,
            dataclasses.replace(settings, is_exact=is_exact),
            capacity=CAPACITY,
            is_sampled=False,
        )
        for is_exact in (False, True)
    }
    items = [(0, Prompt(id=0, token_ids=[EOS + 1]))]
    assert sum(len(update.finished) for update in made[False].run(items)) == 1
    with pytest.raises(ValueError, match="not exact"):
        next(made[True].run(items))
