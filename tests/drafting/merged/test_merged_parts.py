"""The parts of a merged draft alone: facts, kinds, keys, and tables that long prompts and colliding keys fill."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from conftest import BASE
from hypothesis import given, settings
from hypothesis import strategies as st
from support.decoding.batches import batch_of

from jax_probe_mtp.decoding.config import DecodeConfig
from jax_probe_mtp.decoding.loop import prefill
from jax_probe_mtp.drafting import Merged
from jax_probe_mtp.drafting.merged import learned, memory
from jax_probe_mtp.drafting.merged.facts import Facts
from jax_probe_mtp.drafting.merged.grow import kind_of
from jax_probe_mtp.drafting.merged.keys import CONTEXT, LENGTHS, keys_of
from jax_probe_mtp.drafting.merged.memory import Sizes, empty_memory, pack, unpack
from jax_probe_mtp.drafting.shown import Prompts

jit_prefill = jax.jit(prefill, static_argnames=("cfg", "source", "decode_cfg"))
UNKNOWN = {
    "successor_rank": 8,
    "successor_bucket": 0,
    "pair_rank": 9,
    "pair_bucket": 0,
    "mask_rank": 6,
    "mask_bucket": 0,
    "match": 0,
    "match_age": 0,
    "best_match": 5,
    "depth": 7,
}
MOST = UNKNOWN | {
    "successor_bucket": 7,
    "pair_bucket": 7,
    "mask_rank": 7,
    "mask_bucket": 7,
    "match": 6,
    "best_match": 6,
}
MOST |= {"match_age": 2}


def note(**known):
    return Facts(**{name: jnp.int32(value) for name, value in (UNKNOWN | known).items()}).pack()


def test_facts_come_out_as_they_went_in():
    for known in (UNKNOWN, MOST, dict.fromkeys(UNKNOWN, 0)):
        assert {name: int(value) for name, value in vars(Facts.unpack(note(**known))).items()} == known


@pytest.mark.parametrize(
    ("known", "kind"),
    [
        ({"successor_rank": 7}, 0),
        ({"pair_rank": 0}, 1),
        ({"match": 1}, 2),
        ({"mask_rank": 5}, 3),
        ({"mask_rank": 0, "pair_rank": 7}, 4),
        ({"match": 6, "successor_rank": 0, "pair_rank": 3, "mask_rank": 1}, 4),
    ],
    ids=str,
)
def test_a_kind_is_the_source_that_alone_knew_a_draft(known, kind):
    assert int(kind_of(note(**known))) == kind


def test_successors_keep_their_ids_and_the_buckets_of_their_probabilities():
    """Bucket i begins where the root of -log P is 0.3 i."""
    score = -np.float32([0, 0.089, 0.091, 0.809, 0.811, 4.4, 4.42, 100, np.inf])
    token, bucket = unpack(pack(jnp.full(9, memory.MAX_IDS - 1), jnp.asarray(score)))
    assert set(token.tolist()) == {memory.MAX_IDS - 1}
    assert bucket.tolist() == [0, 0, 1, 2, 3, 6, 7, 7, 7]
    assert unpack(jnp.int32(-1))[0] == -1


def test_keys_are_those_of_whole_numbers_in_python():
    text = np.random.default_rng(0).integers(0, 200_000, size=(5, CONTEXT)).astype(np.int32)
    text[0, :5] = -1  # a text of four tokens
    keys = keys_of(jnp.asarray(text))
    for row in range(5):
        for i, n in enumerate(LENGTHS):
            is_whole = row > 0 or n <= 4
            assert bool(keys.is_whole_Xn[row, i]) == is_whole
            if is_whole:
                assert int(keys.slot_Xn[row, i]) == reference.merged.place_of(text[row, -n:].tolist())


def entries(ngram_nSE):
    """The tokens of each entry that holds some."""
    found = {}
    for i, slot in zip(*np.nonzero(ngram_nSE[..., 1] >= 0), strict=True):
        found[LENGTHS[i], int(slot)] = [t for t in ngram_nSE[i, slot, 1:].tolist() if t >= 0]
    return found


@functools.partial(jax.jit, static_argnames="num_tables")
def read(token_BT, length_B, num_tables):
    prompts = Prompts(token_BT=token_BT, length_B=length_B, seed_B=length_B.astype(jnp.uint32), capacity=64)
    begun = learned.begin(num_tables, Sizes(tokens=4, pairs=4, ngrams=16), frozenset({"ngrams"}))
    return learned.read_prompts(begun, prompts).memory.ngram_YnSE


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.lists(st.integers(1, 300), min_size=2, max_size=2), st.integers(2, 40))
def test_prompts_fill_small_tables_as_if_token_by_token(seed, lengths, num_ids):
    """300 tokens are read in two pieces; 16 places for hundreds of n-grams collide all the time."""
    text = np.random.default_rng(seed).integers(0, num_ids, size=(2, 300)).astype(np.int32)
    sizes = {"tokens": 4, "pairs": 4, "ngrams": 16}
    weights = {name: [0.0] for name in reference.merged.NAMES}
    alone = [reference.Learned(weights, **sizes) for _ in lengths]
    together = reference.Learned(weights, **sizes)
    for row, length in enumerate(lengths):
        for i in range(1, length):
            for each in (alone[row], together):
                each.keep_ngrams(text[row, :i].tolist(), int(text[row, i]))
    length_B = jnp.asarray(lengths, jnp.int32)
    own = np.asarray(read(jnp.asarray(text), length_B, 2))
    for row in range(2):
        assert entries(own[row]) == {key: tokens for key, (_, tokens) in alone[row].ngram.items()}
    shared = np.asarray(read(jnp.asarray(text), length_B, 1))
    assert entries(shared[0]) == {key: tokens for key, (_, tokens) in together.ngram.items()}


@pytest.mark.parametrize("temperature", [0.0, 0.7])
def test_successors_of_a_prompt_are_read_whole_whatever_its_chunks(tiny, temperature):
    """150 tokens in chunks of 100 are read 64 rows at a time: both the chunks and the rows overlap."""
    rng = np.random.default_rng(3)
    prompts = [rng.integers(0, BASE.vocab_size, length).tolist() for length in (150, 97, 1)]
    source = Merged(8, mask_owners=0)
    how = {"max_new_tokens": 1, "eos_token_ids": [], "temperature": temperature, "capacity": 150}
    batch = batch_of(BASE, source, prompts, **how)
    decode_cfg = DecodeConfig(capacity=150, prefill_chunk=100)
    state = jit_prefill(tiny.params, batch.prompt_BT[:, :150], batch.request, BASE, source, decode_cfg)
    got = jax.device_get(state.source.rows.learned.memory)
    for row, prompt in enumerate(prompts):
        slow = reference.Learned(
            {name: [0.0] for name in reference.merged.NAMES}, **reference.Learned.sizes_of_row(150, BASE.vocab_size)
        )
        reader = reference.Merged(tiny.reference, slow, rows=8, mask_owners=0, probe=None, temperature=temperature)
        reader.read(prompt)
        assert min(reader.gaps, default=1.0) > 1e-6, "choose other prompts: rounding could decide a rank"
        for table, expected in ((got.token_YSE[row], slow.token), (got.pair_YSE[row], slow.pair)):
            held = {int(slot): table[slot, 1:].tolist() for slot in np.flatnonzero(table[:, 1] >= 0)}
            packed = {
                slot: [token | (bucket << 24) for token, bucket in listed] for slot, (_, listed) in expected.items()
            }
            assert held == packed
        assert entries(got.ngram_YnSE[row]) == {key: tokens for key, (_, tokens) in slow.ngram.items()}


def test_empty_tables_know_nothing():
    tables = empty_memory(2, Sizes(tokens=8, pairs=16, ngrams=4))
    nothing = jnp.asarray([[0, 3], [-1, 7]], jnp.int32)
    keys = keys_of(jnp.zeros((2, 2, CONTEXT), jnp.int32))
    assert np.all(np.asarray(memory.successors_of_token(tables, nothing)) == -1)
    assert np.all(np.asarray(memory.successors_of_pair(tables, keys)) == -1)
    assert np.all(np.asarray(memory.followers(tables, keys)) == -1)
