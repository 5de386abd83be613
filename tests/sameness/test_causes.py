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
from jax_probe_mtp.sameness.causes import TEMPERATURES, Causes
from jax_probe_mtp.sameness.file_report import FileReport
from jax_probe_mtp.sameness.output import Examined, Output
from jax_probe_mtp.sameness.own_choices import Choices
from jax_probe_mtp.sameness.verdicts import DIVERGED, Verdict

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


def test_swapped_records_are_named_where_half_of_the_prompts_are_missing(model):
    """Every second answer is the next record's; of the first three that are asked one at most fits a prompt of the file."""
    answers = model.answers()
    moved = answers[1:] + answers[:1]
    there = [n for n in range(24) if n % 4 in (0, 1)]  # those of n = 1, 5, ... have no prompt here
    outputs = [
        Output(prompt=Prompt(id=f"r{n}", token_ids=PROMPTS[n]), token_ids=moved[n], limit=LIMIT)
        for n in sorted(there, key=lambda n: n % 4 == 0)
    ]
    report = FileReport(model.checkpoint, SETTINGS, True)
    list(report.verdicts(outputs))
    [found] = report.causes
    assert found.startswith("outputs were swapped between records: ")
    assert "'r0' fits the prompt of record 'r1'" in found
    assert "'r1' fits" not in found


def test_answers_to_prompts_that_are_not_there_are_not_said_to_be_swapped(model):
    answers, half = model.answers(), range(0, 24, 2)
    outputs = [
        Output(prompt=Prompt(id=f"r{n}", token_ids=PROMPTS[n]), token_ids=answers[n + 1], limit=LIMIT) for n in half
    ]
    report = FileReport(model.checkpoint, SETTINGS, True)
    list(report.verdicts(outputs))
    assert not any("swapped" in line for line in report.causes)


def test_one_answer_in_several_places_is_no_swap(model):
    """That of r1 stands under r0 and r5, where two of fifteen fit a prompt, and noise under all others."""
    draw = np.random.default_rng(4)
    given = [draw.integers(3, 61, LIMIT).tolist() for _ in PROMPTS]
    given[0] = given[5] = model.answers()[1]
    assert not any("swapped" in line for line in model.causes(given))


def test_short_answers_are_not_said_to_be_swapped(model):
    """Labels fit many prompts: two tokens, even where they are swapped, tell nothing."""
    prompts = [ids.tolist() for ids in np.random.default_rng(5).integers(0, 61, (60, 6))]
    answers = [answer[:2] for answer in model.answers(prompts)]
    outputs = [
        Output(prompt=Prompt(id=n, token_ids=ids), token_ids=answers[n - 1], limit=2) for n, ids in enumerate(prompts)
    ]
    report = FileReport(model.checkpoint, SETTINGS, True)
    list(report.verdicts(outputs))
    assert report.causes
    assert not any("swapped" in line for line in report.causes)


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


@pytest.mark.parametrize(
    ("gap", "number", "named"),
    [
        (0.5, 12, "another prompt, template"),
        (0.05, 12, "weights that differ a little everywhere"),  # eight bits where two tokens nearly tie
        (0.05, 6, None),  # too few to tell
    ],
)
def test_answers_that_open_otherwise_by_a_hair_have_no_other_prompt(model, gap, number, named):
    """Of 12 answers some have another first token than the model's best, and all others are its best."""
    causes = Causes(end_ids=(EOS,), settings=SETTINGS)
    best = np.full(50, 7)
    for n in range(12):
        given = np.where((np.arange(50) == 0) & (n < number), 8, 7)
        choices = Choices(best_BA=best, best_score_BA=np.ones(50), given_score_BA=np.where(given == 7, 1, 1 - gap))
        output = Output(prompt=Prompt(id=n, token_ids=[n + 1, 3]), token_ids=given.tolist(), limit=50)
        causes.add(
            Examined(output=output, verdict=Verdict(id=n, kind=DIVERGED, num_tokens=50), choices=choices),
            is_drawn=False,
        )
    found = causes.lines(model.checkpoint, 4)
    assert (found[0].startswith(named) and len(found) == 1) if named else not found
