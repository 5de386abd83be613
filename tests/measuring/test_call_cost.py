"""What a decode call costs: the timed state is that of a row in the middle of its text, and each repeat begins there."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_probe_mtp.decoding.config import DecodeConfig
from jax_probe_mtp.decoding.loop import run_steps
from jax_probe_mtp.drafting import Plain, Probe
from jax_probe_mtp.measuring.call_cost import Timing, filled_state, time_loop, time_step

PROBE = Probe(widths=(4,))
DEEP = Probe(widths=(3, 2))
B, IN_USE, NEW_TOKENS, CAPACITY = 3, 20, 9, 32
SIZES = {"batch_size": B, "in_use": IN_USE, "new_tokens": NEW_TOKENS}


def fill(tiny, source, **changes):
    return filled_state(tiny.params, tiny.cfg, source, DecodeConfig(capacity=CAPACITY), **SIZES | changes)


def loop_of(tiny, source):
    decode_cfg = DecodeConfig(capacity=CAPACITY)
    return functools.partial(run_steps, cfg=tiny.cfg, source=source, decode_cfg=decode_cfg)


@pytest.mark.parametrize("source", [Plain(), PROBE], ids=["plain", "probe"])
def test_the_state_is_that_of_rows_with_one_new_token(tiny, source):
    request, state = fill(tiny, source, temperature=0.5, top_p=0.9)
    assert state.length_B.tolist() == request.prompt_length_B.tolist() == [IN_USE] * B  # the root is no prompt token
    assert request.max_new_tokens_B.tolist() == [NEW_TOKENS + 1] * B
    assert request.eos_E.size == 0
    np.testing.assert_array_equal(request.sampling.temperature_B, np.full(B, 0.5, np.float32))
    np.testing.assert_array_equal(request.sampling.top_p_B, np.full(B, 0.9, np.float32))
    assert len(set(request.sampling.seed_B.tolist())) == B

    assert not np.any(state.is_done_B)
    assert not np.any(state.calls_B)
    assert not np.any(state.accepted_by_depth_BX)
    assert state.token_BT.shape == (B, CAPACITY + 1)
    root_B = np.asarray(state.token_BT)[:, IN_USE]
    assert np.all((root_B >= 0) & (root_B < tiny.cfg.vocab_size))
    assert len(np.unique(state.token_BT)) > tiny.cfg.vocab_size // 2


def test_the_cache_holds_noise_and_no_zeros(tiny):
    _, state = fill(tiny, PROBE)
    arrays = [np.asarray(array) for array in (*state.cache.k, *state.cache.v)]
    assert len(arrays) == 2 * tiny.cfg.num_layers
    for array in arrays:
        assert array.shape == (B, tiny.cfg.num_kv_heads, CAPACITY + PROBE.num_rows, tiny.cfg.head_dim)
        assert array.dtype == tiny.params["embed"].dtype
        assert np.all(array != 0)
        assert 0.9 < array.std() < 1.1
    assert len({array.tobytes() for array in arrays}) == len(arrays), "two layers hold the same"


@pytest.mark.parametrize(
    ("source", "is_sampled"),
    [(Plain(), False), (PROBE, True), (DEEP, False)],
    ids=["plain", "probe-sampled", "deep"],
)
def test_a_row_makes_its_new_tokens_in_decode_calls(tiny, source, is_sampled):
    request, state = fill(tiny, source, temperature=float(is_sampled))
    after = jax.jit(loop_of(tiny, source))(tiny.params, request, state)
    assert after.length_B.tolist() == [IN_USE + NEW_TOKENS] * B
    assert np.all(after.is_done_B)
    made_B = np.asarray(after.calls_B) + np.sum(after.accepted_by_depth_BX, axis=1)
    if source == Plain():
        assert after.calls_B.tolist() == [NEW_TOKENS] * B
    assert np.all(made_B >= NEW_TOKENS)  # counted before the cut at the end of the text
    assert np.all(made_B <= NEW_TOKENS + source.max_depth)


@pytest.mark.parametrize(
    ("in_use", "new_tokens"), [(IN_USE, CAPACITY - IN_USE + 1), (CAPACITY + 5, 1), (0, 4), (IN_USE, 0)]
)
def test_what_does_not_fit_is_refused_with_the_numbers(tiny, in_use, new_tokens):
    words = f"^{in_use} tokens in use and {new_tokens} new ones do not fit a capacity of {CAPACITY}; "
    with pytest.raises(ValueError, match=words):
        fill(tiny, Plain(), in_use=in_use, new_tokens=new_tokens)


def test_a_full_capacity_is_not_refused(tiny):
    request, state = fill(tiny, PROBE, new_tokens=CAPACITY - IN_USE)
    after = jax.jit(loop_of(tiny, PROBE))(tiny.params, request, state)
    assert after.length_B.tolist() == [CAPACITY] * B


@pytest.mark.parametrize("source", [Plain(), PROBE], ids=["plain", "probe"])
def test_each_repeat_begins_at_the_same_length(tiny, source):
    begins, ends = [], []

    def watched(params, request, state):
        jax.debug.callback(lambda *values: begins.append(values), state.length_B, state.calls_B, state.is_done_B)
        state = loop_of(tiny, source)(params, request, state)
        jax.debug.callback(lambda *values: ends.append(values), state.length_B, state.calls_B)
        return state

    request, state = fill(tiny, source)
    timing = time_loop(watched, tiny.params, request, state, repeats=3)
    jax.effects_barrier()
    assert len(timing.ms) == 3
    assert len(begins) == len(ends) == 4, "one untimed run goes before"
    for length_B, calls_B, is_done_B in begins:
        assert length_B.tolist() == [IN_USE] * B
        assert calls_B.tolist() == [0] * B
        assert not np.any(is_done_B)
    for length_B, calls_B in ends:
        assert length_B.tolist() == [IN_USE + NEW_TOKENS] * B
        assert 0 < calls_B.max() <= NEW_TOKENS
        if source == Plain():
            assert calls_B.tolist() == [NEW_TOKENS] * B


def test_a_time_is_of_one_call_and_compiling_is_not_in_it(tiny, monkeypatch):
    """A clock that moves by a second whenever it is read: each repeat seems to take one, and so does compiling."""
    seconds = iter(range(100))
    monkeypatch.setattr("jax_probe_mtp.measuring.call_cost.time.perf_counter", lambda: float(next(seconds)))

    def counted(params, request, state):  # two calls in the slowest row
        return state.replace(calls_B=state.calls_B + jnp.array([1, 2, 0]))

    timing = time_loop(counted, tiny.params, *fill(tiny, Plain()), repeats=2)
    assert timing.ms == (500.0, 500.0)
    assert timing.compile_seconds == 1.0


def test_the_median_is_the_middle_of_the_repeats():
    assert Timing(ms=(9.0, 1.0, 2.0), compile_seconds=0.0, temp_bytes=None).median_ms == 2.0


@pytest.mark.parametrize(
    ("source", "temperature"),
    [(Plain(), 0.0), (PROBE, 0.0), (PROBE, 0.7)],
    ids=["plain", "probe", "probe-sampled"],
)
def test_a_step_is_timed(tiny, source, temperature):
    decode_cfg = DecodeConfig(capacity=CAPACITY)
    timing = time_step(
        tiny.params, tiny.cfg, source, decode_cfg,
        batch_size=2, in_use=8, calls=5, repeats=3, temperature=temperature, top_p=0.9,
    )  # fmt: skip
    assert len(timing.ms) == 3
    assert min(timing.ms) > 0
    assert min(timing.ms) <= timing.median_ms <= max(timing.ms)
    assert timing.compile_seconds > 0
    assert timing.temp_bytes is None or timing.temp_bytes > 0
