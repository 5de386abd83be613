"""The table of families beside what else names them."""

import re
from pathlib import Path

import pytest

from checkpoints_convert.compare import _TRANSFORMERS
from checkpoints_convert.mapping.families import BY_GGUF, FAMILIES, MAX_LAYERS, no_rope_layers, why_not
from jax_probe_mtp.model import config

DOCS = Path(__file__).parents[3] / "docs"


def test_all_name_the_same_families():
    families = {each.family for each in FAMILIES}
    assert families == set(config.FAMILIES) == set(BY_GGUF) == set(_TRANSFORMERS)
    assert all(BY_GGUF[each.family].family == each.family for each in FAMILIES)


def test_the_page_of_models_names_every_architecture_that_is_read():
    page = (DOCS / "models.md").read_text()
    assert set(re.findall(r"`(\w+ForCausalLM)`", page.split("## Refused")[0])) == {
        each.architecture for each in FAMILIES
    }


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("Qwen3MoeForCausalLM", "experts"),
        ("GptOssForCausalLM", "experts"),
        ("gpt-oss", "experts"),
        ("DeepseekV3ForCausalLM", "experts"),
        ("GraniteMoeHybridForCausalLM", "experts"),
        ("Qwen3_5ForCausalLM", "recurrent"),
        ("falcon-h1", "recurrent"),
        ("Gemma3ForCausalLM", None),
        ("Phi3ForCausalLM", None),
        *((each.architecture, None) for each in FAMILIES),
    ],
)
def test_reasons_belong_to_their_kinds(name, word):
    reason = why_not(name)
    assert word in reason if word else not reason


def test_layers_without_rope():
    assert no_rope_layers(4, 9) == (3, 7)
    assert no_rope_layers(4, 3) == no_rope_layers(0, 9) == ()
    with pytest.raises(ValueError, match="1025 layers are above 1024"):
        no_rope_layers(4, MAX_LAYERS + 1)
