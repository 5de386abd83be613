"""What the version before began goes on: jobs, parts of jobs, and benches, under the names that drafts had then."""

import hashlib
import json

import pytest
from checkpoints import make_checkpoint, words
from support.commands import PROMPTS, assert_refused, read_lines, write
from support.files import earlier_version

from jax_probe_mtp.measuring.environment import environment
from jax_probe_mtp.model.fingerprint import model_identity

JOBS = {  # draft then, drafts accepted in the first answer, its name now, flags
    "ar": ([], "plain", ["--method", "ar"]),
    "probe:4@init=last_k,ema=0.5": (
        [1],
        "probe:4@mask_init=last_k,mask_ema=0.5",
        ["--tree", "4", "--mask-init", "last_k", "--mask-ema", "0.5"],
    ),
    "probe:dynamic30k2": (
        [1, 0],
        "dynamic:30@mask_init=mean",
        ["--tree", "dynamic", "--num-masks", "2", "--block-complexity", "30", "--mask-init", "mean"],
    ),
    "ngram:4@n=2": ([0] * 4, "ngram:4@max_ngram=2", ["--method", "ngram", "--tree", "4", "--max-ngram", "2"]),
}


@pytest.fixture(scope="session")
def identity(tiny):
    return model_identity(make_checkpoint(tiny))


@pytest.fixture
def prompts(tmp_path):
    return write(tmp_path / "prompts.jsonl", [{"id": name, "prompt_ids": ids} for name, ids in PROMPTS.items()])


@pytest.fixture
def begun(tmp_path, identity):
    """Writes the answer to "a" as the version before did; gives its file."""

    def begun(draft, name="answers.jsonl", *, exact=False):
        path = write(tmp_path / name, [earlier_version.answer(draft, JOBS[draft][0])])
        run = earlier_version.run_of(draft, identity, exact=exact)
        (tmp_path / f"{name}.run.json").write_text(json.dumps(run, indent=1) + "\n")
        return path

    return begun


@pytest.mark.parametrize("draft", JOBS)
@pytest.mark.parametrize("by_spec", [False, True], ids=["flags", "draft"])
def test_a_job_goes_on_with_what_is_missing(run, model, prompts, begun, tmp_path, draft, by_spec):
    output, (_, name, flags) = begun(draft), JOBS[draft]
    first, stats = output.read_bytes(), tmp_path / "stats.json"
    flags = ["--draft", name] if by_spec else flags
    command = ["generate", "--model", model, "--input", prompts, "--output", output, "--max-new-tokens", "8", *flags]
    code, _, err = run(*command, "--stats-json", stats)
    assert code == 0, err
    assert output.read_bytes().startswith(first)
    lines = read_lines(output)
    assert [line["id"] for line in lines] == ["a", "b", "c"]
    assert [line["draft"] for line in lines] == [draft, name, name]
    assert lines[1]["token_ids"] == [20, 36, 13, 11, 28, 28, 28, 28]  # as it was then
    assert json.loads(stats.read_text())["records"] == 2


def test_an_exact_job_is_refused_since_its_sums_had_another_order(run, model, prompts, begun):
    output, (_, _, flags) = begun("ngram:4@n=2", exact=True), JOBS["ngram:4@n=2"]
    command = ["generate", "--model", model, "--input", prompts, "--output", output, "--max-new-tokens", "8", *flags]
    assert_refused(run(*command, "--exact"), "was made with program.order nothing, but this run has 3")


def test_a_job_of_another_draft_is_still_refused(run, model, prompts, begun):
    output = begun("ar")
    command = ["generate", "--model", model, "--input", prompts, "--output", output, "--max-new-tokens", "8"]
    assert_refused(run(*command, "--tree", "4"), "was made with settings.draft 'plain', but this run has 'probe:4'")


def test_a_job_with_the_mask_that_was_the_default_is_no_job_with_todays(run, model, prompts, tmp_path):
    """A probe without an init had the prompt's mean, in files of the second format too."""
    output = tmp_path / "answers.jsonl"
    command = ["generate", "--model", model, "--input", prompts, "--output", output, "--max-new-tokens", "8"]
    assert run(*command, "--draft", "probe:4@mask_init=mean")[0] == 0
    beside = tmp_path / "answers.jsonl.run.json"
    made = json.loads(beside.read_text())
    for draft, now in (("probe:4", "probe:4@mask_init=mean"), ("auto", "auto")):  # --tree auto
        earlier = made | {"format": 2, "settings": made["settings"] | {"draft": draft}}
        beside.write_text(json.dumps(earlier))
        assert_refused(
            run(*command, "--draft", "probe:4"), f"was made with settings.draft '{now}', but this run has 'probe:4'"
        )
    beside.write_text(json.dumps(made | {"format": 2, "settings": made["settings"] | {"draft": "probe:4"}}))
    assert run(*command, "--draft", "probe:4@mask_init=mean")[0] == 0


def test_an_old_and_a_new_part_are_merged(run, model, prompts, begun, tmp_path):
    draft = "probe:dynamic30k2"
    _, name, flags = JOBS[draft]
    old = begun(draft, "part.0.jsonl")
    rest = write(tmp_path / "rest.jsonl", [{"id": each, "prompt_ids": PROMPTS[each]} for each in "bc"])
    new, output = tmp_path / "part.1.jsonl", tmp_path / "all.jsonl"
    answer = ["generate", "--model", model, "--max-new-tokens", "8", *flags]
    assert run(*answer, "--input", rest, "--output", new)[0] == 0
    code, out, err = run("merge", new, old, "--output", output, "--input", prompts)
    assert (code, out) == (0, "")
    assert err.splitlines() == [
        f"{output} holds 3 records",
        "1 answers of an earlier version were taken by their ids: they do not say to which prompt",
    ]
    assert output.read_bytes() == old.read_bytes() + new.read_bytes()
    assert json.loads((tmp_path / "all.jsonl.run.json").read_text())["settings"]["draft"] == name
    code, _, err = run(*answer, "--input", prompts, "--output", output)  # it goes on, and nothing is left
    assert (code, [line["draft"] for line in read_lines(output)]) == (0, [draft, name, name])
    other = begun("ar", "part.2.jsonl")
    assert_refused(run("merge", new, other, "--output", tmp_path / "x.jsonl"), "merge files of one run")


def test_a_bench_goes_on(run, model, identity, tmp_path):
    questions = [(1, "first", [5, 9, 2]), (2, "second", [7, 3])]
    lines = [{"question_id": number, "category": name, "turns": [words(*ids)]} for number, name, ids in questions]
    asked, output = write(tmp_path / "questions.jsonl", lines), tmp_path / "r.json"
    digest = hashlib.sha256(asked.read_bytes()).hexdigest()
    old = earlier_version.bench_record(environment("float32"), identity, digest)
    output.write_text(json.dumps(old))
    command = ["bench", "--model", model, "--questions", asked, "--output", output]
    command += ["--no-chat-template", "--max-new-tokens", "6", "--capacity", "64", "--prompt-slots", "8"]
    drafts = ["--draft", "probe:4@mask_init=mean,mask_ema=0.5", "--draft", "ngram:3@max_ngram=2"]
    assert_refused(run(*command, *drafts), "is there already, from the same command, with 1 questions")
    got = run(*command, "--runs", "probe:4", "--resume")
    assert_refused(
        got, "runs plain;probe:4@mask_init=mean,mask_ema=0.5;ngram:3@max_ngram=2, this command has plain;probe:4;"
    )
    code, out, err = run(*command, *drafts, "--resume")
    assert code == 0, err
    whole = json.loads(output.read_text())
    names = ["plain", "probe:4@mask_init=mean,mask_ema=0.5", "ngram:3@max_ngram=2"]
    assert whole["is_complete"]
    assert whole["settings"]["runs"] == [each["run"] for each in whole["runs"]] == names
    assert [line.split()[0] for line in out.splitlines()] == names
    for before, after in zip(old["runs"], whole["runs"], strict=True):
        by_kind = after["by_question"]["1"].pop("accepted_by_kind")
        assert after["by_question"]["1"] == before["by_question"]["1"]  # the old times too: it was not asked again
        assert list(after["by_question"]) == ["1", "2"]
        of_second = after["by_question"]["2"]["accepted_by_depth"]
        assert sum(by_kind.values()) == sum(before["accepted_by_depth"])
        assert sum(after["accepted_by_source"].values()) == sum(before["accepted_by_depth"]) + sum(of_second)
