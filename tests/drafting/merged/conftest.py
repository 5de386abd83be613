import jax
import pytest
import reference
from conftest import BASE, Tiny

from jax_probe_mtp.model.params import random_params


@pytest.fixture(scope="session")
def repetitive() -> Tiny:
    """A model that is surer of its next token and falls into loops, so that drafts are right."""
    params = random_params(BASE, jax.random.key(0))
    params["head"] = params["head"] * 3
    return Tiny(BASE, params, reference.Model(params, BASE))
