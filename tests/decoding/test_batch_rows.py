"""Batches whose rows have prompts, limits and sampling of their own. Expected tokens come from `reference`."""

import dataclasses

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from checkpoints import EOS

from jax_probe_mtp import Probe, Prompt, Settings, decode, make_batch

PROBE = Probe(widths=(5, 2))
SETTINGS = Settings(max_new_tokens=16, temperature=0.8, top_k=30, seed=7, capacity=64, prompt_slots=16)
IDS = [[7], [5, 9, 2, 44, 17, 3, 3], [60, 1, 33, 8], list(range(12, 24))]
PROMPTS = [
    Prompt(id="greedy", token_ids=IDS[0], temperature=0.0),
    Prompt(id="of the run", token_ids=IDS[1], seed=3),
    Prompt(id="own cuts", token_ids=IDS[2], seed=4, temperature=1.2, top_k=0, top_p=0.7),
    Prompt(id="own limit", token_ids=IDS[3], seed=2**32 - 1, max_new_tokens=5),
    Prompt(id="one token", token_ids=IDS[3], temperature=0.0, max_new_tokens=1),
    Prompt(id="greedy and long", token_ids=IDS[2], temperature=0.0, max_new_tokens=24),
]


@pytest.fixture(scope="module")
def run(tiny):
    """Decodes a batch: the result, and each row's new tokens."""
    program = jax.jit(decode, static_argnames=("cfg", "source"))

    def run(batch):
        result = jax.device_get(program(tiny.params, batch, tiny.cfg, PROBE))
        ends = zip(batch.request.prompt_length_B, result.num_emitted_B, strict=True)
        return result, [row[n : n + new].tolist() for row, (n, new) in zip(result.token_BT, ends, strict=True)]

    return run


def batch_of(tiny, prompts, settings=SETTINGS, **more):
    return make_batch(tiny.cfg, PROBE, prompts, settings, eos_token_ids=[EOS], **more)


def plain(tiny, token_ids, *, max_new_tokens=16, **draw):
    how = {"max_new_tokens": max_new_tokens, "eos": (EOS,)} | draw
    tokens, gap = reference.plain_decode(tiny.reference, token_ids, **how)
    assert gap > 1e-3, "choose another prompt: rounding could decide this one"
    return tokens


def test_arrays_of_jax_and_numpy_are_prompts_as_lists_are(tiny):
    batch = batch_of(tiny, IDS)
    for array in (jnp.asarray, lambda ids: jnp.asarray(ids, jnp.int16), lambda ids: np.asarray(ids, np.uint8), tuple):
        chex.assert_trees_all_equal(batch_of(tiny, [array(ids) for ids in IDS]), batch)
    of_prompts = [Prompt(id=i, token_ids=jnp.asarray(ids)) for i, ids in enumerate(IDS)]
    chex.assert_trees_all_equal(batch_of(tiny, of_prompts), batch)
    chex.assert_trees_all_equal(batch_of(tiny, jnp.asarray([IDS[2]] * 3)), batch_of(tiny, [IDS[2]] * 3))
    assert all(type(leaf) is np.ndarray for leaf in jax.tree.leaves(batch))


def test_each_row_is_decoded_by_its_own_settings_as_it_is_alone(tiny, run):
    expected = [
        plain(tiny, IDS[0]),
        plain(tiny, IDS[1], temperature=0.8, top_k=30, seed=3),
        plain(tiny, IDS[2], temperature=1.2, top_p=0.7, seed=4),
        plain(tiny, IDS[3], temperature=0.8, top_k=30, seed=2**32 - 1, max_new_tokens=5),
        plain(tiny, IDS[3], max_new_tokens=1),
        plain(tiny, IDS[2], max_new_tokens=24),
    ]
    result, tokens = run(batch_of(tiny, PROMPTS))
    assert tokens == expected
    assert len(set(map(len, tokens))) > 2, "choose other prompts: the rows end together"
    assert result.accepted_by_depth_BX.sum() > 0, "no draft was right"
    for row, prompt in enumerate(PROMPTS):
        alone, (own_tokens,) = run(batch_of(tiny, [prompt], is_sampled=True))
        assert own_tokens == expected[row]
        assert alone.calls_B[0] == result.calls_B[row]
        assert alone.accepted_by_depth_BX[0].tolist() == result.accepted_by_depth_BX[row].tolist()


def test_a_row_has_the_seed_of_the_run_and_its_id_where_it_has_none(tiny, run):
    seed = int.from_bytes(bytes.fromhex("82d9d62b"), "little")  # `printf 7:a | sha256sum`
    _, tokens = run(batch_of(tiny, [Prompt(id="b", token_ids=IDS[1]), Prompt(id="a", token_ids=IDS[1])]))
    assert tokens[1] == plain(tiny, IDS[1], temperature=0.8, top_k=30, seed=seed)
    assert tokens[0] != tokens[1]


def test_idle_rows_emit_nothing(tiny, run):
    result, tokens = run(batch_of(tiny, PROMPTS[1:3], rows=5))
    assert result.num_emitted_B[2:].tolist() == result.calls_B[2:].tolist() == [0, 0, 0]
    assert tokens[:2] == run(batch_of(tiny, PROMPTS[1:3]))[1]


def test_a_greedy_batch_holds_no_sampling_but_the_seeds(tiny):
    greedy = dataclasses.replace(SETTINGS, temperature=0.0)
    batch = batch_of(tiny, IDS, greedy)
    assert [leaf.dtype for leaf in jax.tree.leaves(batch.request.sampling)] == [np.uint32]
    # Prompts, their lengths, limits, ids that end a text, seeds, how many drafts a call accepts.
    assert len(jax.tree.leaves(batch)) == 6
    assert batch.request.draw is None
    for sampled in (batch_of(tiny, IDS), batch_of(tiny, IDS, greedy, is_sampled=True), batch_of(tiny, PROMPTS, greedy)):
        assert len(jax.tree.leaves(sampled)) == 6 + 3  # temperatures, top-k, top-p
        assert sampled.request.draw is sampled.request.sampling


def test_a_temperature_put_into_a_greedy_batch_is_another_program_which_draws(tiny):
    prompts = [Prompt(id=i, token_ids=ids, seed=40 + i) for i, ids in enumerate(IDS)]
    batch = batch_of(tiny, prompts, Settings(max_new_tokens=16, capacity=64))

    @jax.jit
    @chex.assert_max_traces(n=2)  # a greedy program and one that draws, whatever the temperature
    def program(params, batch):
        return decode(params, batch, tiny.cfg, PROBE)

    def run(batch):
        result = jax.device_get(program(tiny.params, batch))
        return [result.token_BT[row, len(ids) :][: result.num_emitted_B[row]].tolist() for row, ids in enumerate(IDS)]

    def at(temperature):
        sampling = batch.request.sampling.replace(temperature_B=jnp.full(len(IDS), temperature))
        return batch.replace(request=batch.request.replace(sampling=sampling))

    greedy = [plain(tiny, ids) for ids in IDS]
    assert run(batch) == greedy
    for temperature in (1.0, 0.6):
        drawn = [plain(tiny, ids, temperature=temperature, seed=40 + i) for i, ids in enumerate(IDS)]
        assert run(at(temperature)) == drawn != greedy
    assert run(at(0.0)) == greedy
