"""tune_a_mask.py on a small model that is sure of its next token: the mask is better, is kept, and changes no token.

That tuning itself makes masks better, step by step, is tested in tests/tuning.
"""

import dataclasses

import jax
import numpy as np
import pytest
import tune_a_mask
from checkpoints import make_checkpoint, word, words
from conftest import BASE, Tiny
from reference import Model

from jax_probe_mtp import Settings
from jax_probe_mtp.model.params import random_params
from jax_probe_mtp.tuning import TuneSettings, load_masks


@pytest.fixture(scope="module")
def checkpoint():
    cfg = dataclasses.replace(BASE, vocab_size=300)  # so many that 14 candidates are few
    params = random_params(cfg, jax.random.key(0))
    params["head"] = params["head"] * 3
    made = make_checkpoint(Tiny(cfg, params, Model(params, cfg)))
    made.tokenizer.chat_template = "{{ messages[0]['content'] }}"
    return made


@pytest.fixture
def prompts(monkeypatch, checkpoint):
    """Prompts in the words of the tiny tokenizer, in place of the example's."""
    draw = np.random.default_rng(0)
    texts = [" ".join(map(word, draw.integers(1, 26, 2 + number % 12).tolist())) for number in range(80)]
    monkeypatch.setattr(tune_a_mask, "PROMPTS", texts[:60])
    monkeypatch.setattr(tune_a_mask, "OTHERS", texts[60:])
    monkeypatch.setattr(tune_a_mask, "load_checkpoint", lambda name, dtype: checkpoint)


def test_tau_rises_and_the_tokens_stay(checkpoint, prompts, tmp_path, capsys):
    tune_a_mask.main(["--model", "tiny", "--output", str(tmp_path / "m.safetensors"), "--max-new-tokens", "24"])
    lines = capsys.readouterr().out.splitlines()
    plain, before, after = (float(part.split(" ")[-1]) for part in lines[1].removesuffix(",").split(", "))
    assert (plain, lines[2]) == (1.0, "the same tokens")
    assert 1 < before < after
    kept = load_masks(tmp_path / "m.safetensors", checkpoint)
    assert kept.masks_MD.shape == (1, BASE.width)
    assert lines[0] == f"best step {kept.about['best_step']} of 30, from {kept.about['start']}"
    assert [look["step"] for look in kept.about["looks"]] == [0, 10, 20, 30]


def test_too_few_prompts_are_refused(checkpoint):
    how = TuneSettings(steps=1, batch_size=4, micro_batch=4)
    with pytest.raises(ValueError, match="too few to tune on: give 20 or more"):
        tune_a_mask.tuned_on(checkpoint, [words(30, 31)] * 3, Settings(max_new_tokens=4), how)
