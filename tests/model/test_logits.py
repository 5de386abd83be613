"""Logits whose vocabulary is split over devices, against NumPy on the whole."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jax_probe_mtp.model.config import TENSOR
from jax_probe_mtp.model.logits import Logits

VOCAB = 13  # over 4 devices: parts of 4, of which the last holds one token and three of padding
K = 6  # more than a part


@pytest.fixture
def logits_BRV():
    """Numbers of which many are equal, also between devices, and some -inf."""
    drawn = np.random.default_rng(0).integers(-3, 4, (2, 40, VOCAB)).astype(np.float32)
    return np.where(drawn == -3, -np.inf, drawn)


def asked(logits_BRV, num_devices, question):
    """What each of the devices answers; they must agree."""
    if num_devices == 1:
        return question(Logits.of(jnp.asarray(logits_BRV)))
    size = -(-VOCAB // num_devices)
    padding = ((0, 0), (0, 0), (0, size * num_devices - VOCAB))
    padded = np.pad(logits_BRV, padding, constant_values=9)  # above all others
    part_tBRv = np.stack(np.split(padded, num_devices, axis=2))
    split = functools.partial(Logits.of_part, vocab_size=VOCAB)
    answer = jax.vmap(lambda part: question(split(part)), axis_name=TENSOR)(jnp.asarray(part_tBRv))
    jax.tree.map(lambda x: np.testing.assert_array_equal(x, np.broadcast_to(x[:1], x.shape)), answer)
    return jax.tree.map(lambda x: x[0], answer)


@pytest.mark.parametrize("num_devices", [1, 2, 4, 13])
class TestEveryDeviceKnows:
    def test_the_whole(self, logits_BRV, num_devices):
        np.testing.assert_array_equal(asked(logits_BRV, num_devices, Logits.whole), logits_BRV)

    def test_the_best_token_of_equal_ones_the_lowest(self, logits_BRV, num_devices):
        got = asked(logits_BRV, num_devices, Logits.argmax)
        assert got.dtype == jnp.int32
        np.testing.assert_array_equal(got, np.argmax(logits_BRV, axis=-1))

    def test_the_k_best_tokens_of_equal_ones_the_lower_first(self, logits_BRV, num_devices):
        value, token = asked(logits_BRV, num_devices, lambda logits: logits.top_k(K))
        assert token.dtype == jnp.int32
        expected = np.argsort(-logits_BRV, axis=-1, kind="stable")[..., :K]
        np.testing.assert_array_equal(token, expected)
        np.testing.assert_array_equal(value, np.take_along_axis(logits_BRV, expected, axis=-1))

    def test_the_sum_of_exponentials(self, logits_BRV, num_devices):
        got = asked(logits_BRV, num_devices, Logits.logsumexp)
        expected = np.log(np.sum(np.exp(np.float64(logits_BRV)), axis=-1, keepdims=True))
        np.testing.assert_allclose(got, expected, rtol=1e-6)

    def test_single_logits(self, logits_BRV, num_devices):
        token = np.random.default_rng(1).integers(0, VOCAB, (2, 40, 3))
        got = asked(logits_BRV, num_devices, lambda logits: logits.at(jnp.asarray(token)))
        np.testing.assert_array_equal(got, np.take_along_axis(logits_BRV, token, axis=-1))

    def test_how_many_are_above_a_value(self, logits_BRV, num_devices):
        value = np.where(np.arange(40) == 7, np.nan, 0.5).astype(np.float32)[None, :, None]
        got = asked(logits_BRV, num_devices, lambda logits: logits.num_above(jnp.asarray(value)))
        is_number = ~np.isnan(value[..., 0])
        expected = np.sum(logits_BRV > 0.5, axis=-1)
        np.testing.assert_array_equal(np.where(is_number, got, -1), np.where(is_number, expected, -1))
        assert np.all(np.where(is_number, VOCAB, got) >= VOCAB)  # what cannot be compared is no guess

    def test_some_rows_over_a_temperature(self, logits_BRV, num_devices):
        row = np.asarray([[3, 0], [39, 3]])
        got = asked(
            logits_BRV,
            num_devices,
            lambda logits: logits.first(40).rows(jnp.asarray(row)).scale(jnp.asarray([0.5, 0.0])).whole(),
        )
        taken = np.take_along_axis(logits_BRV, row[..., None], axis=1)
        np.testing.assert_array_equal(got, taken * np.asarray([2, 1])[:, None, None])


@pytest.mark.parametrize("question", [Logits.argmax, lambda logits: logits.top_k(2), Logits.logsumexp])
def test_what_is_asked_travels_in_one_collective(question):
    def ask(part_Xv):
        return question(Logits.of_part(part_Xv, vocab_size=VOCAB))

    jaxpr = str(jax.make_jaxpr(ask, axis_env=[(TENSOR, 4)])(jnp.zeros((2, 4))))
    assert sum(jaxpr.count(f"{name}[") for name in ("all_gather", "psum", "pmax", "all_reduce")) == 1, jaxpr
