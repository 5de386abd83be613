"""Causes, end to end: answers of the project's own decoder with a planted fault are told what it was, honest ones nothing."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from checkpoints import EOS, make_checkpoint
from conftest import BASE, make_tiny

from jax_probe_mtp.decoding.settings import Prompt, Settings
from jax_probe_mtp.drafting import Plain
from jax_probe_mtp.generation.decoder import Decoder
from jax_probe_mtp.sameness.causes import TEMPERATURES
from jax_probe_mtp.sameness.file_report import FileReport
from jax_probe_mtp.sameness.output import Output

LIMIT = 60
SETTINGS = Settings(batch_size=24, max_new_tokens=LIMIT)
PROMPTS = [ids.tolist() for ids in np.random.default_rng(0).integers(0, 61, (24, 6))]
SYSTEM = [5, 6]

pytestmark = pytest.mark.usefixtures("programs_are_compiled_once")


def peaked(checkpoint, scale):
    """Larger logits: a random model is unsure everywhere, and a trained one is not."""
    return dataclasses.replace(checkpoint, params=checkpoint.params | {"head": checkpoint.params["head"] * scale})


class Model:
    """A checkpoint and what it answers."""

    def __init__(self, checkpoint):
        self.checkpoint, self._decoder, self._known = checkpoint, Decoder(checkpoint, Plain()), {}

    def answers(self, prompts=PROMPTS, **settings):
        key = str((prompts, settings))
        if key not in self._known:
            asked = [Prompt(id=f"r{n}", token_ids=ids) for n, ids in enumerate(prompts)]
            found = self._decoder.run(asked, dataclasses.replace(SETTINGS, **settings))
            self._known[key] = [each.token_ids for each in found]
        return list(self._known[key])

    def causes(self, answers, *, limit=LIMIT, knows_seeds=True, others=None, **settings):
        """`others` makes of a prompt's ids another prompt that may have been asked."""
        report = FileReport(self.checkpoint, dataclasses.replace(SETTINGS, **settings), knows_seeds)
        outputs = [
            Output(
                prompt=Prompt(id=f"r{n}", token_ids=ids),
                token_ids=answer,
                limit=limit,
                other_prompts=lambda ids=ids: others(ids) if others else {},
            )
            for n, (ids, answer) in enumerate(zip(PROMPTS, answers, strict=True))
        ]
        assert len(list(report.verdicts(outputs))) == len(outputs)
        return report.causes


@pytest.fixture(scope="module")
def models():
    """By how peaked they are."""
    checkpoint = make_checkpoint(make_tiny(BASE, seed=3))
    return {scale: Model(peaked(checkpoint, scale)) for scale in (1, 3, 8)}


@pytest.fixture(scope="module")
def model(models):
    return models[8]


def with_system(ids):
    return {"with a system message": [*SYSTEM, *ids], "with another one": [9, 9, 9, *ids]}


def rounded(checkpoint, bits):
    """Matrices rounded to so many bits, with a scale for each row."""

    def leaf(values):
        if values.ndim != 2:
            return values
        step = jnp.abs(values).max(axis=1, keepdims=True) / (2 ** (bits - 1) - 1)
        return jnp.round(values / step) * step

    return dataclasses.replace(checkpoint, params=jax.tree.map(leaf, checkpoint.params))


def test_honest_answers_have_no_cause(model):
    assert model.causes(model.answers()) == []
    penalty = {"repetition_penalty": 1.3}
    assert model.causes(model.answers(**penalty), **penalty) == []
    draw = {"temperature": 1.0, "top_p": 0.9}
    drawn = model.answers(seed=5, **draw)
    assert model.causes(drawn, seed=5, **draw) == []
    assert model.causes(drawn, knows_seeds=False, **draw) == []


def test_prompts_that_are_included_are_named(model):
    both = [ids + answer for ids, answer in zip(PROMPTS, model.answers(), strict=True)]
    found = model.causes(both, limit=LIMIT + 6)
    assert found[0] == "the prompt is included: 24 of 24 outputs begin with their prompt's tokens"


def test_a_dropped_end_is_named(model):
    dropped = [answer[:-1] if answer[-1] == EOS and answer[1:] else answer for answer in model.answers()]
    ended = sum(answer != whole for answer, whole in zip(dropped, model.answers(), strict=True))
    assert ended >= 3, "choose other prompts: too few answers come to an end"
    [found] = model.causes(dropped)
    assert found == (
        f"the end-of-text token was dropped: of {ended} outputs without one, the model would say it next in {ended}"
    )


def test_answers_that_were_cut_off_are_named(model):
    [found] = model.causes([answer[:30] for answer in model.answers()])
    number = sum(len(answer) > 30 for answer in model.answers())
    assert found.startswith("outputs were cut off: the model would go on behind ")
    assert re.findall(r"\d+", found)[-1] == str(number)


def test_draws_without_their_end_are_not_said_to_go_on(models):
    """A draw that ended need not have ended where its end was likely, so its missing end shows nothing."""
    draw = {"temperature": 1.0}
    drawn = [answer[:-1] if answer[-1] == EOS else answer for answer in models[3].answers(seed=2, **draw)]
    assert sum(len(answer) < LIMIT for answer in drawn) >= 3
    found = models[3].causes([answer or [1] for answer in drawn], knows_seeds=False, **draw)
    assert not any("cut off" in line for line in found)


@pytest.mark.parametrize("scale", [1, 8])
def test_swapped_records_are_named_with_their_prompts(models, scale):
    answers = models[scale].answers()
    [found] = models[scale].causes(answers[1:] + answers[:1])
    assert found.startswith("outputs were swapped between records: ")
    for own, other in (("r0", "r1"), ("r1", "r2"), ("r2", "r3")):
        assert f"{own!r} fits the prompt of record {other!r}" in found


def test_two_swapped_records_of_many_are_no_fault_of_the_weights(model):
    answers = model.answers()
    places = [n for n, answer in enumerate(answers) if len(answer) == LIMIT][:2]
    answers[places[0]], answers[places[1]] = answers[places[1]], answers[places[0]]
    [found] = model.causes(answers)
    assert found.startswith("outputs were swapped between records: ")


@pytest.mark.parametrize("scale", [1, 3])
def test_another_prompt_is_named_where_it_is_tried(models, scale):
    asked = models[scale].answers([[*SYSTEM, *ids] for ids in PROMPTS])
    [found] = models[scale].causes(asked, others=with_system)
    assert found.startswith("another prompt or template: the prompt with a system message fits, 100% of record ")


@pytest.mark.parametrize("scale", [1, 3])
def test_another_prompt_that_nobody_tried_is_no_draw(models, scale):
    asked = models[scale].answers([[*SYSTEM, *ids] for ids in PROMPTS])
    [found] = models[scale].causes(asked)
    assert found.startswith("another prompt, template")


@pytest.mark.parametrize("scale", [1, 8])
@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_draws_judged_as_greedy_look_sampled(models, scale, temperature):
    [found] = models[scale].causes(models[scale].answers(temperature=temperature, seed=5))
    said = re.match(r"the outputs look sampled, not greedy: .*at temperature ([\d.]+) ", found)
    assert said, found
    assert float(said[1]) in TEMPERATURES
    assert float(said[1]) == pytest.approx(temperature, abs=0.11)


def test_draws_of_another_seed_are_not_told_to_state_a_temperature(model):
    """They state one: what differs is the seed."""
    drawn = model.answers(temperature=1.0, seed=5)
    found = model.causes(drawn, temperature=1.0, seed=6)
    assert found
    assert not any("not greedy" in line for line in found)
    assert not any("another prompt" in line for line in found)


@pytest.mark.parametrize("scale", [1, 3])
@pytest.mark.parametrize("penalty", [1.1, 1.3])
def test_a_repetition_penalty_is_named(models, scale, penalty):
    [found] = models[scale].causes(models[scale].answers(repetition_penalty=penalty))
    assert found.startswith("a repetition penalty was in force: ")


@pytest.mark.parametrize(("scale", "bits"), [(1, 8), (1, 6), (8, 8)])
def test_rounded_weights_are_named_by_their_many_small_gaps(models, scale, bits):
    """Coarser ones act as a temperature does: neither likelihood nor places tell six bits at scale 8 from 0.7."""
    checkpoint = models[scale].checkpoint
    [found] = models[scale].causes(Model(rounded(checkpoint, bits)).answers())
    assert found.startswith(("weights that differ a little everywhere", "rounding, as of bfloat16"))


def test_few_tokens_have_no_cause(model):
    """99 compared tokens, all wrong, are too few; the form of the answers counts all the same."""
    answers = [[(token + 1) % 26 for token in answer[:4]] for answer in model.answers()]
    found = model.causes(answers)
    assert len(found) <= 1
    assert all("cut off" in line for line in found)
