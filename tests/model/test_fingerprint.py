"""The fingerprint of a model: the same for the same weights, another for others."""

import jax
import pytest
from checkpoints import make_checkpoint

from jax_probe_mtp.model.fingerprint import model_identity
from jax_probe_mtp.model.params import random_params


@pytest.fixture(scope="module")
def checkpoint(tiny):
    return make_checkpoint(tiny)


def test_identity_tells_models_apart(tiny, checkpoint):
    same = model_identity(make_checkpoint(tiny))
    assert same == model_identity(checkpoint)
    assert same["name"] == "tiny"
    other = make_checkpoint(type(tiny)(tiny.cfg, random_params(tiny.cfg, jax.random.key(99)), tiny.reference))
    assert model_identity(other)["fingerprint"] != same["fingerprint"]
