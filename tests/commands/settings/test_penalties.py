"""Penalties, biases and ends by flags and by records: the same answers, kept and checked with them."""

import json

import pytest
import reference
from checkpoints import EOS
from support.commands import NEW, PROMPTS, RAW, assert_refused, read_lines, write

OWN = {
    "repetition_penalty": 1.7,
    "presence_penalty": 0.5,
    "frequency_penalty": 1.5,
    "min_tokens": 5,
    "ignore_eos": True,
    "stop_token_ids": [13, 60],
    "logit_bias": {"5": 1.5, "28": -100},
}
FLAGS = ["--repetition-penalty", "1.7", "--presence-penalty", "0.5", "--frequency-penalty", "1.5", "--min-tokens", "5"]
FLAGS += ["--ignore-eos", "--stop-token-id", "13", "--stop-token-id", "60", "--logit-bias", '{"5": 1.5, "28": -100}']


@pytest.fixture(scope="session")
def expected(tiny):
    """What the NumPy model says, one token at a time."""
    biases = {int(token): bias for token, bias in OWN["logit_bias"].items()}
    numbers = {name: OWN[name] for name in OWN if name not in ("ignore_eos", "stop_token_ids")}
    found = {}
    for name, prompt in PROMPTS.items():
        penalties = numbers | {"logit_bias": biases, "num_prompt": len(prompt), "ends": OWN["stop_token_ids"]}
        tokens, gap = reference.plain_decode(
            tiny.reference, prompt, max_new_tokens=NEW, eos=OWN["stop_token_ids"], penalties=penalties
        )
        assert gap > 1e-4
        found[name] = tokens
    assert {tokens[-1] in OWN["stop_token_ids"] for tokens in found.values()} == {True, False}, "choose other ends"
    return found


def records(**more):
    return [{"id": name, "prompt_ids": prompt, **more} for name, prompt in PROMPTS.items()]


@pytest.mark.parametrize("by_record", [False, True], ids=["flags", "records"])
def test_answers_are_the_references(run, model, expected, tmp_path, by_record):
    prompts = write(tmp_path / "p.jsonl", records(**(OWN if by_record else {})))
    output = tmp_path / "a.jsonl"
    command = ["--model", model, "--input", prompts, *RAW, *([] if by_record else FLAGS)]
    code, _, err = run("generate", *command, "--output", output, "--batch-size", "2")
    assert code == 0, err
    answers = {line["id"]: line for line in read_lines(output)}
    assert {name: answer["token_ids"] for name, answer in answers.items()} == expected
    for answer in answers.values():
        ends = answer["token_ids"][-1] in OWN["stop_token_ids"]
        assert answer["finish_reason"] == ("stop" if ends else "length")
        assert all((answer.get(name) == OWN[name]) is by_record for name in OWN)
    assert sum(sum(answer["accepted_by_depth"]) for answer in answers.values()) > 0

    before = output.read_bytes()  # it goes on, and has nothing left to do
    assert run("generate", *command, "--output", output, "--batch-size", "2")[0] == 0
    assert output.read_bytes() == before
    code, out, _ = run("verify", "--model", model, "--outputs", output, "--max-new-tokens", str(NEW), *RAW[:1])
    assert (code, "0 diverged" in out) == ((0, True) if by_record else (1, False))
    code, out, _ = run("verify", *command)
    assert (code, out.splitlines()[-1]) == (0, "3 same, 0 tie, 0 diverged")


def test_verify_checks_outputs_with_the_same_flags_and_finds_a_wrong_token(run, model, expected, tmp_path):
    lines = [{"id": name, "prompt_ids": PROMPTS[name], "token_ids": expected[name]} for name in PROMPTS]
    command = [
        "verify",
        "--model",
        model,
        "--outputs",
        write(tmp_path / "o.jsonl", lines),
        "--max-new-tokens",
        str(NEW),
    ]
    code, out, _ = run(*command, *FLAGS)
    assert (code, out.splitlines()[-1]) == (0, "3 same, 0 tie, 0 diverged")
    code, out, _ = run(*command)
    assert (code, "diverged at new token" in out) == (1, True)


def test_another_value_is_another_job(run, model, tmp_path):
    prompts, output = write(tmp_path / "p.jsonl", records()), tmp_path / "a.jsonl"
    command = ["generate", "--model", model, "--input", prompts, "--output", output, *RAW]
    assert run(*command, "--repetition-penalty", "1.7")[0] == 0
    assert_refused(run(*command), "was made with settings.repetition_penalty 1.7, but this run has nothing")
    write(prompts, records(logit_bias={"5": 1}))
    says = "logit_bias 'nothing of its own' became {'5': 1}"
    assert_refused(run(*command, "--repetition-penalty", "1.7"), says)


@pytest.mark.parametrize(
    ("own", "says"),
    [
        ({"repetition_penalty": 0}, "repetition_penalty must be a number from 0.01 to 100, got 0"),
        ({"presence_penalty": 3}, "presence_penalty must be a number from -2 to 2, got 3"),
        ({"frequency_penalty": "1"}, 'frequency_penalty must be a number from -2 to 2, got "1"'),
        ({"min_tokens": -1}, "min_tokens must be a whole number of at least 0, got -1"),
        ({"ignore_eos": 1}, "ignore_eos must be true or false, got 1"),
        ({"stop_token_ids": 3}, "stop_token_ids must be a list of whole numbers from 0, got 3"),
        ({"logit_bias": {"a": 1}}, "logit_bias must be an object of token ids and numbers from -100 to 100"),
        ({"logit_bias": {"5": 101}}, "logit_bias must be an object of token ids and numbers from -100 to 100"),
        ({"logit_bias": {"05": 1, "5": 2}}, "logit_bias must be an object of token ids and numbers from -100 to 100"),
        ({"logit_bias": {"\u0665": 1}}, "logit_bias must be an object of token ids and numbers from -100 to 100"),
        ({"logit_bias": {"1" * 5000: 1}}, "logit_bias must be an object of token ids and numbers from -100 to 100"),
        ({"bad_words": ["a b"]}, "bad_words"),
        ({"use_beam_search": True}, "use_beam_search true would change the answer and is not read"),
        ({"guided_regex": "a+"}, "guided_regex"),
    ],
    ids=str,
)
def test_a_wrong_record_is_refused_before_anything_runs(run, model, tmp_path, own, says):
    prompts = write(tmp_path / "p.jsonl", records(**own))
    output = tmp_path / "a.jsonl"
    assert_refused(run("generate", "--model", model, "--input", prompts, "--output", output, *RAW), says)
    assert not output.exists()


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--repetition-penalty", "0"], "repetition_penalty must be 0.01 to 100, got 0.0; 1 is none"),
        (["--presence-penalty", "-2.5"], "presence_penalty must be -2 to 2, got -2.5; 0 is none"),
        (
            ["--min-tokens", "99"],
            f"min_tokens must be 0 to max_new_tokens {NEW}, got 99; lower it, or raise max_new_tokens",
        ),
        (["--stop-token-id", "61"], "stop_token_ids must be a list of ids from 0 to 60, got (61,)"),
        (["--logit-bias", "5"], "--logit-bias must be an object of token ids and numbers from -100 to 100"),
        (["--logit-bias", '{"61": 1}'], "logit_bias takes ids from 0 to 60 with a bias from -100 to 100, got 61: 1"),
    ],
    ids=str,
)
def test_a_wrong_flag_is_refused(run, model, tmp_path, flags, says):
    prompts = write(tmp_path / "p.jsonl", records())
    output = tmp_path / "a.jsonl"
    assert_refused(run("generate", "--model", model, "--input", prompts, "--output", output, *RAW, *flags), says)
    assert not output.exists()


def test_a_record_that_asks_for_more_than_fits_costs_itself_alone(run, model, tmp_path):
    lines = [*records(), {"id": "own", "prompt_ids": [5], "stop_token_ids": [61]}]
    prompts, output = write(tmp_path / "p.jsonl", lines), tmp_path / "a.jsonl"
    code, _, _ = run("generate", "--model", model, "--input", prompts, "--output", output, *RAW)
    answers = {line["id"]: line for line in read_lines(output)}
    assert (code, answers["own"]["finish_reason"], len(answers)) == (3, "error", 4)
    assert "stop_token_ids must be a list of ids from 0 to 60, got (61,)" in answers["own"]["error"]


def test_max_tokens_is_a_synonym(run, model, tmp_path):
    prompts, outputs = write(tmp_path / "p.jsonl", records()), [tmp_path / "a.jsonl", tmp_path / "b.jsonl"]
    for flag, output in zip(("--max-tokens", "--max-new-tokens"), outputs, strict=True):
        command = ["generate", "--model", model, "--input", prompts, "--output", output, "--tree", "4", flag, "4"]
        assert run(*command)[0] == 0
    found = [[line["token_ids"] for line in read_lines(output)] for output in outputs]
    assert found[0] == found[1]


def test_what_records_may_hold_is_what_settings_take():
    """The two lists of bounds and names agree."""
    from conftest import BASE

    from jax_probe_mtp.decoding.settings import OF_PROMPT, PENALTIES, Prompt, Settings
    from jax_probe_mtp.drafting import Plain
    from jax_probe_mtp.files.records.record_fields import NEUTRAL, RULES, SETTINGS

    assert set(SETTINGS) == {*OF_PROMPT, "seed"}
    assert tuple(NEUTRAL) == PENALTIES
    assert all(not Settings(**{name: value}).is_penalized for name, value in NEUTRAL.items())
    assert Prompt(token_ids=[1], **NEUTRAL).own_settings(Settings()).is_penalized is False
    numbers = [-101, -100, -2.1, -2, -1, 0, 0.009, 0.01, 1, 2, 2.1, 5, 100, 101, True, "1", [3], {"5": 1}, {"5": 200}]
    for name in PENALTIES:
        for value in numbers:
            given = {int(key): bias for key, bias in value.items()} if isinstance(value, dict) else value
            try:
                Settings(**{name: given}).check(BASE, Plain())
                is_good = True
            except ValueError:
                is_good = False
            assert bool(RULES[name][0](value)) is is_good, (name, value)


def test_eos_is_an_end_unless_it_is_ignored(run, model, tmp_path):
    always = {"logit_bias": {str(EOS): 100}}
    lines = [
        {"id": "ends", "prompt_ids": [5], **always},
        {"id": "ignores", "prompt_ids": [5], **always, "ignore_eos": True},
    ]
    prompts, output = write(tmp_path / "p.jsonl", lines), tmp_path / "a.jsonl"
    assert run("generate", "--model", model, "--input", prompts, "--output", output, *RAW)[0] == 0
    answers = {line["id"]: (line["token_ids"], line["finish_reason"]) for line in read_lines(output)}
    assert answers == {"ends": ([EOS], "stop"), "ignores": ([EOS] * NEW, "length")}
    assert json.loads(output.read_text().splitlines()[0])["logit_bias"] == {str(EOS): 100}
