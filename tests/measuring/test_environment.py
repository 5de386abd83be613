"""What a record says of where it was measured."""

import pytest
from checkpoints import make_checkpoint

from jax_probe_mtp.measuring.environment import environment


@pytest.fixture(scope="module")
def checkpoint(tiny):
    return make_checkpoint(tiny)


def test_the_environment_is_stated(checkpoint):
    stated = environment(str(checkpoint.params["embed"].dtype))
    assert stated["dtype"] == "float32"
    assert stated["backend"] == "cpu"
    assert {"jax_probe_mtp", "git_commit", "jax", "jaxlib", "numpy", "python", "device"} < set(stated)
