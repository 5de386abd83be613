"""scripts/peers/quality.py: how far two models are apart, against NumPy; and Q8_0's groups, number by number."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest
import quality
import reference
from conftest import BASE, make_tiny

from jax_probe_mtp.errors import exit_status
from jax_probe_mtp.model.params import dequantize_params, quantize_params


def log_softmax(logits_TV):
    shifted = logits_TV - logits_TV.max(axis=1, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))


def test_two_models_are_compared_at_the_places_of_the_answers():
    tiny = make_tiny(BASE)
    rounded = quantize_params(tiny.params)
    other = reference.Model(dequantize_params(rounded), dataclasses.replace(BASE, is_tied=False))
    texts = [([5, 9, 2], [44, 17]), ([7], [3, 3, 60, 1])]
    divergence, same, nats, other_nats = [], [], 0.0, 0.0
    for prompt, answer in texts:
        logp_TV, logq_TV = (
            log_softmax(model.logits(model.embed(prompt + answer)))[len(prompt) - 1 : -1]
            for model in (tiny.reference, other)
        )
        divergence += list((np.exp(logp_TV) * (logp_TV - logq_TV)).sum(axis=1))
        same += list(logp_TV.argmax(axis=1) == logq_TV.argmax(axis=1))
        nats -= sum(logp_TV[range(len(answer)), answer])
        other_nats -= sum(logq_TV[range(len(answer)), answer])
    found = quality.compare(BASE, tiny.params, rounded, texts)
    assert found["tokens"] == 6
    assert found["kl"] == pytest.approx(np.mean(divergence), rel=1e-2)
    assert found["kl"] > 1e-7
    assert found["same_best"] == pytest.approx(np.mean(same))
    assert found["perplexity_ratio"] == pytest.approx(np.exp((other_nats - nats) / 6), rel=1e-5)
    itself = quality.compare(BASE, tiny.params, tiny.params, texts)
    assert (itself["kl"], itself["same_best"], itself["perplexity_ratio"]) == (0, 1, 1)


def test_q8_0_has_a_scale_for_every_32_numbers_of_a_sum():
    """A large number takes the precision of its own group alone, along the summed axis: the first one of a layer's weight."""
    rng = np.random.default_rng(0)
    weight_IO = rng.uniform(-1, 1, size=(64, 3)).astype(np.float32)
    weight_IO[5, 1] = 1000.0
    table_VD = rng.uniform(-1, 1, size=(4, 64)).astype(np.float32)
    table_VD[2, 40] = 1000.0
    norm_D = np.full(64, 0.3, np.float32)
    layer = {"qkv": jnp.asarray(weight_IO), "attn_norm": jnp.asarray(norm_D)}
    got = quality.as_q8_0({"embed": jnp.asarray(table_VD), "layers": [layer]})
    error_IO = np.abs(np.asarray(got["layers"][0]["qkv"]) - weight_IO)
    error_VD = np.abs(np.asarray(got["embed"]) - table_VD)
    is_coarse_IO, is_coarse_VD = np.zeros((64, 3), bool), np.zeros((4, 64), bool)
    is_coarse_IO[:32, 1] = is_coarse_VD[2, 32:] = True
    for error, is_coarse in ((error_IO, is_coarse_IO), (error_VD, is_coarse_VD)):
        assert error[~is_coarse].max() <= 0.5 / 127 * 1.001 + 2**-11  # half a step, and the scale's own rounding
        assert error[is_coarse].max() > 0.3  # of steps of 7.9
    np.testing.assert_array_equal(got["layers"][0]["attn_norm"], norm_D)


@pytest.mark.parametrize("flags", [["--weights", "int8"], ["--dtype", "bfloat16"]])
def test_the_model_it_starts_from_is_not_rounded(tmp_path, capsys, flags):
    questions = tmp_path / "q.jsonl"
    questions.write_text('{"question_id": 1, "category": "qa", "turns": ["why?"]}\n')
    args = ["--model", "no/such", "--questions", str(questions), *flags]
    assert exit_status(lambda: quality.main(args)) == 2
    assert capsys.readouterr().err == "error: the unrounded model is in float32: leave --weights and --dtype out.\n"
