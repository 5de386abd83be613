"""What is said of a whole file: two models, a baseline, JSON, lines, and how much of a file is in memory."""

import dataclasses
import json
import re
import weakref

import numpy as np
import pytest
from checkpoints import EOS, make_checkpoint
from conftest import BASE, make_tiny

from jax_probe_mtp.decoding.settings import Prompt, Settings
from jax_probe_mtp.drafting import Plain
from jax_probe_mtp.generation.decoder import Decoder
from jax_probe_mtp.sameness.evidence import BLOCK
from jax_probe_mtp.sameness.file_report import FALSE_ALARM, FileReport
from jax_probe_mtp.sameness.given_outputs import BATCHES_A_WINDOW
from jax_probe_mtp.sameness.output import Output
from jax_probe_mtp.sameness.verdicts import summary

LIMIT = 60
SETTINGS = Settings(batch_size=16, max_new_tokens=LIMIT)
DRAW = {"temperature": 1.0, "top_p": 0.9}
PROMPTS = [ids.tolist() for ids in np.random.default_rng(0).integers(0, 61, (48, 6))]

pytestmark = pytest.mark.usefixtures("programs_are_compiled_once")


def model_of(seed):
    """A random model with larger logits, so that it is as sure of itself as a trained one."""
    checkpoint = make_checkpoint(make_tiny(BASE, seed=seed))
    return dataclasses.replace(checkpoint, params=checkpoint.params | {"head": checkpoint.params["head"] * 4})


@pytest.fixture(scope="module")
def models():
    return {"A": model_of(3), "B": model_of(4)}


@pytest.fixture(scope="module")
def answers(models):
    """(model, settings) -> its answers to the prompts."""
    decoders, known = {name: Decoder(model, Plain()) for name, model in models.items()}, {}

    def made(name, **settings):
        key = (name, *settings.items())
        if key not in known:
            asked = [Prompt(id=n, token_ids=ids) for n, ids in enumerate(PROMPTS)]
            found = decoders[name].run(asked, dataclasses.replace(SETTINGS, **settings))
            known[key] = [each.token_ids for each in found]
        return known[key]

    return made


def outputs(answers, **more):
    for n, (ids, answer) in enumerate(zip(PROMPTS, answers, strict=False)):
        yield Output(prompt=Prompt(id=n, token_ids=ids), token_ids=answer, limit=LIMIT, **more)


def read(model, given, *, settings=SETTINGS, **how):
    """A report whose verdicts were read, and the verdicts."""
    report = FileReport(model, settings, **how)
    return report, list(report.verdicts(given))


def drawn_as(**draw):
    return {"settings": dataclasses.replace(SETTINGS, **draw), "knows_seeds": False}


def assert_readable(report, name="A"):
    """JSON has no NaN, and the lines no number that is none."""
    lines = report.lines(name)
    json.dumps(report.as_json(), allow_nan=False)
    for line in lines:
        assert "\n" not in line
        assert " nan" not in line
        assert "+nan" not in line
        assert " inf" not in line
        assert "None" not in line
        assert len(line) < 400
    return lines


def test_of_two_models_the_one_that_made_the_outputs_explains_them(models, answers):
    for name, other in (("A", "B"), ("B", "A")):
        for maker in "AB":
            report, _ = read(models[name], outputs(answers(maker)), other=(other, models[other]))
            line = next(line for line in assert_readable(report, name) if "log-likelihood ratio" in line)
            loser = "B" if maker == "A" else "A"
            assert line.startswith(f"{maker} explains the tokens, not {loser}: ")
            found = report.as_json()["against_model"]
            assert (found["log_likelihood_ratio"] > 0) == (maker == name)
            assert 0 < found["decided_after_tokens"] < 100
            assert found["tokens"] == sum(map(len, answers(maker)))
            assert found["model"] == other


def test_draws_are_explained_by_the_model_they_are_of(models, answers):
    drawn = answers("A", seed=3, **DRAW)
    report, verdicts = read(models["A"], outputs(drawn), other=("B", models["B"]), **drawn_as(**DRAW))
    assert {each.kind for each in verdicts} == {"scored"}
    assert any(line.startswith("A explains the tokens, not B: ") for line in assert_readable(report))
    assert report.as_json()["greedy"] is None
    assert report.drawn.p_likelihood > 1e-3
    assert report.drawn.p_uniform > 1e-3
    assert report.drawn.impossible == 0
    assert not any("not draws" in line for line in report.lines("A"))
    other, verdicts = read(models["B"], outputs(drawn), **drawn_as(temperature=1.0))
    assert other.drawn.p_likelihood < 1e-6
    assert any("not draws of this model at the stated temperature" in line for line in assert_readable(other))
    assert {each.kind for each in verdicts} == {"scored"}, "one answer says too little"


def test_a_model_alone_is_as_likely_as_itself(models, answers):
    report, _ = read(models["A"], outputs(answers("A")), other=("copy", models["A"]))
    assert report.likelihoods.log_ratio == 0
    assert any(line.startswith("A and copy explain the tokens alike: ") for line in assert_readable(report))


def test_tokens_that_another_cut_may_explain_are_in_no_statistic(models, answers):
    unsure = [
        dataclasses.replace(each, is_from_text=True, is_ambiguous=[True] * len(each.token_ids))
        for each in outputs(answers("A")[1:] + answers("A")[:1])
    ]
    report, verdicts = read(models["A"], unsure, other=("B", models["B"]))
    assert {each.kind for each in verdicts} == {"same"}
    assert report.greedy.tokens == 0
    assert report.greedy.ambiguous > 1000
    assert report.likelihoods.tokens == 0
    assert report.causes == []


def test_an_ambiguous_token_that_cuts_leave_out_is_not_called_diverged(models, answers):
    """Of drawn text, too: the tokenizer may have put it there."""
    given = next(outputs(answers("B")))
    unsure = dataclasses.replace(given, is_from_text=True, is_ambiguous=[True] * len(given.token_ids))
    draw = drawn_as(temperature=1.0, top_k=1)
    [certain] = read(models["A"], [given], **draw)[1]
    assert certain.kind == "diverged", "the cut leaves every token in: choose another answer"
    report, [found] = read(models["A"], [unsure], **draw)
    assert report.drawn.impossible == 0
    assert found.kind == "scored"


def many(answers, **more):
    """The file five times: enough blocks for a test."""
    return [each for _ in range(5) for each in outputs(answers, **more)]


def test_a_baseline_gives_a_p_value(models, answers):
    honest, other = answers("A"), answers("A", temperature=0.5, seed=1)
    baseline, _ = read(models["A"], many(honest))
    assert len(baseline.greedy.blocks) == sum(map(len, honest)) * 5 // BLOCK >= 12
    for given, is_same in ((honest, True), (other, False)):
        report, _ = read(models["A"], many(given))
        report.compare_with(baseline)
        [p] = report.as_json()["p_against_baseline"].values()
        assert (p >= FALSE_ALARM) == is_same
        [line] = [line for line in assert_readable(report) if line.startswith("greedy tokens and ")]
        assert ("nothing tells them from the baseline" in line) == is_same
        assert ("not made as the baseline was" in line) == (not is_same)
        assert report.as_json()["baseline"]["greedy"]["match_rate"] == 1
    assert baseline.causes == []


def test_a_file_too_short_for_a_p_value_says_so(models, answers):
    baseline, _ = read(models["A"], many(answers("A")))
    report, _ = read(models["A"], outputs(answers("A")[:2]))
    report.compare_with(baseline)
    [line] = [line for line in assert_readable(report) if line.startswith("greedy tokens and ")]
    assert "known seeds: too few to tell from the baseline: 0 and " in line
    assert report.as_json()["p_against_baseline"] == {"greedy": None}


def test_so_few_blocks_that_no_p_value_could_be_small_are_not_called_alike(models, answers):
    """Of 2 blocks against 3 the smallest p-value is 1 in 10: the test could not have told them apart."""
    baseline, _ = read(models["A"], list(outputs(answers("A")))[:20])
    report, _ = read(models["A"], list(outputs(answers("B")))[:15])
    assert len(report.greedy.blocks) * len(baseline.greedy.blocks) in (2, 4, 6)
    report.compare_with(baseline)
    assert report.match_rate < 0.5
    assert not any("nothing tells them from the baseline" in line for line in assert_readable(report))


def test_reports_of_odd_files_have_values_or_none(models):
    odd = [
        Output(prompt=Prompt(id="empty", token_ids=[1, 2]), token_ids=[], limit=9),
        Output(prompt=Prompt(id="no prompt", token_ids=[]), token_ids=[1], limit=9),
        Output(prompt=Prompt(id="refused", token_ids=[1]), token_ids=[1], limit=9, error="no template."),
    ]
    seen = []
    report, verdicts = read(models["A"], odd, other=("B", models["B"]), of_each=seen.append)
    assert [each.kind for each in verdicts] == ["incomplete", "unchecked", "unchecked"]
    assert [each.output.prompt.id for each in seen] == ["empty", "no prompt", "refused"]
    assert_readable(report)
    assert np.isnan(report.match_rate)
    assert (report.as_json()["greedy"], report.as_json()["drawn"], report.as_json()["causes"]) == (None, None, [])
    certain, _ = read(
        models["A"], [dataclasses.replace(odd[0], token_ids=[3, EOS])], **drawn_as(temperature=1.0, top_k=1)
    )
    assert_readable(certain)


def test_the_conclusion_is_one_line(models, answers):
    def concluded(given, model="A", **how):
        report, verdicts = read(models[model], given, **how)
        return report.conclusion(summary(verdicts))

    honest, other, drawn = answers("A"), answers("B"), answers("A", seed=3, **DRAW)
    assert (
        concluded(outputs(honest)) == "this model's: every token that was compared is its own choice, or ties with it"
    )
    assert concluded(outputs(other)).startswith(
        f"not this model's as stated: {len(other)} of {len(other)} outputs differ"
    )
    [first] = outputs(honest[:1])
    short = dataclasses.replace(first, token_ids=first.token_ids[:4])
    assert concluded([first, short]) == "what is there is this model's, but 1 of 2 outputs are no whole answers"
    unreadable = dataclasses.replace(first, token_ids=[10**6])
    assert concluded([first, unreadable]) == "not known: 1 of 2 outputs could not be checked"
    assert concluded([]) == "not known: the file holds no outputs"
    nothing_sure = dataclasses.replace(first, is_from_text=True, is_ambiguous=[True] * len(first.token_ids))
    assert concluded([nothing_sure]) == "not known: no token could be compared"
    [draw] = outputs(drawn[:1])
    endless = concluded([dataclasses.replace(draw, token_ids=draw.token_ids[:5], limit=None)], **drawn_as(**DRAW))
    assert endless.startswith("nothing speaks against this model")
    assert endless.endswith("1 of 1 outputs are no whole answers")
    right, wrong = (concluded(outputs(drawn), model, **drawn_as(**DRAW)) for model in "AB")
    assert re.fullmatch(
        r"nothing speaks against this model \(p = 0?\.\d+\), which does not prove that it drew them", right
    )
    assert wrong.startswith("not this model's as stated: ")


def test_a_file_without_a_comparable_token_is_not_passed_in_silence(models):
    report, _ = read(models["A"], [Output(prompt=Prompt(id="empty", token_ids=[1, 2]), token_ids=[], limit=9)])
    assert any("no token could be compared" in line for line in report.lines("A"))


def test_lines_show_the_text_around_a_difference(models, answers):
    honest = answers("A")[0]
    wrong = [*honest[:3], (honest[3] + 1) % 20, *honest[4:]]
    _, [found] = read(models["A"], outputs([wrong]))
    text = models["A"].tokenizer.decode
    assert f"behind {text(honest[:3])!r} plain says {text(honest[3:4])!r}, this {text(wrong[3:4])!r}" in str(found)


@pytest.mark.parametrize("has_other", [False, True])
def test_a_file_is_read_as_its_verdicts_are(models, has_other):
    """Neither read ahead by more than two windows, nor kept."""
    settings, alive, made = Settings(batch_size=2), [0], [0]
    window = settings.batch_size * BATCHES_A_WINDOW

    def gone():
        alive[0] -= 1

    def given():
        for n in range(320):
            each = Output(prompt=Prompt(id=n, token_ids=[n % 61, 5, 7]), token_ids=[n % 7, n % 11], limit=2)
            weakref.finalize(each, gone)
            made[0], alive[0] = n + 1, alive[0] + 1
            yield each
            del each

    report = FileReport(models["A"], settings, other=("B", models["B"]) if has_other else None)
    count = 0
    for count, verdict in enumerate(report.verdicts(given()), 1):
        assert verdict.id == count - 1
        assert made[0] - count < 2 * window
        assert alive[0] <= 3 * window
    assert count == made[0] == 320
    assert report.greedy.records == 320
