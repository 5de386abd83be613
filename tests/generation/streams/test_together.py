"""Several newcomers in one program: who enters with whom, and that nobody's text depends on it."""

import dataclasses
from types import SimpleNamespace

import numpy as np
import pytest
from checkpoints import EOS
from support.generation.row_streams import PROMPTS, SETTINGS, answers, same_in_any_company

from jax_probe_mtp import Prompt
from jax_probe_mtp.decoding.request import idle_request
from jax_probe_mtp.generation import row, scheduler


@pytest.fixture
def arrivals(monkeypatch):
    """Lets up to two prompts enter together, on a CPU too; gives who entered with whom."""
    found = []

    def join(*args, **how):
        found.extend(joined := row.join_arrivals(*args, **how))
        return joined

    monkeypatch.setattr(scheduler, "num_together", lambda checkpoint, num_rows: 2)
    monkeypatch.setattr(scheduler, "join_arrivals", join)
    return found


def test_newcomers_in_one_program_give_the_references_texts(decode, expected, arrivals, monkeypatch):
    settings = dataclasses.replace(SETTINGS, logprobs=True, prompt_logprobs=True)
    got = answers(decode(PROMPTS, settings)[0])
    for prompt in PROMPTS:
        tokens, accepted = expected[prompt.id]
        assert got[prompt.id].token_ids == tokens
        assert got[prompt.id].calls == len(accepted)
    assert any(generation.calls < generation.committed for generation in got.values()), "no draft was right"
    come = [np.count_nonzero(arrival.request.max_new_tokens_B) for arrival in arrivals]
    assert sum(come) == len(PROMPTS)
    assert set(come) == {1, 2}, "some come alone, some do not"
    assert {len(arrival.row_A) for arrival in arrivals} == {2}, "the program has one shape"

    monkeypatch.undo()
    one_by_one = answers(decode(PROMPTS, settings)[0])
    for name, generation in got.items():
        assert len(generation.prompt_logprobs) == len(generation.prompt_ids)
        np.testing.assert_allclose(generation.prompt_logprobs[1:], one_by_one[name].prompt_logprobs[1:], atol=1e-4)


def test_a_record_is_the_same_bit_for_bit_beside_any_newcomer(decode, arrivals):
    same_in_any_company(decode, dataclasses.replace(SETTINGS, logprobs=True))
    assert max(np.count_nonzero(arrival.request.max_new_tokens_B) for arrival in arrivals) == 2


IDLE = idle_request(1, [EOS])


def waiting(number, slots, prefix=0):
    prompt = Prompt(id=number, token_ids=[number] * 3, num_shared=prefix)
    request = IDLE.replace(prompt_length_B=np.asarray([3]), max_new_tokens_B=np.asarray([number]))
    batch = SimpleNamespace(prompt_BT=np.full((1, slots), number), request=request)
    return row.WaitingPrompt(number=number, prompt=prompt, batch=batch)


def joined(newcomers, **how):
    """Lists of each arrival: who comes, as its first token and limit say, to which row, and the prefix."""
    how = {"num_shards": 1, "together": 2, "idle": IDLE, "shares_prefix": False} | how
    found = row.join_arrivals(newcomers, **how)
    for arrival in found:
        assert arrival.request.max_new_tokens_B.tolist() == arrival.prompt_AT[:, 0].tolist()
    return [(arrival.prompt_AT[:, -1].tolist(), arrival.row_A.tolist(), arrival.prefix) for arrival in found]


def test_prompts_of_one_padded_length_enter_together():
    newcomers = [(0, 5, waiting(1, 8)), (0, 2, waiting(2, 16)), (0, 3, waiting(3, 8)), (0, 7, waiting(4, 8))]
    assert joined(newcomers) == [([1, 3], [5, 3], ()), ([2, 0], [2, 0], ()), ([4, 0], [7, 0], ())]
    assert joined(newcomers, together=1) == [([1], [5], ()), ([2], [2], ()), ([3], [3], ()), ([4], [7], ())]


def test_each_shard_has_places_of_its_own():
    newcomers = [(1, 0, waiting(1, 8)), (0, 1, waiting(2, 8)), (1, 2, waiting(3, 8)), (1, 3, waiting(4, 8))]
    assert joined(newcomers, num_shards=2) == [([2, 0, 1, 3], [1, 0, 0, 2], ()), ([0, 0, 4, 0], [0, 0, 3, 0], ())]


def test_prompts_with_a_prefix_enter_alone_where_it_is_shared():
    newcomers = [(0, 0, waiting(1, 8, prefix=2)), (0, 1, waiting(2, 8)), (0, 2, waiting(3, 8, prefix=2))]
    assert joined(newcomers) == [([1, 2], [0, 1], ()), ([3, 0], [2, 0], ())]
    alone = [([1], [0], (1, 1)), ([3], [2], (3, 3)), ([2, 0], [1, 0], ())]
    assert joined(newcomers, shares_prefix=True) == alone


@pytest.mark.parametrize(
    ("platform", "num_weights", "num_rows", "expected"),
    [("gpu", 135e6, 32, 4), ("gpu", 135e6, 8, 1), ("gpu", 8e9, 32, 1), ("cpu", 135e6, 32, 1)],
)
def test_a_small_models_prompts_enter_together_on_gpus(platform, num_weights, num_rows, expected):
    assert row.num_together(on(platform, num_weights), num_rows) == expected


@pytest.mark.parametrize(
    ("platform", "num_weights", "capacity", "expected"),
    [("gpu", 135e6, 8192, 1024), ("gpu", 135e6, 8193, 256), ("gpu", 8e9, 1024, 256), ("cpu", 135e6, 1024, 256)],
)
def test_a_small_models_prompts_enter_in_long_pieces_on_gpus(platform, num_weights, capacity, expected):
    config = row.decode_config(on(platform, num_weights), dataclasses.replace(SETTINGS, logprobs=True), capacity)
    assert (config.capacity, config.prefill_chunk, config.has_logprobs) == (capacity, expected, True)


def on(platform: str, num_weights: float) -> SimpleNamespace:
    """Stands for a checkpoint with so many weights there."""
    leaf = SimpleNamespace(size=num_weights / 2, devices=lambda: [SimpleNamespace(platform=platform)])
    return SimpleNamespace(params=[leaf, leaf])
