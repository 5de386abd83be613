"""Scaled rope, and layers without: every way to decode gives plain decoding's text, in the kernels too."""

import dataclasses

import jax
import pytest
import reference
from conftest import FAMILIES, make_tiny
from support.decoding.batches import batch_of

from jax_probe_mtp import decode
from jax_probe_mtp.drafting import Merged, Probe
from jax_probe_mtp.model.params import quantize_params

# Heads of a size that the kernels take; of two layers one is not turned.
DIVISORS = (1.0, 1.0, 1.0, 1.5, 2.0, 3.0, 4.0, 4.0)
CFG = dataclasses.replace(FAMILIES["smollm3"], num_layers=2, head_dim=16, rope_divisors=DIVISORS)
PROMPTS = [[5, 9, 2, 44, 17, 3, 3], [60, 1, 33, 8], [12, 13, 14, 15, 16, 17, 18, 19, 20, 21, 22]]
NEW_TOKENS = 12
CASES = {
    "kernels": (Probe(widths=(3, 2), mask_init="mean"), {}, "fused"),
    "kernels, exact": (Probe(widths=(3, 2), mask_init="mean"), {"is_exact": True}, "fused"),
    "merged": (Merged(rows=12, depth=3, mask_init="mean"), {}, "plain"),
}


@pytest.fixture(scope="module")
def wide():
    made = make_tiny(CFG, seed=3)
    params = made.params | {"head": made.params["head"] * 3}
    return dataclasses.replace(made, params=params, reference=reference.Model(params, CFG))


def texts(params, case):
    source, settings, attention = CASES[case]
    batch = batch_of(CFG, source, PROMPTS, max_new_tokens=NEW_TOKENS, eos_token_ids=[], capacity=48, **settings)
    batch = batch.replace(config=dataclasses.replace(batch.config, attention=attention))
    result = jax.device_get(jax.jit(lambda params, batch: decode(params, batch, CFG, source))(params, batch))
    assert result.accepted_by_depth_BX.sum() > 0, "no draft was ever right: this proves nothing"
    return [result.token_BT[row, len(p) : len(p) + NEW_TOKENS].tolist() for row, p in enumerate(PROMPTS)]


@pytest.mark.parametrize("case", CASES)
def test_texts_are_those_of_the_numpy_model(wide, case):
    expected = [reference.plain_decode(wide.reference, prompt, max_new_tokens=NEW_TOKENS) for prompt in PROMPTS]
    assert min(gap for _, gap in expected) > 1e-3, "rounding could decide this one"
    assert texts(wide.params, case) == [text for text, _ in expected]


def test_scale_and_unturned_layers_are_felt(wide):
    """Else the texts above would say nothing of them."""
    expected = [reference.plain_decode(wide.reference, prompt, max_new_tokens=NEW_TOKENS)[0] for prompt in PROMPTS]
    for change in ({"no_rope_layers": ()}, {"rope_scale": 1.0}, {"rope_divisors": ()}):
        other = reference.Model(wide.params, dataclasses.replace(CFG, **change))
        assert expected != [reference.plain_decode(other, prompt, max_new_tokens=NEW_TOKENS)[0] for prompt in PROMPTS]


def test_weights_of_eight_bits(wide):
    rounded = quantize_params(wide.params)
    assert texts(rounded, "merged") == texts(rounded, "kernels")
