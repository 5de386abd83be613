"""A whole tuning run on a small model: it gets better, goes on after a kill as if there had been none, keeps the best."""

import dataclasses
import json
import os
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
from support.devices import cpu_devices
from support.tuning.mesh_program import MESHES

from jax_probe_mtp import Probe, Settings, generate
from jax_probe_mtp.drafting import DynamicProbe
from jax_probe_mtp.tuning import TuneSettings, tune_masks
from jax_probe_mtp.tuning.loss import HIT_SIZES

SETTINGS = TuneSettings(num_masks=2, steps=30, look_every=10, batch_size=6, micro_batch=3)
DRAFT = Probe(widths=(5, 3), mask_init="tuned")


@pytest.fixture(scope="module")
def tuned(checkpoint, texts):
    return tune_masks(checkpoint, texts, SETTINGS)


def test_tuned_masks_guess_better_and_no_token_changes(checkpoint, texts, tuned):
    start = tuned.about["looks"][0]["hits"]
    at = HIT_SIZES.index(4)
    assert tuned.about["hits"][0][at] > start[0][at] + 0.1
    prompts, settings = [prompt for prompt, _ in texts[9::10]], Settings(max_new_tokens=24, batch_size=4)
    untuned = generate(checkpoint, prompts, draft=Probe(widths=(5, 3), mask_init="mean"), settings=settings)
    answers = generate(checkpoint, prompts, draft=DRAFT, settings=settings, shared=tuned.shared)
    assert [answer.token_ids for answer in answers] == [token_ids for _, token_ids in texts[9::10]]
    assert sum(answer.calls for answer in answers) < sum(answer.calls for answer in untuned)
    assert np.sum([answer.accepted_by_depth for answer in answers], axis=0).min() > 0
    dynamic = DynamicProbe(rows=24, num_masks=2, mask_init="tuned")
    for answer, expected in zip(
        generate(checkpoint, prompts, draft=dynamic, settings=settings, shared=tuned.shared), answers, strict=True
    ):
        assert answer.token_ids == expected.token_ids


def test_the_masks_of_the_best_step_are_kept(checkpoint, texts, tuned):
    rates = [np.mean(np.asarray(look["hits"])[:, HIT_SIZES.index(14)]) for look in tuned.about["looks"]]
    assert tuned.about["best_step"] == [0, 10, 20, 30][int(np.argmax(rates))]
    short = tune_masks(checkpoint, texts, dataclasses.replace(SETTINGS, look_every=7, steps=30))
    assert [look["step"] for look in short.about["looks"]] == [0, 7, 14, 21, 28, 30]


class Killed(Exception):
    """What a kill is here: nothing runs after it."""


def test_a_run_that_was_killed_goes_on_to_the_same_masks(checkpoint, texts, tuned, tmp_path):
    seen = []

    def report(step, loss, look):
        seen.append(step)
        if step == 17 and 17 not in seen[:-1]:
            raise Killed

    with pytest.raises(Killed):
        tune_masks(checkpoint, texts, SETTINGS, folder=tmp_path / "run", report=report)
    again = tune_masks(checkpoint, texts, SETTINGS, folder=tmp_path / "run", report=report)
    assert seen == [*range(18), 10, *range(11, 31)]  # the second run begins with the last look, at step 10
    np.testing.assert_array_equal(again.masks_MD, tuned.masks_MD)
    assert again.about == tuned.about
    done = tune_masks(checkpoint, texts, SETTINGS, folder=tmp_path / "run")
    assert done.digest == tuned.digest


def test_another_run_in_the_folder_is_refused(checkpoint, texts, tmp_path):
    short = dataclasses.replace(SETTINGS, steps=10)
    tune_masks(checkpoint, texts, short, folder=tmp_path / "run")
    others = [
        (texts[1:], short, "texts: digest was"),
        (texts, dataclasses.replace(short, seed=1), "settings: seed was 0, and is 1"),
        (texts, dataclasses.replace(short, learning_rate=0.2), "settings: learning_rate was 0.1, and is 0.2"),
    ]
    for its_texts, settings, says in others:
        with pytest.raises(ValueError, match=rf"\A[^\n]*holds a run of another {says}[^\n]*delete the folder"):
            tune_masks(checkpoint, its_texts, settings, folder=tmp_path / "run")


def test_a_torn_folder_is_refused_in_one_line(checkpoint, texts, tmp_path):
    short = dataclasses.replace(SETTINGS, steps=10)
    tune_masks(checkpoint, texts, short, folder=tmp_path / "run")
    (latest,) = (path for path in (tmp_path / "run").iterdir() if path.name == "10")
    for part in ("arrays", "run"):
        copy = shutil.copytree(tmp_path / "run", tmp_path / f"torn {part}")
        for path in (copy / latest.name / part).rglob("*"):
            if path.is_file():
                path.write_bytes(path.read_bytes()[:3] if part == "arrays" else b'{"about": [], "looks": []}')
        with pytest.raises(ValueError, match=r"\A[^\n]*cannot be read[^\n]*delete it to begin anew\.\Z"):
            tune_masks(checkpoint, texts, short, folder=copy)


@pytest.fixture(scope="module")
def on_meshes(tmp_path_factory):
    output = tmp_path_factory.mktemp("mesh") / "found.json"
    own = cpu_devices(8) | {"PYTHONPATH": os.pathsep.join(sys.path)}
    command = [sys.executable, "-m", "support.tuning.mesh_program", str(output)]
    done = subprocess.run(command, env=os.environ | own, capture_output=True, timeout=900, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(output.read_text())


@pytest.mark.parametrize("number", range(1, len(MESHES)), ids=lambda number: "x".join(map(str, MESHES[number])))
def test_a_mesh_tunes_to_the_same_masks(on_meshes, number):
    alone, together = on_meshes[0], on_meshes[number]
    moved = np.abs(np.asarray(alone["masks"])).max()
    np.testing.assert_allclose(together["masks"], alone["masks"], atol=1e-3 * moved)
    for one, other in zip(together["looks"], alone["looks"], strict=True):
        np.testing.assert_allclose(one["hits"], other["hits"], atol=0.05)


@pytest.mark.parametrize("number", range(1, len(MESHES)), ids=lambda number: "x".join(map(str, MESHES[number])))
def test_a_mesh_chooses_the_same_masks(on_meshes, number):
    assert on_meshes[number]["chosen"] == on_meshes[0]["chosen"]
    chosen, means = on_meshes[0]["chosen"]
    assert [tokens for tokens, _ in chosen] == [tokens for tokens, _ in means]
    assert chosen != means, "these prompts all take the paper's mask: choose others"


def test_texts_that_cannot_be_split_are_refused(on_meshes):
    assert on_meshes[-1] == "micro_batch 3 cannot be split over data=2; use a multiple of it."


def test_no_array_holds_the_logits_of_all_rows(checkpoint, texts):
    """The compiled step of many rows keeps no more logits than a block has."""
    from jax_probe_mtp.tuning import loss
    from jax_probe_mtp.tuning.run import Run, _step
    from jax_probe_mtp.tuning.texts import split

    settings = dataclasses.replace(SETTINGS, num_masks=3, micro_batch=6)
    run = Run(checkpoint, split(texts, num_masks=3, max_length=200, vocab_size=61), settings)
    state = run.start()
    arrays = run._arrays(run._used.tuned_on[:6], 6)
    rows = 6 * run._used.num_places * 3
    assert rows > loss.BLOCK
    text = (
        _step.lower(run._params, state, arrays, run._deviation, cfg=checkpoint.config, settings=settings)
        .compile()
        .as_text()
    )
    vocab = checkpoint.config.vocab_size
    assert f"f32[{loss.BLOCK},{vocab}]" in text
    assert f"f32[{rows},{vocab}]" not in text
    assert f"[{-(-rows // loss.BLOCK)},{loss.BLOCK},{vocab}]" not in text


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"num_masks": 4}, "num_masks must be 1 to 3, the depths of a tree, got 4"),
        ({"num_masks": 0}, "num_masks must be a whole number of at least 1, got 0"),
        ({"steps": 2.5}, "steps must be a whole number of at least 1, got 2.5"),
        ({"batch_size": 8, "micro_batch": 3}, "batch_size 8 must be a multiple of micro_batch 3"),
        ({"learning_rate": float("nan")}, "learning_rate must be above 0 and at most 10, got nan"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
    ],
)
def test_settings_that_make_no_sense_are_refused(wrong, says):
    with pytest.raises(ValueError, match=rf"\A{says}[^\n]*\Z"):
        TuneSettings(**wrong)


def test_what_is_no_array_of_masks_is_refused(checkpoint, tuned):
    with pytest.raises(ValueError, match=r"\A[^\n]*float32\[2, 24\], got TunedMasks; [^\n]*their \.shared[^\n]*\Z"):
        generate(checkpoint, [[1, 2]], draft=DRAFT, shared=tuned)


def test_masks_that_the_caller_must_bring_are_asked_for(checkpoint):
    with pytest.raises(ValueError, match=r"\A[^\n]*needs tuned masks of float32\[2, 24\][^\n]*--masks FILE\.\Z"):
        generate(checkpoint, [[1, 2]], draft=DRAFT)
    with pytest.raises(ValueError, match=r"\A[^\n]*float32\[2, 24\], got float32\[1, 24\]"):
        generate(checkpoint, [[1, 2]], draft=DRAFT, shared=jax.numpy.zeros((1, 24)))
