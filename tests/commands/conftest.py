"""The model that commands are tested on, and the tokens expected of it."""

import pytest
import reference
from checkpoints import EOS, make_checkpoint, write_folder
from support.commands import PROMPTS

TREE = {
    "tree": (7, 3),
    "num_masks": 2,
    "block_complexity": None,
    "prune": True,
    "mask_init": "mean",
    "mask_offset": 5.0,
}


@pytest.fixture(autouse=True, scope="module")
def _compiled_once(programs_are_compiled_once):
    """All commands share what they compile."""


@pytest.fixture(scope="session")
def model(tiny, tmp_path_factory):
    return str(write_folder(tmp_path_factory.mktemp("models") / "tiny", make_checkpoint(tiny)))


@pytest.fixture(autouse=True)
def _no_traces_at_home(own_caches):
    """Also where a test calls `main` itself or starts a process."""


@pytest.fixture(scope="session")
def expected(tiny):
    """Greedy tokens of each prompt, and the drafts accepted in each call."""
    outputs = {}
    for name, prompt in PROMPTS.items():
        tokens, gap = reference.plain_decode(tiny.reference, prompt, max_new_tokens=24, eos=(EOS,))
        assert gap > 2e-3, "choose another prompt: rounding could decide this one"
        accepted = reference.probe_decode(tiny.reference, prompt, TREE, max_new_tokens=24, eos=(EOS,))[2]
        outputs[name] = tokens, accepted
    return outputs


@pytest.fixture(scope="session")
def plain(expected):
    return {name: tokens for name, (tokens, _) in expected.items()}
