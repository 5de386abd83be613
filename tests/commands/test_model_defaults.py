"""How a model asks to be decoded where a run decodes otherwise: one line, and nothing where nothing differs."""

import json
import logging
import math

import pytest
from checkpoints import EOS, make_checkpoint, write_folder
from support.commands import NEW, PROMPTS, RAW, TEXT, text_of, write, write_prompts

from jax_probe_mtp import Settings
from jax_probe_mtp.commands.model_defaults import not_applied, say_not_applied

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
        ({"repetition_penalty": 1.1}, "repetition_penalty 1.1"),
        ({"temperature": 0.6, "top_k": 20}, "temperature 0.6, top_k 20; --temperature 0.6 --top-k 20 would apply them"),
        (
            ASKED | {"min_p": 0.1},
            "do_sample true, temperature 0.6, top_p 0.9, repetition_penalty 1.1, min_p 0.1; "
            "--temperature 0.6 --top-p 0.9 would apply all but repetition_penalty, min_p",
        ),
        ({"do_sample": False}, "do_sample false; --temperature 0 would apply them"),
        ({"temperature": 10**400, "top_k": 2.5, "top_p": 7}, f"temperature 1{'0' * 59}, top_k 2.5, top_p 7"),
        ({"bad_words_ids": [[5]]}, "bad_words_ids [[5]]"),
    ],
    ids=str,
)
def test_the_line_names_the_flags_that_apply_it(found, says):
    assert say_not_applied("tiny", found) == f"tiny: its own defaults are not applied: {says}"


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
        "--temperature 0.6 --top-p 0.9 would apply all but repetition_penalty\n"
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
