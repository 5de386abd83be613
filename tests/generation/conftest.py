"""A stream of prompts through three rows, for the tests of the scheduler."""

import pytest
import reference
from checkpoints import EOS, make_checkpoint
from support.generation.row_streams import OF_REFERENCE, PROBE, PROMPTS, SETTINGS

from jax_probe_mtp.generation.programs import Programs
from jax_probe_mtp.generation.scheduler import ContinuousDecoder


@pytest.fixture(scope="module")
def checkpoint(tiny):
    return make_checkpoint(tiny)


@pytest.fixture(scope="module")
def programs(checkpoint):
    """Compiles each shape once in a file."""
    return Programs(checkpoint, PROBE)


@pytest.fixture(scope="module")
def decode(checkpoint, programs):
    """Runs a stream: all its updates, and the decoder they came from."""

    def run(prompts, settings=SETTINGS, **more):
        decoder = ContinuousDecoder(
            checkpoint, PROBE, settings, capacity=settings.capacity, is_sampled=True, programs=programs, **more
        )
        return list(decoder.run(enumerate(prompts))), decoder

    return run


@pytest.fixture(scope="module")
def expected(tiny):
    """Gives the tokens of plain decoding, and the drafts accepted in each call of the probe."""
    outputs = {}
    for prompt in PROMPTS:
        limits = {
            "max_new_tokens": prompt.max_new_tokens or 16,
            "eos": (EOS,),
            "temperature": prompt.temperature or 0.0,
            "top_k": prompt.top_k or 0,
            "top_p": prompt.top_p or 1.0,
            "seed": prompt.seed or 0,
        }
        tokens, gap = reference.plain_decode(tiny.reference, prompt.token_ids, **limits)
        assert gap > 1e-3, "choose another prompt: rounding could decide this one"
        outputs[prompt.id] = tokens, reference.probe_decode(tiny.reference, prompt.token_ids, OF_REFERENCE, **limits)[2]
    return outputs
