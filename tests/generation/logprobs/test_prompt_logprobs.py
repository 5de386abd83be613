"""Log-probabilities of prompts: what the model thought of each of their tokens, however they were read."""

import dataclasses
import functools
import random

import jax
import numpy as np
import pytest
from checkpoints import make_checkpoint
from support.decoding.batches import batch_of

from jax_probe_mtp import Prompt, Settings, decode
from jax_probe_mtp.decoding.config import DecodeConfig
from jax_probe_mtp.drafting import Plain, Probe
from jax_probe_mtp.generation.answers import Stats
from jax_probe_mtp.generation.groups import Groups

SOURCES = {"plain": Plain(), "probe": Probe(widths=(4,))}
NUM_TOP = 3
jit_decode = jax.jit(decode, static_argnames=("cfg", "source"))


def drawn(name, length):
    return random.Random(name).choices(range(2, 61), k=length)


# A token alone, less than a piece of the head's 64, several pieces of the model's 256, and one token more.
TEXTS = [[7], [5, 9], drawn("a", 60), drawn("b", 400), drawn("b", 400)[:301], drawn("d", 257)]


def expected_of(tiny, token_ids):
    """Log-probabilities of all tokens but the first and of the best in their places, by the model in NumPy, in one pass."""
    logits = tiny.reference.logits(tiny.reference.embed(token_ids))[:-1].astype(np.float64)
    logprobs = logits - np.log(np.exp(logits).sum(1, keepdims=True))
    best = np.argsort(-logprobs, axis=1, kind="stable")[:, :NUM_TOP]
    return logprobs[np.arange(len(logits)), token_ids[1:]], best, np.take_along_axis(logprobs, best, axis=1)


def check(tiny, token_ids, logprobs, top):
    of_token, best, of_best = expected_of(tiny, token_ids)
    assert len(logprobs) == len(top) == len(token_ids)
    assert logprobs[0] is None
    assert top[0] is None
    np.testing.assert_allclose(logprobs[1:], of_token, atol=1e-4)
    assert [[token for token, _ in place] for place in top[1:]] == best.tolist()
    found = np.reshape([[value for _, value in place] for place in top[1:]], (-1, NUM_TOP))
    np.testing.assert_allclose(found, of_best, atol=1e-4)


@functools.cache
def groups_of(tiny, source):
    return Groups(make_checkpoint(tiny), source)


def answers_of(tiny, source, prompts, *, stats=None, **settings):
    settings = Settings(**{"max_new_tokens": 6, "batch_size": 3, "logprobs": True, "top_logprobs": NUM_TOP} | settings)
    groups = groups_of(tiny, source)
    decoder = groups.stream(
        settings, stats=stats or Stats(), shared=groups.begin_shared(), capacity=512, is_sampled=True
    )
    found = {n: answer for update in decoder.run(enumerate(prompts)) for n, answer in update.finished}
    return [found[n] for n in range(len(prompts))]


@pytest.mark.parametrize("source", SOURCES)
def test_each_token_of_a_prompt_has_the_log_probability_that_the_model_gives_it(tiny, source):
    prompts = [Prompt(id=n, token_ids=ids, temperature=n % 2 * 0.8) for n, ids in enumerate(TEXTS)]
    without = answers_of(tiny, SOURCES[source], prompts)
    for prompt, answer, other in zip(
        prompts, answers_of(tiny, SOURCES[source], prompts, prompt_logprobs=True), without, strict=True
    ):
        check(tiny, prompt.token_ids, answer.prompt_logprobs, answer.prompt_top_logprobs)
        assert other.prompt_logprobs is other.prompt_top_logprobs is None
        same = dataclasses.replace(answer, prompt_logprobs=None, prompt_top_logprobs=None)
        assert same == other


def test_shared_beginnings_have_them_too(tiny):
    num_shared = [0, 0, 0, 300, 300, 0]
    prompts = [Prompt(id=n, token_ids=ids, num_shared=num_shared[n]) for n, ids in enumerate(TEXTS)]
    stats = Stats()
    answers = answers_of(tiny, Plain(), prompts, stats=stats, prompt_logprobs=True, batch_size=2)
    assert stats.prefix_tokens == 300
    for prompt, answer in zip(prompts, answers, strict=True):
        check(tiny, prompt.token_ids, answer.prompt_logprobs, answer.prompt_top_logprobs)


def test_those_alone_without_the_most_likely_tokens(tiny):
    (answer,) = answers_of(tiny, Plain(), [Prompt(token_ids=TEXTS[2])], top_logprobs=0, prompt_logprobs=True)
    assert answer.prompt_top_logprobs is None
    np.testing.assert_allclose(answer.prompt_logprobs[1:], expected_of(tiny, TEXTS[2])[0], atol=1e-4)


@pytest.mark.parametrize("capacity", [64, 300])
def test_a_batch_in_one_program_has_them_beside_those_of_its_new_tokens(tiny, capacity):
    """The longest prompt's padding may be one token longer than the cache."""
    texts = [TEXTS[1], drawn("e", 64), TEXTS[2]]
    how = {"eos_token_ids": (), "capacity": capacity, "prompt_slots": 65, "logprobs": True, "prompt_logprobs": True}
    batch = batch_of(tiny.cfg, Plain(), texts, max_new_tokens=1, **how)
    result = jit_decode(tiny.params, batch, tiny.cfg, Plain())
    for row, text in enumerate(texts):
        of_all = [*text, int(result.token_BT[row, len(text)])]
        got = np.asarray(result.logprob_BT)[row, 1 : len(of_all)]
        np.testing.assert_allclose(got, expected_of(tiny, of_all)[0], atol=1e-4)


def test_their_bits_do_not_depend_on_neighbours_and_drafts_in_the_exact_mode(tiny):
    prompts = [Prompt(id=n, token_ids=ids) for n, ids in enumerate(TEXTS[1:3])]
    how = {"prompt_logprobs": True, "is_exact": True, "batch_size": 2}
    drafted = answers_of(tiny, Probe(widths=(4,)), prompts, **how)
    limited = answers_of(tiny, Probe(widths=(4,)), prompts[::-1], max_accept=0, **how)[::-1]
    assert [answer.prompt_logprobs for answer in drafted] == [answer.prompt_logprobs for answer in limited]
    assert [answer.calls for answer in drafted] != [answer.calls for answer in limited]
    for prompt, answer in zip(prompts, drafted, strict=True):
        check(tiny, prompt.token_ids, answer.prompt_logprobs, answer.prompt_top_logprobs)


def test_they_come_with_the_log_probabilities_of_new_tokens(tiny):
    with pytest.raises(ValueError, match="prompt_logprobs comes with logprobs=True"):
        Settings(prompt_logprobs=True, capacity=8).check(tiny.cfg, Plain())
    with pytest.raises(ValueError, match="has_prompt_logprobs=True needs has_logprobs=True"):
        DecodeConfig(capacity=8, has_prompt_logprobs=True)
