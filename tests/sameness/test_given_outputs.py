"""Verdicts on outputs of any framework: what is forgiven, what is not, and what is no whole answer."""

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import reference
from checkpoints import EOS, make_checkpoint, words

from jax_probe_mtp.decoding.settings import Prompt, Settings
from jax_probe_mtp.sameness import given_outputs, verdicts
from jax_probe_mtp.sameness.first_difference import Difference
from jax_probe_mtp.sameness.given_outputs import examine
from jax_probe_mtp.sameness.output import Output
from jax_probe_mtp.sameness.verdicts import Verdict

PROMPT = [5, 9, 2, 44, 17, 3, 3]
SETTINGS = Settings(batch_size=3)


@pytest.fixture(scope="module")
def checkpoint(tiny):
    return make_checkpoint(tiny)


@pytest.fixture(scope="module")
def plain(tiny):
    tokens, gap = reference.plain_decode(tiny.reference, PROMPT, max_new_tokens=12)
    assert gap > 0.01
    assert EOS not in tokens
    return tokens


def output(token_ids, *, limit=12, prompt=PROMPT, name="a", **more):
    own = {key: more.pop(key) for key in ("temperature", "top_k", "top_p", "seed", "stop") if key in more}
    return Output(prompt=Prompt(id=name, token_ids=prompt, **own), token_ids=token_ids, limit=limit, **more)


def judge(checkpoint, given, settings):
    return [found.verdict for found in examine(checkpoint, given, settings)]


def verdict(checkpoint, *args, settings=SETTINGS, **more):
    [found] = judge(checkpoint, [output(*args, **more)], settings)
    return found


def with_twin(checkpoint, token, twin, gap):
    """The checkpoint with a head whose `twin` scores `gap` less than `token` after the prompt, and a little less elsewhere."""
    head = np.array(checkpoint.params["head"], np.float64)
    model = reference.Model(checkpoint.params, checkpoint.config)
    score = model.logits(model.embed(PROMPT))[-1][token]
    head[twin] = head[token] * (1 - gap / score)
    return dataclasses.replace(checkpoint, params=checkpoint.params | {"head": jnp.asarray(head, jnp.float32)})


def test_plain_decodings_own_output_is_the_same(checkpoint, plain):
    found = verdict(checkpoint, plain, category="math")
    assert (found.kind, found.num_tokens, found.num_differences, found.category) == ("same", 12, 0, "math")
    assert str(found) == "a: same 12 tokens"


@pytest.mark.parametrize("place", [0, 7, 11])
def test_a_wrong_token_is_found_with_both_scores(checkpoint, tiny, plain, place):
    wrong = [*plain]
    wrong[place] = (plain[place] + 1) % 26
    found = verdict(checkpoint, wrong)
    assert found.kind == "diverged"
    logits_V = tiny.reference.logits(tiny.reference.embed(PROMPT + wrong[:place]))[-1]
    difference = found.difference
    assert (difference.position, difference.plain_token, difference.other_token) == (place, plain[place], wrong[place])
    assert difference.plain_score == pytest.approx(logits_V.max(), abs=1e-4)
    assert difference.other_score == pytest.approx(logits_V[wrong[place]], abs=1e-4)
    assert difference.step == 2.0 ** (math.floor(math.log2(logits_V.max())) - 23)


@pytest.mark.parametrize(("gap", "kind"), [(9e-4, "tie"), (1.15e-3, "diverged")])
def test_a_second_best_token_just_outside_the_tolerance_diverged(checkpoint, plain, gap, kind):
    twin = (plain[0] + 30) % 61
    twins = with_twin(checkpoint, plain[0], twin, gap)
    found = verdict(twins, [twin], limit=1)
    assert found.kind == kind
    assert found.difference.gap == pytest.approx(gap, abs=1e-5)
    assert (found.num_differences, found.difference.tolerance) == (1, 1e-3)


@pytest.mark.parametrize(("steps", "kind"), [(2, "tie"), (3, "diverged")])
def test_in_bfloat16_two_steps_are_a_tie_and_three_are_not(checkpoint, plain, monkeypatch, steps, kind):
    """The scores are given: rounding makes no exact number of steps. At a best score of 5 a step is 1/32."""
    rounded = dataclasses.replace(
        checkpoint, params=jax.tree.map(lambda leaf: leaf.astype(jnp.bfloat16), checkpoint.params)
    )

    def choices_of(_, texts, *__, **___):
        yield (
            0,
            given_outputs.Choices(
                best_BA=np.asarray([plain[0]]),
                best_score_BA=np.asarray([5.0], np.float32),
                given_score_BA=np.asarray([5.0 - steps / 32], np.float32),
            ),
        )

    monkeypatch.setattr(given_outputs, "choices_of", choices_of)
    found = verdict(rounded, [(plain[0] + 1) % 26], limit=1)
    assert (found.kind, found.difference.gap / found.difference.step) == (kind, steps)


def test_the_check_goes_on_after_a_tie(checkpoint, plain):
    twin = (plain[0] + 30) % 61
    twins = with_twin(checkpoint, plain[0], twin, 5e-4)
    model = reference.Model(twins.params, twins.config)
    after, gap = reference.plain_decode(model, [*PROMPT, twin], max_new_tokens=5)
    assert gap > 2e-3, "another tie follows: choose another twin"
    good = verdict(twins, [twin, *after], limit=6)
    assert (good.kind, good.difference.position, good.num_differences) == ("tie", 0, 1)
    bad = [twin, *after[:3], (after[3] + 1) % 26, after[4]]
    found = verdict(twins, bad, limit=6)
    assert (found.kind, found.difference.position) == ("diverged", 4)
    assert found.num_differences >= 2


def test_an_incomplete_output_with_a_tie_says_why_it_is_incomplete(checkpoint, plain):
    twin = (plain[0] + 30) % 61
    found = verdict(with_twin(checkpoint, plain[0], twin, 5e-4), [twin], limit=2)
    assert (found.kind, found.difference.position, found.num_differences) == ("incomplete", 0, 1)
    assert str(found) == "a: incomplete: ends after 1 tokens, short of an end of text and of the limit of 2."


def test_what_is_no_whole_answer_is_incomplete(checkpoint, tiny, plain):
    ends, _ = reference.plain_decode(tiny.reference, [7], max_new_tokens=24, eos=(EOS,))
    assert ends[-1] == EOS
    cases = [
        (output([]), "the output is empty."),
        (output(plain[:5]), "ends after 5 tokens, short of an end of text and of the limit of 12."),
        (
            output(plain[:5], limit=None),
            "5 tokens without an end of text, and no limit is known; state max_new_tokens.",
        ),
        (output(plain, limit=10), "12 tokens are more than the limit of 10."),
    ]
    for given, reason in cases:
        [found] = judge(checkpoint, [given], SETTINGS)
        assert (found.kind, found.reason) == ("incomplete", reason)
    for limit in (24, len(ends), None):
        assert verdict(checkpoint, ends, prompt=[7], limit=limit).kind == "same"
    more, _ = reference.plain_decode(tiny.reference, [7, *ends], max_new_tokens=2)
    found = verdict(checkpoint, ends + more, prompt=[7], limit=24)
    assert (found.kind, found.reason) == ("incomplete", f"2 of {len(ends) + 2} tokens are behind the end of the text.")
    for padding in ([0, 0], [EOS, EOS, EOS]):  # what is behind the end is not compared
        found = verdict(checkpoint, ends + padding, prompt=[7], limit=24)
        assert (found.kind, found.num_compared, found.num_differences) == ("incomplete", len(ends), 0)
    found = verdict(checkpoint, [*plain, (plain[0] + 1) % 26], limit=12)
    assert (found.kind, found.reason, found.num_compared) == (
        "incomplete",
        "13 tokens are more than the limit of 12.",
        12,
    )
    wrong = verdict(checkpoint, [(plain[0] + 1) % 26], limit=12)  # short too, but that is not the worst of it
    assert (wrong.kind, wrong.reason) == ("diverged", None)


def test_stop_texts_end_an_answer_too(checkpoint, plain):
    stop = (words(*plain[2:4]),)
    assert words(*plain[:10]).index(stop[0]) == len(words(*plain[:2])) + 1, "it is there before: choose another place"
    assert verdict(checkpoint, plain[:4], stop=stop).kind == "same"
    assert verdict(checkpoint, plain[:4], settings=dataclasses.replace(SETTINGS, stop=stop)).kind == "same"
    assert verdict(checkpoint, plain[:4]).kind == "incomplete"
    found = verdict(checkpoint, plain[:6], stop=stop)
    assert (found.kind, found.reason) == ("incomplete", "2 of 6 tokens are behind the end of the text.")


def test_what_cannot_be_checked_costs_itself_alone(checkpoint, plain):
    given = [
        output(plain, name="good"),
        output(plain, name="empty prompt", prompt=[]),
        output([*plain[:3], 61], name="no such token"),
        output([-1], name="negative"),
        output([1] * 510, name="long"),
        output(plain, name="refused", error="no such template."),
        output([], name="empty"),
        output(plain, name="last"),
    ]
    found = judge(checkpoint, given, SETTINGS)
    assert [each.id for each in found] == [each.prompt.id for each in given]
    kinds = [each.kind for each in found]
    assert kinds == ["same", *["unchecked"] * 5, "incomplete", "same"]
    reasons = [each.reason for each in found]
    assert reasons[2:4] == [f"the output holds token id {token}, but ids are 0 to 60." for token in (61, -1)]
    assert "with 510 new ones more than the model's context of 512" in reasons[4]
    assert reasons[5] == "no such template."


def test_any_number_of_outputs_in_order(checkpoint, tiny, plain, monkeypatch):
    monkeypatch.setattr(given_outputs, "BATCHES_A_WINDOW", 2)
    given = [output(plain[: 1 + n % 12], limit=1 + n % 12, name=n) for n in range(17)]  # two windows and a half
    given[9] = output([*plain[:2], (plain[2] + 1) % 26], limit=3, name=9)
    found = judge(checkpoint, given, SETTINGS)
    assert [each.id for each in found] == list(range(17))
    assert [each.id for each in found if each.kind != "same"] == [9]


def test_a_batch_is_no_larger_than_what_there_is(checkpoint, plain, monkeypatch):
    honest, sizes = given_outputs.choices_of, []
    monkeypatch.setattr(
        given_outputs, "choices_of", lambda *args, **more: sizes.append(args[3]) or honest(*args, **more)
    )
    given = [output(plain, name=n) for n in range(2)]
    assert [each.kind for each in judge(checkpoint, given, Settings(batch_size=3000))] == ["same", "same"]
    assert sizes == [2]
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        judge(checkpoint, given, Settings(batch_size=0))


def test_sampled_outputs_with_their_seeds_are_checked_token_for_token(checkpoint, tiny):
    draw = {"temperature": 0.8, "top_k": 40, "top_p": 0.95, "seed": 11}
    tokens, gap = reference.plain_decode(tiny.reference, PROMPT, max_new_tokens=12, **draw)
    assert gap > 2e-3
    greedy = output(reference.plain_decode(tiny.reference, PROMPT, max_new_tokens=12)[0], name="greedy", temperature=0)
    right, wrong = output(tokens, **draw), output(tokens, **(draw | {"seed": 12}), name="b")
    found = judge(checkpoint, [right, wrong, greedy], SETTINGS)
    assert [each.kind for each in found] == ["same", "diverged", "same"]
    cut = dataclasses.replace(SETTINGS, temperature=0.8, top_k=1)  # one token is left everywhere
    assert verdict(checkpoint, tokens, settings=cut, seed=11).difference.gap == math.inf


@pytest.mark.parametrize("temperature", [1e-45, 1e-39, 1.2e-38, 3e-38, 0.9e-30, 1e-30])
def test_a_temperature_that_float32_cannot_divide_by_is_greedy(checkpoint, plain, temperature):
    """Below 1.2e-38 XLA takes it for 0, and up to 1e-37 the scores overflow."""
    assert verdict(checkpoint, plain, temperature=temperature).kind == "same"
    wrong = [*plain[:5], (plain[5] + 1) % 26, *plain[6:]]
    found = verdict(checkpoint, wrong, temperature=temperature)
    assert (found.kind, found.difference.position) == ("diverged", 5)


def test_sums_and_their_exit_status():
    def of(kind, category=None):
        return Verdict(
            id=0, kind=kind, num_tokens=50, num_differences=int(kind in ("tie", "diverged")), category=category
        )

    same, tie, diverged, incomplete, unchecked = (of(kind) for kind in verdicts.KINDS)
    cases = [
        ([same, tie], 0),
        ([same, diverged], 1),
        ([incomplete], 1),
        ([unchecked, same], 2),
        ([unchecked, diverged], 1),
    ]
    for found, status in [*cases, ([], 2)]:
        assert verdicts.status_of(verdicts.summary(found)) == status
    totals = verdicts.summary([of("same", "math"), of("tie", "math"), of("diverged", "qa"), of("same"), unchecked])
    assert (totals["records"], totals["same"], totals["tie"], totals["diverged"]) == (5, 2, 1, 1)
    assert totals["by_category"]["math"] == dict.fromkeys(verdicts.KINDS, 0) | {"same": 1, "tie": 1}
    assert totals["by_category"].keys() == {"math", "qa"}
    assert (totals["compared_tokens"], totals["differences_per_1000_tokens"]) == (200, 10.0)
    assert verdicts.counts_line(totals) == "2 same, 1 tie, 1 diverged, 1 unchecked"
    assert verdicts.counts_line(verdicts.summary([incomplete])) == "0 same, 0 tie, 0 diverged, 1 incomplete"


def test_a_report_for_people_lists_what_is_not_the_same():
    found = Difference(
        position=3, plain_token=5, other_token=7, plain_score=2.5, other_score=-math.inf, tolerance=1e-3, step=2**-22
    )
    kinds = [Verdict(id="a|b", kind="diverged", num_tokens=9, difference=found, num_differences=1, category="qa")]
    kinds += [Verdict(id="c", kind="same", num_tokens=9, category="qa")]
    text = verdicts.markdown("t", {"model": "m"}, verdicts.summary(kinds), kinds)
    assert "# t\n\n- model: m\n" in text
    assert "1 same, 0 tie, 1 diverged. 1 differences in 18 tokens, 55.556 for every 1,000." in text
    assert "| qa | 1 | 0 | 1 | 0 | 0 |" in text
    assert "- a\\|b: diverged at new token 3: plain 5 (2.5), this 7 (-inf)" in text
    assert "- c" not in text
    assert kinds[0].as_json()["difference"] == {
        "position": 3, "plain_token": 5, "token": 7, "plain_score": 2.5, "score": None, "gap": None,
        "gap_in_steps": None, "tolerance": 1e-3,
    }  # fmt: skip
    assert kinds[1].as_json()["difference"] is None
