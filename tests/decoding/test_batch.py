"""A batch: what is refused, in one line with the values, and how the rest is laid out."""

import dataclasses
import hashlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from conftest import BASE
from support.decoding.batches import batch_of

from jax_probe_mtp import Prompt, Settings, decode, make_batch
from jax_probe_mtp.decoding.batch import bucket
from jax_probe_mtp.drafting import DynamicProbe, Plain, Probe, Recycle

PLAIN = Plain()
GOOD = {"max_new_tokens": 4, "eos_token_ids": [2]}


def make(cfg, source, prompts, *, eos_token_ids, rows=None, **settings):
    return make_batch(cfg, source, prompts, Settings(**settings), eos_token_ids=eos_token_ids, rows=rows)


def _name(value):
    return str(value)[:40]


@pytest.mark.parametrize(
    ("prompts", "changes", "says"),
    [
        ([], {}, ["no prompts"]),
        ([[1], []], {}, ["prompt 1 is empty"]),
        ([Prompt(id="a", token_ids=[1]), Prompt(id="b", token_ids=[])], {}, ["prompt b is empty"]),
        ([[5, 61]], {}, ["prompt 0", "61", "0 to 60"]),
        ([[5, -1]], {}, ["prompt 0", "-1", "0 to 60"]),
        ([[5, 1.5]], {}, ["prompt 0", "1.5", "0 to 60"]),
        ([[5]], {"eos_token_ids": [61]}, ["end-of-text id 61", "0 to 60"]),
        ([[5]], {"eos_token_ids": [2**40]}, ["end-of-text id 1099511627776"]),
        ([[5], [6]], {"rows": 1}, ["2 prompts", "1 rows"]),
        ([[5]], {"capacity": 513}, ["capacity 513", "512"]),
        ([[5]], {"prompt_slots": 0}, ["prompt_slots must be 1 to 513", "got 0"]),
        ([[5]], {"logprobs": True, "top_logprobs": 62}, ["top_logprobs (--logprobs K)", "from 0 to 61, got 62"]),
        ([[5]], {"logprobs": True, "top_logprobs": -1}, ["from 0 to 61, got -1"]),
        ([[5]], {"logprobs": True, "top_logprobs": 2.5}, ["a whole number", "got 2.5"]),
        ([[5]], {"logprobs": True, "top_logprobs": True}, ["a whole number", "got True"]),
        ([[5]], {"logprobs": 5}, ["logprobs must be True or False, got 5", "top_logprobs takes a number"]),
        ([[5]], {"top_logprobs": 2}, ["top_logprobs 2 comes with logprobs=True"]),
        ([[5]], {"prompt_slots": 514}, ["prompt_slots must be 1 to 513", "got 514"]),
        ([5, 6], {}, ["each prompt must be a list of token ids, got 5"]),
        (["text"], {}, ["each prompt must be a list of token ids, got 'text'"]),
        ([[1] * 509], {}, ["509 tokens", "4 new", "512", "at most 3 new"]),
        ([[1] * 600], {}, ["600 tokens", "512", "at most 0 new"]),
        ([[1] * 30, [1] * 20], {"capacity": 32}, ["holds 32", "prompt 30 + new 4", "need 33"]),
        ([[1]], {"max_new_tokens": 0}, ["max_new_tokens", "at least 1", "got 0"]),
        ([[1]], {"max_new_tokens": 1.5}, ["max_new_tokens", "whole number", "got 1.5"]),
        ([[1]], {"temperature": -0.5}, ["temperature", "-0.5"]),
        ([[1]], {"temperature": float("nan")}, ["temperature", "nan"]),
        ([[1]], {"temperature": float("inf")}, ["temperature", "inf"]),
        ([[1]], {"top_p": 0.0}, ["top_p", "got 0.0"]),
        ([[1]], {"top_p": 1.5}, ["top_p", "got 1.5"]),
        ([[1]], {"top_p": float("nan")}, ["top_p", "nan"]),
        ([[1]], {"top_k": -1}, ["top_k", "-1"]),
        ([Prompt(id=1, token_ids=[1], seed=2**32)], {}, ["prompt 1 has seed 4294967296", "0 to 2**32 - 1"]),
        ([Prompt(id=0, token_ids=[1], seed=-1)], {}, ["prompt 0 has seed -1"]),
        ([Prompt(id=1, token_ids=[1], top_p=0.0)], {}, ["top_p", "got 0.0"]),  # a prompt's own
    ],
    ids=_name,
)
def test_refuses(prompts, changes, says):
    _assert_refused(PLAIN, prompts, changes, says)


@pytest.mark.parametrize(
    ("probe", "prompts", "says"),
    [
        (
            Probe(widths=(2, 2, 2), mask_init="last_k"),
            [[1, 2, 3], [1, 2]],
            ["prompt 1", "2 tokens are too few", "3 masks"],
        ),
        (Probe(widths=(61,)), [[1]], ["62 candidates", "61 tokens"]),  # one is looked at for pruning
        (Probe(widths=(2, 62), prune=False), [[1]], ["62 candidates", "61 tokens"]),
        (DynamicProbe(rows=124, num_masks=1), [[1]], ["62 candidates", "61 tokens"]),
    ],
    ids=_name,
)
def test_refuses_what_the_probe_cannot_do(probe, prompts, says):
    _assert_refused(probe, prompts, {}, says)


def test_refuses_a_table_of_more_successors_than_tokens():
    small = dataclasses.replace(BASE, vocab_size=7)
    with pytest.raises(ValueError, match="keeps 8 successors of a token, but the vocabulary has 7 tokens"):
        batch_of(small, Recycle(), [[1]], **GOOD)
    batch_of(dataclasses.replace(BASE, vocab_size=8), Recycle(), [[1]], **GOOD)


def _assert_refused(probe, prompts, changes, says):
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as refusal:
        make(BASE, probe, prompts, **(GOOD | changes))
    for part in says:
        assert part in str(refusal.value)


@pytest.mark.parametrize(
    ("probe", "prompts", "changes"),
    [
        (PLAIN, [[0, 60]], {}),
        (PLAIN, [[1] * 508], {}),  # 508 + 4 is the whole context
        (PLAIN, [[1] * 29, [1]], {"capacity": 32}),  # 29 + 4 - 1: the last token needs no slot
        (PLAIN, [[1]], {"seeds": [2**32 - 1], "top_p": 1e-6, "top_k": 10**12, "temperature": 1e-3}),
        (Probe(widths=(2, 2, 2), mask_init="last_k"), [[1, 2, 3]], {}),
        (Probe(widths=(60,)), [[1]], {}),
        (Probe(widths=(61,), prune=False), [[1]], {}),
    ],
    ids=_name,
)
def test_takes_the_last_good_value(probe, prompts, changes):
    request = batch_of(BASE, probe, prompts, **(GOOD | changes)).request
    assert request.prompt_length_B.tolist() == [len(prompt) for prompt in prompts]


def test_a_top_k_beyond_int32_keeps_all_tokens():
    request = batch_of(BASE, PLAIN, [[1]], top_k=10**12, temperature=1.0, **GOOD).request
    assert request.sampling.top_k_B.tolist() == [61]


def test_layout():
    batch = batch_of(
        BASE,
        PLAIN,
        [[5, 6, 7], [8]],
        rows=4,
        max_new_tokens=9,
        eos_token_ids=[2, 3],
        temperature=0.5,
        top_k=10,
        top_p=0.25,
        seeds=[11, 2**32 - 1],
    )
    prompt_BT, request = batch.prompt_BT, batch.request
    assert prompt_BT.shape == (4, 64)
    assert prompt_BT[0].tolist() == [5, 6, 7] + [0] * 61
    assert prompt_BT[1].tolist() == [8] + [0] * 63
    assert not np.any(prompt_BT[2:])
    assert request.prompt_length_B.tolist() == [3, 1, 1, 1]
    assert request.max_new_tokens_B.tolist() == [9, 9, 0, 0]  # no new token: the rows behind the prompts are idle
    assert request.eos_E.tolist() == [2, 3]
    sampling = request.sampling
    assert sampling.temperature_B.tolist() == [0.5, 0.5, 0.0, 0.0]
    assert sampling.top_k_B.tolist() == [10, 10, 0, 0]
    assert sampling.top_p_B.tolist() == [0.25, 0.25, 1.0, 1.0]
    assert sampling.seed_B.tolist() == [11, 2**32 - 1, 0, 0]
    assert sampling.seed_B.dtype == jnp.uint32
    assert request.draw is sampling
    assert batch.config.capacity == 64  # 3 + 9 - 1 fit


@pytest.mark.parametrize(
    ("length", "new", "capacity", "columns"),
    [
        (60, 5, 64, 64),  # 64 slots needed
        (60, 6, 128, 64),  # 65
        (65, 1, 128, 128),
        (300, 10, 512, 512),
    ],
)
def test_capacity_and_columns_are_powers_of_two(length, new, capacity, columns):
    batch = batch_of(BASE, PLAIN, [[1] * length], max_new_tokens=new, eos_token_ids=[])
    assert (batch.config.capacity, batch.prompt_BT.shape[1]) == (capacity, columns)
    assert batch.request.draw is None


def test_a_greedy_batch_is_asked_to_be_of_a_program_that_draws():
    greedy = make_batch(BASE, PLAIN, [[1]], eos_token_ids=[])
    drawn = make_batch(BASE, PLAIN, [[1]], eos_token_ids=[], is_sampled=True)
    assert greedy.request.sampling.temperature_B is None
    assert drawn.request.draw.temperature_B.tolist() == [0.0]
    assert make_batch(BASE, PLAIN, [[1]], Settings(temperature=1e-31), eos_token_ids=[]).request.draw is None


def test_prompts_bring_settings_of_their_own():
    prompts = [
        Prompt(id="a", token_ids=[1], temperature=0.5, top_k=3, max_new_tokens=2),
        Prompt(id="b", token_ids=[2, 3], seed=5, top_p=0.5),
    ]
    request = make_batch(BASE, PLAIN, prompts, Settings(max_new_tokens=9, seed=1), eos_token_ids=[]).request
    assert request.max_new_tokens_B.tolist() == [2, 9]
    draw = request.draw
    assert (draw.temperature_B.tolist(), draw.top_k_B.tolist(), draw.top_p_B.tolist()) == ([0.5, 0], [3, 0], [1, 0.5])
    digest = hashlib.sha256(b"1:a").digest()
    assert draw.seed_B.tolist() == [int.from_bytes(digest[:4], "little"), 5]


def test_a_context_that_is_no_power_of_two_is_used_to_its_end():
    cfg = dataclasses.replace(BASE, context_length=100)
    batch = batch_of(cfg, PLAIN, [[1] * 60], max_new_tokens=40, eos_token_ids=[])
    assert batch.config.capacity == 100
    again = batch_of(cfg, PLAIN, [[1] * 60], max_new_tokens=40, eos_token_ids=[], capacity=100)
    assert (again.config, again.prompt_BT.shape) == (batch.config, (1, 64))


def test_numbers_and_prompts_may_be_numpys():
    prompts = np.array([[1, 2], [3, 4]], np.uint8)
    batch = batch_of(BASE, PLAIN, prompts, **GOOD | {"max_new_tokens": np.int64(4)})
    assert batch.prompt_BT[:, :2].tolist() == prompts.tolist()
    assert batch.request.max_new_tokens_B.tolist() == [4, 4]


@pytest.mark.parametrize("draft", [None, (14,), "probe:14", Probe])
def test_a_draft_is_a_source(draft):
    with pytest.raises(ValueError, match=r"source must be a DraftSource such as Probe\(widths=\(14,\)\), got [^\n]+\Z"):
        batch_of(BASE, draft, [[1]], **GOOD)


def test_columns_never_pass_the_capacity_that_was_given():
    batch = batch_of(BASE, PLAIN, [[1] * 6], max_new_tokens=5, eos_token_ids=[], capacity=10)
    assert (batch.config.capacity, batch.prompt_BT.shape[1]) == (10, 11)  # the prompt and its root's slot


@pytest.mark.parametrize(("size", "holds"), [(1, 64), (64, 64), (65, 128), (128, 128), (129, 256), (4097, 8192)])
def test_bucket(size, holds):
    assert bucket(size) == holds


@pytest.mark.parametrize("over", ["one after the other", "scan", "vmap"])
def test_batches_of_other_lengths_are_one_program_and_go_through_jaxs_transformations(tiny, over):
    """Where capacity and prompt slots are given. Each row has the reference's tokens."""
    source, traces = Probe(widths=(4,)), []
    settings = Settings(max_new_tokens=6, capacity=32, prompt_slots=16)
    prompts = [[[5, 9, 2, 44], [7, 3]], [[11, 8, 30, 4, 17, 6], [2]]]
    batches = [make_batch(tiny.cfg, source, ids, settings, eos_token_ids=()) for ids in prompts]
    together = jax.tree.map(lambda *leaves: np.stack(leaves), *batches)

    def answer(batch):
        traces.append(batch)
        return decode(tiny.params, batch, tiny.cfg, source).token_BT

    if over == "vmap":
        token_NBT = jax.jit(jax.vmap(answer))(together)
    elif over == "scan":
        token_NBT = jax.jit(lambda some: jax.lax.scan(lambda carry, batch: (carry, answer(batch)), None, some)[1])(
            together
        )
    else:
        token_NBT = np.stack([*map(jax.jit(answer), batches)])
        assert len(traces) == 1
    for n, b in np.ndindex(2, 2):
        ids = prompts[n][b]
        expected, gap = reference.plain_decode(tiny.reference, ids, max_new_tokens=6)
        assert gap > 1e-4, "choose another prompt"
        assert token_NBT[n, b, len(ids) : len(ids) + 6].tolist() == expected
