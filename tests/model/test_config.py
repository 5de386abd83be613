"""Configurations: what is refused, and that they are static arguments."""

import dataclasses

import chex
import jax
import pytest
from conftest import BASE

from jax_probe_mtp.decoding.config import DecodeConfig
from jax_probe_mtp.drafting import Ngram, Probe, Recycle


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        *[({name: 0}, [name, "0"]) for name in ("vocab_size", "width", "num_layers", "mlp_width", "context_length")],
        ({"num_heads": -6}, ["num_heads", "-6"]),
        ({"num_kv_heads": 0}, ["num_kv_heads", "0"]),
        ({"width": 24.0}, ["width", "24.0"]),
        ({"num_heads": 6, "num_kv_heads": 4}, ["num_heads 6", "num_kv_heads 4"]),
        ({"head_dim": 7}, ["head_dim", "7"]),
        ({"head_dim": 8, "rope_divisors": (1.0, 2.0, 3.0)}, ["4 numbers", "got 3"]),
        ({"norm_eps": 0.0}, ["norm_eps 0.0"]),
        ({"norm_eps": float("nan")}, ["norm_eps nan"]),
        ({"rope_theta": -1.0}, ["rope_theta -1.0"]),
    ],
    ids=str,
)
def test_model_refuses(changes, says):
    _assert_refused(lambda: dataclasses.replace(BASE, **changes), says)


@pytest.mark.parametrize("value", [0, 10.5, "10"], ids=repr)
@pytest.mark.parametrize("name", ["capacity", "prefill_chunk"])
def test_decode_refuses(name, value):
    _assert_refused(lambda: DecodeConfig(**{"capacity": 8, name: value}), [f"{name} must", "at least 1", repr(value)])


def test_query_heads_that_share_a_kv_head():
    assert BASE.queries_per_kv == 3  # 6 heads over 2


@pytest.mark.parametrize(
    "config",
    [BASE, Probe(widths=[3, 2]), Ngram(), Recycle(), DecodeConfig(capacity=8)],
    ids=lambda c: type(c).__name__,
)
def test_a_config_is_a_static_argument_and_cannot_change(config):
    chex.clear_trace_counter()
    traced_once = jax.jit(chex.assert_max_traces(lambda x, cfg: x, n=1), static_argnums=1)
    traced_once(0, config)
    traced_once(0, dataclasses.replace(config))  # equal: no second trace
    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(config, dataclasses.fields(config)[0].name, 1)


def _assert_refused(build, says):
    with pytest.raises(ValueError, match=r"\A[^\n]+\Z") as refusal:
        build()
    for part in says:
        assert part in str(refusal.value)
