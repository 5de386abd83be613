"""Weights of eight bits: rounding by hand, products against NumPy, and a model against the NumPy model of the same numbers."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from checkpoints import make_checkpoint
from conftest import BASE, FAMILIES, Tiny, make_tiny

from jax_probe_mtp.model import layers
from jax_probe_mtp.model.fingerprint import model_identity, weights_digest
from jax_probe_mtp.model.params import (
    Int8,
    abstract_params,
    check_params,
    dequantize,
    dequantize_params,
    partition_specs,
    quantize,
    quantize_params,
    weights_of,
)
from jax_probe_mtp.model.transformer import full_logits

TOKENS = np.random.default_rng(1).integers(0, 61, (2, 40)).astype(np.int32)


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("library", [jnp, np])
def test_rounding_by_hand(library, dtype):
    """Columns: the largest is 127, so a step is 1; negative, so a step is 2; zeros."""
    weight_OI = library.asarray(np.asarray([[127, 0.5, -1.5], [-254, 3, 0.75], [0, 0, 0]]), dtype)
    value_OI, scale_O = quantize(weight_OI)
    np.testing.assert_array_equal(value_OI, [[127, 0, -2], [-127, 2, 0], [0, 0, 0]])  # halves go to the even one
    np.testing.assert_array_equal(scale_O, [1, 2, 1])
    assert (value_OI.dtype, scale_O.dtype) == (jnp.int8, jnp.float32)
    np.testing.assert_array_equal(dequantize(Int8(value_OI, scale_O)), [[127, 0, -2], [-254, 4, 0], [0, 0, 0]])


@pytest.mark.parametrize("library", [jnp, np])
def test_every_weight_is_within_half_a_step(library):
    rng = np.random.default_rng(0)
    weight_OI = (rng.normal(size=(40, 300)) * 10.0 ** rng.integers(-20, 20, size=(40, 1))).astype(np.float32)
    value_OI, scale_O = quantize(library.asarray(weight_OI))
    step_O1 = np.abs(weight_OI).max(axis=1, keepdims=True).astype(np.float64) / 127
    error_OI = np.abs(np.asarray(value_OI, np.float64) * np.asarray(scale_O, np.float64)[:, None] - weight_OI)
    assert (error_OI <= 0.50001 * step_O1).all()
    assert (np.abs(np.asarray(value_OI, np.int32)).max(axis=1) == 127).all()


def test_a_scale_is_never_zero():
    """The largest weight over 127 would be no normal number: it is rounded to a step that is one."""
    value_OI, scale_O = quantize(np.full((1, 4), 2e-38, np.float32))
    assert scale_O == np.finfo(np.float32).tiny
    np.testing.assert_array_equal(value_OI, [[2, 2, 2, 2]])


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("num_rows", [1, 5])
def test_a_product_in_pieces_is_the_product(monkeypatch, num_rows, dtype):
    """53 columns in pieces of 10, and three behind them."""
    monkeypatch.setattr(layers, "PIECE_NUMBERS", 10 * 24)
    rng = np.random.default_rng(num_rows)
    x_TI = jnp.asarray(rng.normal(size=(num_rows, 24)), dtype)
    weight = quantize(rng.normal(size=(53, 24)).astype(np.float32))
    got = layers.linear(x_TI[None], weight)
    assert (got.shape, got.dtype) == ((1, num_rows, 53), dtype)
    exact = np.asarray(x_TI, np.float64) @ (weight.value.astype(np.float64) * weight.scale[:, None]).T
    np.testing.assert_allclose(
        np.asarray(got[0], np.float64), exact, rtol=2**-8 if dtype == jnp.bfloat16 else 1e-5, atol=1e-5
    )


def test_a_product_hands_gradients_to_its_rows():
    """Those of tuned masks: the columns' scales times the values, summed."""
    weight = quantize(np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32))
    got = jax.grad(lambda x_I: layers.linear(x_I[None], weight).sum())(jnp.ones(5))
    np.testing.assert_allclose(got, (weight.value * weight.scale[:, None]).sum(axis=0), rtol=1e-5)


def in_eight_bits(cfg, seed=0):
    """A tiny model in eight bits, and the NumPy model of the numbers that they stand for."""
    params = quantize_params(make_tiny(cfg, seed).params)
    untied = dataclasses.replace(cfg, is_tied=False)  # a rounded head is no longer the table
    return Tiny(cfg, params, reference.Model(dequantize_params(params), untied))


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_are_those_of_the_numbers_that_the_values_stand_for(family):
    tiny = in_eight_bits(FAMILIES[family])
    got = full_logits(tiny.params, tiny.cfg, jnp.asarray(TOKENS))
    unrounded = full_logits(make_tiny(FAMILIES[family]).params, tiny.cfg, jnp.asarray(TOKENS))
    for row in range(2):
        expected = tiny.reference.logits(tiny.reference.embed(TOKENS[row]))
        np.testing.assert_allclose(got[row], expected, atol=2e-5)
    assert np.abs(got - unrounded).max() > 1e-3, "rounding changed nothing: this does not tell them apart"


@pytest.mark.parametrize("family", FAMILIES)
def test_shapes_and_specs_are_said_once(family):
    tiny = in_eight_bits(FAMILIES[family])
    expected = abstract_params(tiny.cfg, weights="int8")
    shapes, wanted = (jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype), tree) for tree in (tiny.params, expected))
    assert shapes == wanted
    check_params(tiny.params, tiny.cfg)
    assert weights_of(tiny.params) == "int8"
    assert weights_of(make_tiny(tiny.cfg).params) is None
    specs = partition_specs(tiny.cfg, "int8")
    assert jax.tree.structure(specs) == jax.tree.structure(expected)
    split = {name: specs["layers"][0][name] for name in ("qkv", "out", "gate", "up", "down")} | {"head": specs["head"]}
    # By numbers out, where a device's scales go with its columns; or by numbers in, of which every device has all scales.
    by_out, by_in = (("tensor",), ("tensor",)), ((None, "tensor"), ())
    assert {name: tuple(map(tuple, spec)) for name, spec in split.items()} == {
        "qkv": by_out, "out": by_in, "gate": by_out, "up": by_out, "down": by_in, "head": by_out,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (
            lambda weight: weight._replace(scale=weight.scale[:-1]),
            r"\['down'\]\.scale must be float32 \(24,\), got float32 \(23,\)",
        ),
        (
            lambda weight: weight._replace(value=weight.value.astype(jnp.int32)),
            r"\['down'\]\.value must be int8 \(24, 40\)",
        ),
        (lambda weight: dequantize(weight).T, r"\['down'\]\.scale is missing"),
    ],
)
def test_a_wrong_matrix_is_named(change, says):
    params = in_eight_bits(BASE).params
    params["layers"][1]["down"] = change(params["layers"][1]["down"])
    with pytest.raises(ValueError, match=says):
        check_params(params, BASE)


def test_the_identity_sees_rounding_and_each_scale():
    tiny = in_eight_bits(BASE)
    other = quantize_params(
        tiny.params | {"layers": make_tiny(BASE).params["layers"], "head": make_tiny(BASE).params["head"]}
    )
    checkpoint = make_checkpoint(tiny)
    plain = make_checkpoint(make_tiny(BASE))
    assert checkpoint.number_format == "float32, int8 weights"
    assert plain.number_format == "float32"
    assert "float32, int8 weights)" in repr(checkpoint)
    assert model_identity(checkpoint) == model_identity(dataclasses.replace(checkpoint, params=other))
    assert model_identity(checkpoint)["fingerprint"] != model_identity(plain)["fingerprint"]
    down = tiny.params["layers"][1]["down"]
    changed = down._replace(scale=down.scale.at[3].multiply(1.01))
    layers_of = [tiny.params["layers"][0], tiny.params["layers"][1] | {"down": changed}]
    assert weights_digest(tiny.params) != weights_digest(tiny.params | {"layers": layers_of})
    scaled = dataclasses.replace(checkpoint, params=tiny.params | {"layers": layers_of})
    assert model_identity(checkpoint)["fingerprint"] != model_identity(scaled)["fingerprint"]
