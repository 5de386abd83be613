"""`tune-masks` and `--masks` as commands, on a model in a folder."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from checkpoints import word, write_folder
from support.commands import assert_refused, read_lines, write

from jax_probe_mtp.tuning.masks_file import read_masks

TUNE = ["--no-chat-template", "--max-new-tokens", "16", "--steps", "8", "--texts-per-step", "4", "--batch-size", "4"]
GENERATE = ["--no-chat-template", "--max-new-tokens", "16"]


@pytest.fixture(scope="module")
def model(checkpoint, tmp_path_factory):
    return write_folder(tmp_path_factory.mktemp("model") / "tiny", checkpoint)


@pytest.fixture(scope="module")
def prompts(tmp_path_factory):
    draw = np.random.default_rng(1)
    records = [
        {"id": f"p{i}", "prompt": " ".join(map(word, draw.integers(30, 57, 2 + i % 5).tolist()))} for i in range(24)
    ]
    return write(tmp_path_factory.mktemp("prompts") / "prompts.jsonl", records)


@pytest.fixture(scope="module")
def tuned(model, prompts, tmp_path_factory):
    """Masks for one depth and for two, made by the command."""
    folder = tmp_path_factory.mktemp("masks")
    for num in (1, 2):
        done = command(
            "tune-masks",
            "--model",
            model,
            "--input",
            prompts,
            *TUNE,
            "--num-masks",
            num,
            "--output",
            folder / f"{num}.st",
        )
        assert done.returncode == 0, done.stderr
        assert not (folder / f"{num}.st.run").exists()
    return folder


def command(*args, **more):
    own = {"PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, "-m", "jax_probe_mtp", *map(str, args)],
        env=os.environ | own,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        **more,
    )


def test_the_file_says_what_it_was_made_of(tuned, prompts):
    masks = read_masks(tuned / "2.st")
    assert masks.masks_MD.shape == (2, 24)
    assert masks.about["texts"]["prompts"] == prompts.name
    assert masks.about["texts"]["tuned_on"] + masks.about["texts"]["held_back"] <= 24
    assert masks.about["settings"]["num_masks"] == 2
    assert len(masks.about["hits"]) == 2


def test_masks_are_used_and_named_and_change_no_token(run, model, prompts, tuned, tmp_path):
    plain, with_masks = tmp_path / "plain.jsonl", tmp_path / "masks.jsonl"
    run("generate", "--model", model, "--input", prompts, "--output", plain, "--draft", "plain", *GENERATE)
    code, _, err = run(
        "generate", "--model", model, "--input", prompts, "--output", with_masks, "--masks", tuned / "1.st", *GENERATE
    )
    assert code == 0, err
    digest = read_masks(tuned / "1.st").digest
    expected = {line["id"]: line["token_ids"] for line in read_lines(plain)}
    answers = read_lines(with_masks)
    assert {line["id"]: line["token_ids"] for line in answers} == expected
    assert {(line["draft"], line["masks"]) for line in answers} == {("probe:14@mask_init=tuned", digest)}
    assert sum(sum(line["accepted_by_depth"]) for line in answers) > 0
    resumed = run(
        "generate", "--model", model, "--input", prompts, "--output", with_masks, *GENERATE
    )  # without them: another job
    assert_refused(resumed, "probe:14@mask_init=tuned")


def test_verify_and_bench_take_them(run, model, prompts, tuned, tmp_path):
    code, out, err = run(
        "verify", "--model", model, "--input", prompts, "--draft", "probe:5+3", "--masks", tuned / "2.st",
        "--json", tmp_path / "v.json", *GENERATE,
    )  # fmt: skip
    assert code == 0, err
    assert "24 same" in out
    digest = read_masks(tuned / "2.st").digest
    record = json.loads((tmp_path / "v.json").read_text())["run"]
    assert (record["draft"], record["masks"]) == ("probe:5+3@mask_init=tuned", digest)

    questions = write(
        tmp_path / "q.jsonl",
        [{"question_id": i, "category": "a", "turns": [f"w{30 + i} w31"]} for i in range(3)],
    )
    bench = ["bench", "--model", model, "--questions", questions, *GENERATE]
    runs = ["--runs", "probe:5+3;probe:5+3@mask_init=tuned"]
    code, out, err = run(*bench, *runs, "--masks", tuned / "2.st", "--output", tmp_path / "b.json")
    assert code == 0, err
    assert json.loads((tmp_path / "b.json").read_text())["settings"]["masks"] == digest
    assert_refused(
        run(*bench, *runs, "--output", tmp_path / "c.json"),
        "probe:5+3@mask_init=tuned needs tuned masks: give --masks FILE",
    )
    assert_refused(
        run(*bench, "--runs", "probe:4", "--masks", tuned / "2.st", "--output", tmp_path / "c.json"),
        "name one, such as probe:14@mask_init=tuned",
    )


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (
            ["--draft", "ngram:4", "--masks", "1.st"],
            "tuned masks are for a draft that has masks, such as probe:14, not ngram:4",
        ),
        (["--draft", "plain", "--masks", "1.st"], "not plain"),
        (
            ["--draft", "probe:5+3", "--masks", "1.st"],
            "1.st holds 1 masks, but a node of probe:5+3@mask_init=tuned owns 2",
        ),
        (["--tree", "4", "--masks", "2.st"], "2.st holds 2 masks, but a node of probe:4@mask_init=tuned owns 1"),
        (["--draft", "probe:4@mask_init=zero", "--masks", "1.st"], "take the place of mask_init zero; leave it out"),
        (["--draft", "probe:4@mask_init=tuned"], "probe:4@mask_init=tuned needs tuned masks: give --masks FILE"),
        (["--masks-of-relative"], "--masks-of-relative says whose --masks may be taken; give --masks too"),
        (["--masks", "none.st"], "none.st"),
    ],
)
def test_masks_that_cannot_be_used_are_refused(run, model, tuned, flags, says, monkeypatch):
    monkeypatch.chdir(tuned)
    assert_refused(run("generate", "--model", model, "--prompt", "w3 w4", *GENERATE, *flags), says)


def test_masks_of_another_model_are_refused_or_taken_as_a_relatives(run, tuned, tmp_path, tiny):
    from checkpoints import make_checkpoint

    other = write_folder(tmp_path / "other", make_checkpoint(tiny))
    flags = ["--model", other, "--prompt", "w3 w4", "--masks", tuned / "1.st", *GENERATE]
    assert_refused(run("generate", *flags), "--masks-of-relative")
    assert run("generate", *flags, "--masks-of-relative")[0] == 0


def test_bad_input_of_tune_masks_is_refused_and_leaves_nothing(run, model, prompts, tuned, tmp_path):
    few = write(tmp_path / "few.jsonl", [{"prompt": "w3"}] * 3)
    short = write(tmp_path / "short.jsonl", [{"id": i, "prompt": "w3 w4", "max_new_tokens": 1} for i in range(24)])
    output = tmp_path / "out.st"
    for flags, says in [
        (["--input", few], "holds 3 prompts, too few to tune on: give 20"),
        (["--num-masks", "4"], "num_masks must be 1 to 3, the depths of a tree, got 4"),
        (["--steps", "0"], "steps must be a whole number of at least 1, got 0"),
        (["--texts-at-a-time", "3"], "batch_size 4 must be a multiple of micro_batch 3"),
        (["--output", tuned / "1.st"], "1.st exists; name another, or delete it to tune again"),
        (["--output", tmp_path / "no" / "out.st"], "is in a folder that does not exist"),
        (["--input", tmp_path / "none.jsonl"], "none.jsonl"),
        (["--mesh", "data=99"], "data=99"),
        (["--batch-size", "0"], "must be at least 1, got 0 and"),
        (["--max-new-tokens", "0"], "max_new_tokens must be a whole number of at least 1, got 0"),
    ]:
        assert_refused(run("tune-masks", "--model", model, "--input", prompts, "--output", output, *TUNE, *flags), says)
    assert sorted(path.name for path in tmp_path.iterdir() if not path.name.startswith(("c", "few", "short"))) == []
    code, out, err = run("tune-masks", "--model", model, "--input", short, "--output", output, *TUNE)
    assert (code, out) == (2, "")
    assert "0 of 24 texts have answers of more than 1 tokens" in err.splitlines()[-1]
    assert not output.exists()


def test_a_kill_at_any_time_is_made_good_by_the_same_command(model, prompts, tuned, tmp_path):
    """Killed while it answers, and while it tunes; the same command ends with the masks of a run without a kill."""
    output = tmp_path / "1.st"
    args = ["tune-masks", "--model", model, "--input", prompts, *TUNE, "--steps", "60", "--output", output]
    own = {"PYTHONPATH": os.pathsep.join(sys.path), "HF_HUB_OFFLINE": "1"}
    for sign in ("answers.jsonl", "steps/25"):
        process = subprocess.Popen(
            [sys.executable, "-m", "jax_probe_mtp", *map(str, args)],
            env=os.environ | own,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(6000):
            there = tmp_path / "1.st.run" / sign
            if there.is_dir() or (there.exists() and there.read_bytes().count(b"\n") > 3):
                break
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert not output.exists()
        assert (tmp_path / "1.st.run").is_dir()
    others = write(tmp_path / "others.jsonl", [{"id": f"o{i}", "prompt": "w40 w41"} for i in range(24)])
    refused = command(*args[:4], others, *args[5:])
    assert refused.returncode == 2
    assert f"began with other prompts than {others} has now; delete that folder" in refused.stderr.splitlines()[-1]
    done = command(*args)
    assert done.returncode == 0, done.stderr
    whole = command(*args[:-1], tmp_path / "whole.st")
    assert whole.returncode == 0, whole.stderr
    assert read_masks(output).digest == read_masks(tmp_path / "whole.st").digest
    assert read_masks(output).about == read_masks(tmp_path / "whole.st").about


def test_the_packages_own_prompts_are_prompts():
    from jax_probe_mtp.commands.tune_masks import own_prompts
    from jax_probe_mtp.files.prompt_file import PromptFile

    records = list(PromptFile(own_prompts()))
    assert len(records) == 195
    assert len({record.prompt for record in records}) == 195
