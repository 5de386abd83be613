"""How a model asks to be decoded where a run decodes otherwise: one line, and nothing where nothing differs."""

import dataclasses
import json
import logging
import math

import pytest
from checkpoints import EOS, make_checkpoint, write_folder
from support.commands import NEW, PROMPTS, RAW, TEXT, read_lines, text_of, write, write_prompts

from jax_probe_mtp import Settings
from jax_probe_mtp.commands.model_defaults import not_applied, say_not_applied, with_defaults

ASKED = {"do_sample": True, "temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1}
GREEDY, DRAWN = Settings(), Settings(temperature=0.6, top_k=20, top_p=0.9)


@pytest.mark.parametrize(
    ("defaults", "settings", "found"),
    [
        ({}, GREEDY, {}),
        (ASKED, GREEDY, ASKED),
        (ASKED, Settings(temperature=0.6, top_p=0.9), {"repetition_penalty": 1.1}),
        (ASKED, DRAWN, {"repetition_penalty": 1.1}),  # a top-k that the model does not name is the user's choice
        (ASKED, Settings(temperature=0.8), {"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1}),
        ({"do_sample": True}, GREEDY, {"do_sample": True, "temperature": 1.0}),  # what transformers then takes
        ({"do_sample": True}, Settings(temperature=1.0), {}),
        ({"do_sample": True, "temperature": 0.0}, GREEDY, {"do_sample": True}),
        ({"temperature": 0.6, "top_k": 20, "min_p": 0.1}, GREEDY, {"temperature": 0.6, "top_k": 20, "min_p": 0.1}),
        ({"temperature": 0.6, "top_k": 20, "top_p": 0.9}, DRAWN, {}),
        # greedy there: what is of sampling does nothing
        ({"do_sample": False, "temperature": 0.6, "top_k": 20, "top_p": 0.9, "min_p": 0.1}, GREEDY, {}),
        ({"do_sample": False, "temperature": 0.6}, DRAWN, {"do_sample": False}),
        ({"top_k": 50, "top_p": 0.9, "typical_p": 0.5}, GREEDY, {}),
        ({"do_sample": False, "repetition_penalty": 1.2}, GREEDY, {"repetition_penalty": 1.2}),
        (ASKED, dataclasses.replace(DRAWN, repetition_penalty=1.1), {}),
        ({"min_new_tokens": 4}, Settings(min_tokens=4), {}),
        ({"min_new_tokens": 4}, GREEDY, {"min_new_tokens": 4}),
        # neutral values, and what only beams read
        ({"repetition_penalty": 1.0, "no_repeat_ngram_size": 0, "num_beams": 1, "length_penalty": 2.0}, GREEDY, {}),
        ({"num_beams": 4, "length_penalty": 2.0}, GREEDY, {"num_beams": 4, "length_penalty": 2.0}),
        ({"bad_words_ids": [[5]], "suppress_tokens": []}, GREEDY, {"bad_words_ids": [[5]]}),
        # values that make no sense
        ({"temperature": math.nan, "top_k": True, "num_beams": [4]}, GREEDY, {"num_beams": [4]}),
        ({"temperature": 10**400}, GREEDY, {"temperature": 10**400}),
    ],
    ids=str,
)
def test_what_is_not_applied(defaults, settings, found):
    before = dict(defaults)
    assert not_applied(defaults, settings) == found
    assert defaults == before


@pytest.mark.parametrize(
    ("found", "says"),
    [
        ({"repetition_penalty": 1.1}, "repetition_penalty 1.1; --repetition-penalty 1.1 would apply them"),
        (
            {"min_new_tokens": 3, "presence_penalty": 9},
            "min_new_tokens 3, presence_penalty 9; --min-tokens 3 would apply all but presence_penalty",
        ),
        ({"temperature": 0.6, "top_k": 20}, "temperature 0.6, top_k 20; --temperature 0.6 --top-k 20 would apply them"),
        (
            ASKED | {"min_p": 0.1},
            "do_sample true, temperature 0.6, top_p 0.9, repetition_penalty 1.1, min_p 0.1; "
            "--temperature 0.6 --top-p 0.9 --repetition-penalty 1.1 would apply all but min_p",
        ),
        ({"do_sample": False}, "do_sample false; --temperature 0 would apply them"),
        ({"temperature": 10**400, "top_k": 2.5, "top_p": 7}, f"temperature 1{'0' * 59}, top_k 2.5, top_p 7"),
        ({"bad_words_ids": [[5]]}, "bad_words_ids [[5]]"),
    ],
    ids=str,
)
def test_the_line_names_the_flags_that_apply_it(found, says):
    assert say_not_applied("tiny", found) == f"tiny: its own defaults are not applied: {says}"


@pytest.mark.parametrize(
    ("defaults", "given", "expected"),
    [
        (ASKED, [], {"temperature": 0.6, "top_p": 0.9, "repetition_penalty": 1.1}),
        (ASKED, ["temperature", "repetition_penalty"], {"top_p": 0.9}),
        ({"do_sample": True}, [], {"temperature": 1.0}),
        ({"do_sample": False, "temperature": 0.6, "repetition_penalty": 1.2}, [], {"repetition_penalty": 1.2}),
        ({"top_k": 50, "min_new_tokens": 4, "min_length": 3}, [], {"min_tokens": 4}),
        ({"do_sample": True, "top_k": "50", "top_p": True}, [], {"temperature": 1.0}),
        # what we do not take stays the run's, and is told
        ({"do_sample": True, "top_k": -1, "presence_penalty": 5, "min_new_tokens": 8}, [], {"temperature": 1.0}),
    ],
    ids=str,
)
def test_defaults_are_applied_where_no_flag_names_them(defaults, given, expected):
    run = Settings(max_new_tokens=7, seed=3)
    assert with_defaults(defaults, run, given) == dataclasses.replace(run, **expected)


@pytest.fixture(scope="session")
def asking(tiny, tmp_path_factory):
    """The tiny model in a folder that asks for sampling and a penalty."""
    folder = write_folder(tmp_path_factory.mktemp("models") / "asking", make_checkpoint(tiny))
    (folder / "generation_config.json").write_text(json.dumps(ASKED | {"eos_token_id": [EOS]}))
    return folder


@pytest.fixture
def generate(run, monkeypatch):
    """Runs `generate` with log lines on stderr, as where pytest has no handlers of its own."""

    def generate(*args):
        with monkeypatch.context() as patch:
            patch.setattr(logging.root, "handlers", [])
            return run("generate", *args)

    yield generate
    logging.getLogger("jax_probe_mtp").setLevel(logging.NOTSET)


def test_generate_says_once_what_it_does_not_apply(generate, asking, expected, tmp_path):
    says = (
        f"{asking}: its own defaults are not applied: do_sample true, temperature 0.6, top_p 0.9, repetition_penalty 1.1; "
        "--temperature 0.6 --top-p 0.9 --repetition-penalty 1.1 would apply them\n"
    )
    code, out, err = generate("--model", asking, "--prompt", TEXT, *RAW)
    assert (code, out, err) == (0, text_of(expected["b"][0]) + "\n", says)  # the tokens are as without
    files = ["--input", write_prompts(tmp_path), "--output", tmp_path / "a.jsonl", "--batch-size", "3"]
    code, out, err = generate("--model", asking, *files, *RAW)
    assert (code, out, err.count(says)) == (0, "", 1)
    code, out, err = generate("--model", asking, "--prompt", TEXT, *RAW, "--log-level", "warning")
    assert (code, err) == (0, "")


def outputs_of(plain, folder, **changes):
    records = [
        {"id": name, "prompt_ids": prompt, "token_ids": changes.get(name, plain[name]), "max_new_tokens": NEW}
        for name, prompt in PROMPTS.items()
    ]
    return write(folder / "o.jsonl", records)


def test_verify_names_what_may_be_why_outputs_diverged(run, asking, model, plain, tmp_path):
    report = tmp_path / "r.json"
    says = (
        "asking: its own defaults, which other programs apply and this check does not, may be why: "
        "do_sample true, temperature 0.6, top_p 0.9, repetition_penalty 1.1\n"
    )
    wrong = [*plain["b"]]
    wrong[4] = (wrong[4] + 1) % 26
    code, out, err = run(
        "verify", "--model", asking, "--outputs", outputs_of(plain, tmp_path, b=wrong), "--json", report
    )
    assert (code, out.splitlines()[-1], err) == (1, "2 same, 0 tie, 1 diverged", says)
    assert json.loads(report.read_text())["run"]["model_defaults_not_applied"] == ASKED
    code, _, err = run("verify", "--model", model, "--outputs", tmp_path / "o.jsonl", "--json", report)
    assert (code, err) == (1, "")
    assert "model_defaults_not_applied" not in json.loads(report.read_text())["run"]
    code, out, err = run("verify", "--model", asking, "--outputs", outputs_of(plain, tmp_path))
    assert (code, out.splitlines()[-1], err) == (0, "3 same, 0 tie, 0 diverged", "")


def test_a_job_takes_the_models_defaults_on_demand(generate, asking, model, tmp_path):
    """As with the flags that name them, and told apart from a job without."""
    prompts, flags = write_prompts(tmp_path), ["--temperature", "0.6", "--top-p", "0.9", "--repetition-penalty", "1.1"]
    named, taken = tmp_path / "named.jsonl", tmp_path / "taken.jsonl"
    assert generate("--model", model, "--input", prompts, "--output", named, *RAW, *flags)[0] == 0
    command = ["--model", asking, "--input", prompts, "--output", taken, *RAW]
    code, _, err = generate(*command, "--use-generation-config")
    assert (code, "not applied" in err) == (0, False)
    ids = [[line["token_ids"] for line in read_lines(path)] for path in (named, taken)]
    assert ids[0] == ids[1]
    code, _, err = generate(*command)
    assert code == 2
    assert "was made with settings.temperature 0.6, settings.top_p 0.9, settings.repetition_penalty 1.1" in err
    code, _, err = generate(*command, "--use-generation-config", "--temperature", "0.7")
    assert code == 2
    assert "was made with settings.temperature 0.6, but this run has 0.7" in err


def test_verify_takes_the_models_defaults_on_demand(run, asking, tmp_path):
    prompts, output = write_prompts(tmp_path), tmp_path / "a.jsonl"
    command = ["--model", asking, "--input", prompts, *RAW, "--use-generation-config"]
    assert run("generate", *command, "--output", output)[0] == 0
    code, _, err = run("verify", *command)
    assert code == 0, err
    outputs = ["verify", "--model", asking, "--outputs", output, *RAW[:3]]
    code, out, _ = run(*outputs, "--use-generation-config")
    assert (code, out.splitlines()[-1]) == (0, "3 same, 0 tie, 0 diverged")
    assert run(*outputs)[0] == 1
