"""The fingerprint of a model: the same for the same weights, another for others."""

from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import make_checkpoint
from conftest import FAMILIES, make_tiny

from jax_probe_mtp.model.fingerprint import local_weights_digest, model_identity, weights_digest
from jax_probe_mtp.model.params import abstract_params, random_params


@pytest.fixture(scope="module")
def checkpoint(tiny):
    return make_checkpoint(tiny)


def test_identity_tells_models_apart(tiny, checkpoint):
    same = model_identity(make_checkpoint(tiny))
    assert same == model_identity(checkpoint)
    assert same["name"] == "tiny"
    other = make_checkpoint(type(tiny)(tiny.cfg, random_params(tiny.cfg, jax.random.key(99)), tiny.reference))
    assert model_identity(other)["fingerprint"] != same["fingerprint"]


@pytest.mark.parametrize(
    ("family", "expected"),
    [("llama", "d5d8e64e4eacd659"), ("qwen2", "c299d2b909d9f6f6"), ("qwen3", "fecc9b6ce41c3ee6")],
)
def test_fingerprints_are_those_of_the_first_layout(family, expected):
    """Given by the code whose gate and up were one array: files of tuned masks hold such fingerprints."""
    cfg = FAMILIES[family]
    numbers = [
        np.arange(leaf.size, dtype=np.float32).reshape(leaf.shape) for leaf in jax.tree.leaves(abstract_params(cfg))
    ]
    params = jax.device_put(jax.tree.unflatten(jax.tree.structure(abstract_params(cfg)), numbers))
    checkpoint = make_checkpoint(SimpleNamespace(params=params, cfg=cfg))
    assert model_identity(checkpoint)["fingerprint"] == expected


def changed(params, change):
    """The parameters with one weight changed, in the last layer and far from the first values."""
    down = np.array(params["layers"][-1]["down"])
    change(down)
    *layers, last = params["layers"]
    return {**params, "layers": [*layers, {**last, "down": jnp.asarray(down)}]}


def swap(down):
    down[11, 17], down[12, 3] = down[12, 3], down[11, 17]


def negate_two(down):
    down[11, 17] *= -1
    down[12, 3] *= -1


def nudge(down):
    down[11, 17] = np.nextafter(down[11, 17], np.float32(1e9))


@pytest.mark.parametrize("change", [swap, negate_two, nudge])
def test_a_digest_sees_every_bit_of_every_weight(tiny, change):
    before, after = weights_digest(tiny.params), weights_digest(changed(tiny.params, change))
    assert len(before) == 16
    assert before == weights_digest(jax.tree.map(jnp.array, tiny.params))
    assert before != after
    here, other = local_weights_digest(tiny.params), local_weights_digest(changed(tiny.params, change))
    assert here[0] == other[0]
    assert here[1] != other[1]


@pytest.mark.parametrize("family", FAMILIES)
def test_a_digest_sees_every_tensor(family):
    """Vectors too: norms, and the biases of Qwen2."""
    params = make_tiny(FAMILIES[family], seed=2).params
    leaves, tree = jax.tree.flatten(params)
    seen = {weights_digest(params)}
    for place, leaf in enumerate(leaves):
        nudged = np.array(leaf)
        nudged.flat[-1] = np.nextafter(nudged.flat[-1], np.float32(1e9))
        seen.add(weights_digest(jax.tree.unflatten(tree, [*leaves[:place], jnp.asarray(nudged), *leaves[place + 1 :]])))
    assert len(seen) == 1 + len(leaves)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_zeros_behind_the_vocabulary_change_nothing(tiny, dtype):
    params = jax.tree.map(lambda leaf: leaf.astype(dtype), tiny.params)
    padded = {
        **params,
        "embed": jnp.pad(params["embed"], ((0, 3), (0, 0))),
        "head": jnp.pad(params["head"], ((0, 5), (0, 0))),
    }
    assert weights_digest(padded) == weights_digest(params)
    assert weights_digest({**params, "embed": params["embed"][:-1]}) != weights_digest(params)
    assert weights_digest(params) != weights_digest(jax.tree.map(lambda leaf: leaf * 2, params))
