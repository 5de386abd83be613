"""The benchmark: its counts against the slow reference's, its arithmetic against numbers worked out by hand."""

import itertools
import json

import pytest
import reference
from checkpoints import EOS, make_checkpoint, word, words

from jax_probe_mtp.decoding.settings import Prompt, Settings, record_seed
from jax_probe_mtp.files.questions import Question
from jax_probe_mtp.measuring.bench import Bench, read_prompts
from jax_probe_mtp.measuring.runs import parse_runs
from jax_probe_mtp.measuring.timed_batch import TimedBatches

PROMPTS = {"a": [7], "b": [5, 9, 2, 44, 17, 3, 3], "c": [60, 1, 33, 8], "d": [12, 13, 14]}
CATEGORY = {"a": "first", "b": "second", "c": "second", "d": "first"}


def question(name, category, *token_ids):
    return Question(id=name, category=category, messages=[{"role": "user", "content": words(*token_ids)}])


QUESTIONS = [question(name, CATEGORY[name], *prompt) for name, prompt in PROMPTS.items()]
RUNS = "probe:7+3;ngram:4;recycle:12"
SETTINGS = Settings(max_new_tokens=20, capacity=64, prompt_slots=16)
PROBE = {"tree": (7, 3), "num_masks": 2, "block_complexity": None, "prune": True, "mask_init": "mean", "mask_offset": 5}


@pytest.fixture(scope="module")
def checkpoint(tiny):
    return make_checkpoint(tiny)


def make_bench(checkpoint, runs=RUNS, settings=SETTINGS, questions=QUESTIONS):
    return Bench(checkpoint, questions, parse_runs(runs), settings, use_chat_template=False)


def without_times(record):
    """A record, less everything that a clock had a hand in."""
    return {
        **record,
        "runs": [
            {
                key: value
                for key, value in run.items()
                if not ("second" in key or "speedup" in key or key.startswith("ms"))
            }
            | {"by_question": {q: {**r, "seconds": 0, "prefill_seconds": 0} for q, r in run["by_question"].items()}}
            for run in record["runs"]
        ],
    }


@pytest.fixture(scope="module")
def whole(checkpoint):
    measured = make_bench(checkpoint)
    answers = list(measured.measure())
    assert answers == [1] * 16
    return measured


def test_counts_are_the_references(tiny, whole):
    record = whole.record()
    plain, probe, ngram, recycle = record["runs"]
    assert [run["run"] for run in record["runs"]] == ["plain", "probe:7+3", "ngram:4", "recycle:12"]
    assert [run["rows_per_call"] for run in record["runs"]] == [1, 33, 5, 12]
    assert record["is_complete"]
    assert record["questions"] == list(PROMPTS)
    assert record["categories"] == CATEGORY
    for name, prompt in PROMPTS.items():
        tokens, gap = reference.plain_decode(tiny.reference, prompt, max_new_tokens=20, eos=(EOS,))
        assert gap > 1e-3
        accepted = reference.probe_decode(tiny.reference, prompt, PROBE, max_new_tokens=20, eos=(EOS,))[2]
        by_depth = [sum(count >= depth for count in accepted) for depth in (1, 2)]
        for run in record["runs"]:
            assert run["by_question"][name]["committed"] == len(tokens) - 1
        assert plain["by_question"][name]["calls"] == len(tokens) - 1
        assert probe["by_question"][name]["calls"] == len(accepted)
        assert probe["by_question"][name]["accepted_by_depth"] == by_depth
    assert sum(probe["accepted_by_depth"]) > 0
    for run in record["runs"]:
        assert run["exact_match"] == 1
        assert run["calls"] == sum(result["calls"] for result in run["by_question"].values())
    assert probe["accepted_by_source"] == {"probe": sum(probe["accepted_by_depth"])}
    assert ngram["accepted_by_source"] == {"ngram": sum(ngram["accepted_by_depth"])}
    assert recycle["accepted_by_source"] == {"recycle": sum(recycle["accepted_by_depth"])}
    assert plain["accepted_by_source"] == {}
    assert (plain["tau"], plain["call_reduction"], plain["speedup_vs_ar"]) == (1, 0, 1)
    json.dumps(record, allow_nan=False)


def test_two_measurements_differ_in_times_alone(checkpoint, whole):
    again = make_bench(checkpoint)
    for _ in again.compile():
        pass
    for _ in again.measure():
        pass
    assert without_times(again.record()) == without_times(whole.record())


def test_arithmetic_by_hand(checkpoint):
    def result(calls, committed, accepted, seconds, prefill, difference=None):
        return {
            "calls": calls,
            "committed": committed,
            "accepted_by_depth": accepted,
            "accepted_by_kind": {"probe": sum(accepted)},
            "seconds": seconds,
            "prefill_seconds": prefill,
            "difference": difference,
        }

    measured = make_bench(checkpoint, runs="probe:7+3")
    tie = "tie at new token 3: ..."
    measured.results = {
        "plain": {
            "a": result(10, 10, [], 4.0, 2.0),
            "b": result(30, 30, [], 6.0, 0.0),
            "c": result(0, 0, [], 2.0, 2.0),
        },
        "probe:7+3": {
            "a": result(5, 10, [4, 1], 2.0, 1.0),
            "b": result(15, 30, [10, 5], 8.0, 0.5, tie),
            "c": result(0, 0, [0, 0], 1.0, 1.0),
        },
    }
    record = measured.record()
    assert not record["is_complete"]
    assert record["questions"] == ["a", "b", "c"]
    run = record["runs"][1]
    assert run["tau"] == 2  # 40 tokens in 20 calls
    assert run["tau_by_category"] == {"first": 2, "second": 2}
    assert run["call_reduction"] == 0.5
    assert (run["accepted_by_depth"], run["accepted_by_source"]) == ([14, 6], {"probe": 20})
    assert run["exact_match"] == pytest.approx(2 / 3)
    assert (run["ties"], run["differences"]) == (1, {"b": tie})
    assert (run["seconds"], run["prefill_seconds"]) == (11, 2.5)
    assert run["tokens_per_second"] == 3.91  # 43 tokens: each prefill gave one
    assert run["speedup_vs_ar"] == 1.0909  # 12 s over 11 s, not the mean of the three
    assert run["speedup_vs_ar_by_category"] == {"first": 2, "second": 0.8889}  # 8 s over 9 s
    assert run["speedup_quartiles"] == [1.375, 2, 2]  # of 2, 0.75 and 2
    # of 1 s in 5 + 1 calls, 7.5 s in 15 + 1 and 0 s in 1: the loop's first call gives the prefill's token
    assert run["ms_per_call_quartiles"] == pytest.approx([1000 / 12, 1000 / 6, (1000 / 6 + 468.75) / 2], abs=1e-4)


def test_batches_do_not_change_counts(checkpoint, whole):
    settings = Settings(max_new_tokens=20, capacity=64, prompt_slots=16, batch_size=3)
    batched = make_bench(checkpoint, runs="recycle:12", settings=settings)
    answers = list(batched.measure())
    assert answers == [3, 3, 1, 1]  # three questions, then one beside two idle rows
    alone = without_times(whole.record())["runs"]
    assert without_times(batched.record())["runs"] == [alone[0], alone[3]]
    for run in batched.record()["runs"]:  # rows of a batch have no time of their own
        assert run["seconds"] > 0
        assert run["speedup_vs_ar"] > 0
        assert run["speedup_quartiles"] == run["ms_per_call_quartiles"] == [None] * 3
        assert run["speedup_vs_ar_by_category"] == run["seconds_by_category"] == {"first": None, "second": None}


def test_runs_take_turns(checkpoint, monkeypatch):
    order = []
    honest = TimedBatches.run

    def watched(self, batch, settings):
        order.append((batch[0].id, self.source.num_rows))
        return honest(self, batch, settings)

    monkeypatch.setattr(TimedBatches, "run", watched)
    measured = make_bench(checkpoint, questions=QUESTIONS[:2])
    steps = list(itertools.islice(measured.measure(), 7))
    assert len(steps) == 7
    assert order == [("a", 1), ("a", 33), ("a", 5), ("a", 12), ("b", 12), ("b", 5), ("b", 33)]
    assert measured.num_done == 1  # the second question has one answer to go, and does not count


def test_a_run_that_goes_on_ends_as_if_never_stopped(checkpoint):
    runs = "recycle:12@warm=1;probe:7+3"
    unbroken = make_bench(checkpoint, runs=runs)
    list(unbroken.measure())
    broken = make_bench(checkpoint, runs=runs)
    list(itertools.islice(broken.measure(), 7))  # two questions and one answer
    assert broken.num_done == 2
    kept = json.loads(json.dumps(broken.record()))
    resumed = make_bench(checkpoint, runs=runs)
    resumed.results = {run["run"]: run["by_question"] for run in kept["runs"]}
    assert list(resumed.measure()) == [1] * 6
    assert without_times(resumed.record()) == without_times(unbroken.record())
    cold = make_bench(checkpoint, runs="recycle:12")
    list(cold.measure())
    assert cold.record()["runs"][1]["calls"] != unbroken.record()["runs"][1]["calls"], (
        "warm or cold are alike: choose others"
    )


def test_sampled_runs_are_exact_too(tiny, checkpoint):
    draw = {"temperature": 1.0, "top_k": 40, "top_p": 0.95}
    settings = Settings(max_new_tokens=20, capacity=64, prompt_slots=16, seed=7, **draw)
    measured = make_bench(checkpoint, runs="probe:7+3", settings=settings)
    list(measured.measure())
    record = measured.record()
    for name, prompt in PROMPTS.items():
        seed = record_seed(7, Prompt(id=name, token_ids=prompt))
        tokens, _ = reference.plain_decode(tiny.reference, prompt, max_new_tokens=20, eos=(EOS,), seed=seed, **draw)
        assert record["runs"][0]["by_question"][name]["committed"] == len(tokens) - 1
    assert [run["exact_match"] for run in record["runs"]] == [1, 1]
    assert sum(record["runs"][1]["accepted_by_depth"]) > 0


def test_a_wrong_token_is_found(checkpoint, monkeypatch):
    honest = TimedBatches.run

    def wrong(self, batch, settings):
        answers = honest(self, batch, settings)
        if self.source.num_rows == 5 and batch[0].id == "b":
            token_ids = answers[0].generation.token_ids
            token_ids[4] = (token_ids[4] + 1) % 61
        return answers

    monkeypatch.setattr(TimedBatches, "run", wrong)
    measured = make_bench(checkpoint, runs="ngram:4")
    list(measured.measure())
    run = measured.record()["runs"][1]
    assert run["exact_match"] == 0.75
    assert run["ties"] == 0
    assert list(run["differences"]) == ["b"]
    assert run["differences"]["b"].startswith("diverged at new token 4")


def test_questions_that_do_not_fit_are_skipped_by_id(checkpoint):
    long = question(9, "first", *[5] * 600)
    measured = make_bench(checkpoint, questions=[QUESTIONS[0], long], settings=Settings(max_new_tokens=20))
    assert list(measured.skipped) == ["9"]
    assert measured.skipped["9"] == "600 tokens and 20 new ones are more than the model's context of 512."
    assert measured.num_questions == 1
    with pytest.raises(ValueError, match="none of the questions can be asked; 9: 600 tokens"):
        make_bench(checkpoint, questions=[long], settings=Settings(max_new_tokens=20))


def test_a_conversation_and_its_tools_go_through_the_chat_template(tiny):
    template = (
        "{% for tool in tools or [] %}{{ tool.function.name }} {% endfor %}"
        "{% for message in messages %}{{ message.content }} {% endfor %}{% if add_generation_prompt %}w9{% endif %}"
    )
    messages = [{"role": "system", "content": word(11)}, {"role": "user", "content": word(12)}]
    tools = [{"type": "function", "function": {"name": word(13)}}]
    asked = [
        Question(id=1, category="a", messages=messages, tools=tools),
        Question(id=2, category="a", messages=messages),
        question(3, "a", 7, 8),
    ]
    checkpoint = make_checkpoint(tiny, template=template)
    prompts, _ = read_prompts(checkpoint, asked, 4, use_chat_template=True)
    assert [list(prompt.token_ids) for prompt in prompts] == [[13, 11, 12, 9], [11, 12, 9], [7, 8, 9]]
    with pytest.raises(
        ValueError, match=r"^question 2: this is a conversation or has tools, which need the chat template"
    ):
        read_prompts(checkpoint, asked[1:], 4, use_chat_template=False)
    without = make_checkpoint(tiny, template="{{ messages[0].content }}")
    with pytest.raises(ValueError, match=r"^question 1: the chat template knows no tools, so it would change nothing"):
        read_prompts(without, asked, 4, use_chat_template=True)


def test_questions_that_do_not_fit_the_settings_stop_the_bench(checkpoint):
    settings = Settings(max_new_tokens=20, capacity=24)
    with pytest.raises(ValueError, match="run 'plain': cache holds 24 tokens, but prompt 7"):
        make_bench(checkpoint, settings=settings)


def test_a_run_that_a_question_cannot_have_is_named(checkpoint):
    with pytest.raises(
        ValueError, match=r"run 'probe:2\+1@mask_init=last_k': prompt a: 1 tokens are too few: .* 2 masks"
    ):
        make_bench(checkpoint, runs="probe:2+1@init=last_k")
    with pytest.raises(ValueError, match="run 'probe:61': the tree looks at 62 candidates"):
        make_bench(checkpoint, runs="probe:61")
