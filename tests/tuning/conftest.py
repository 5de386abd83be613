"""A small model and texts of its own, to tune masks on."""

import jax
import numpy as np
import pytest
from checkpoints import make_checkpoint
from conftest import BASE, Tiny
from reference import Model

from jax_probe_mtp import Settings, generate
from jax_probe_mtp.model.params import random_params


@pytest.fixture(scope="session")
def sure() -> Tiny:
    """A model that is sure of its next token, so that there is something to learn about the one after."""
    params = random_params(BASE, jax.random.key(0))
    params["head"] = params["head"] * 3
    return Tiny(BASE, params, Model(params, BASE))


@pytest.fixture(scope="session")
def checkpoint(sure):
    return make_checkpoint(sure)


@pytest.fixture(scope="session")
def texts(checkpoint):
    """Forty prompts of several lengths, and the model's answers."""
    draw = np.random.default_rng(0)
    prompts = [draw.integers(0, 26, draw.integers(2, 14)).tolist() for _ in range(40)]
    answers = generate(checkpoint, prompts, draft="plain", settings=Settings(max_new_tokens=24, batch_size=8))
    return [(answer.prompt_ids, answer.token_ids) for answer in answers]
