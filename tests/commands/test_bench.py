"""`bench`, `bench report` and `align` as commands: files, exit codes, going on, and one line for every bad input."""

import json

import pytest
from checkpoints import make_checkpoint, words, write_folder
from support.commands import assert_refused

from jax_probe_mtp.commands import bench
from jax_probe_mtp.files.whole_files import write_json
from jax_probe_mtp.measuring.timed_batch import TimedBatches

QUESTIONS = [(1, "first", [5, 9, 2]), (2, "second", [7, 3]), (3, "first", [60, 1, 33]), (4, "second", [8])]
FAST = ["--no-chat-template", "--max-new-tokens", "6", "--capacity", "64", "--prompt-slots", "8"]
RUNS = ["--runs", "ngram:3"]


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    lines = [{"question_id": i, "category": c, "turns": [words(*t), "more"]} for i, c, t in QUESTIONS]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


def read(path):
    return json.loads(path.read_text())


def test_bench_writes_one_record(run, model, questions, tmp_path):
    output = tmp_path / "r.json"
    code, out, err = run("bench", "--model", model, "--questions", questions, "--output", output, *RUNS, *FAST)
    assert code == 0, err
    record = read(output)
    assert record["questions"] == [1, 2, 3, 4]
    assert record["is_complete"]
    assert record["settings"]["runs"] == ["plain", "ngram:3"]
    assert record["settings"]["max_new_tokens"] == 6
    assert [line.split()[0] for line in out.splitlines()] == ["plain", "ngram:3"]
    assert "4/4 equal" in out
    assert sorted(path.name for path in tmp_path.iterdir() if path.suffix in (".json", ".partial")) == ["r.json"]


def test_only_so_many_of_a_category(run, model, questions, tmp_path):
    output = tmp_path / "r.json"
    args = ["--model", model, "--questions", questions, "--per-category", "1", "--output", output]
    assert run("bench", *args, "--runs", "plain", *FAST)[0] == 0
    assert read(output)["questions"] == [1, 2]
    assert [run["run"] for run in read(output)["runs"]] == ["plain"]


def test_a_bench_does_not_go_on_with_a_folder_that_changed(run, tiny, questions, tmp_path):
    model, output = write_folder(tmp_path / "tiny", make_checkpoint(tiny)), tmp_path / "r.json"
    command = ["bench", "--model", model, "--questions", questions, "--output", output, "--runs", "plain", *FAST]
    assert run(*command)[0] == 0
    template = model / "chat_template.jinja"
    template.write_text(template.read_text().replace("<bot>", "<bot> "))
    assert_refused(run(*command, "--resume"), "r.json was made with model chat_template ")


def test_an_interrupted_bench_goes_on(run, model, questions, tmp_path, monkeypatch):
    output = tmp_path / "r.json"
    args = ["bench", "--model", model, "--questions", questions, "--output", output, *RUNS, *FAST]
    honest = write_json

    interrupts = [KeyboardInterrupt]

    def stop_after_the_second(path, record):
        if len(record["questions"]) == 2 and interrupts:
            raise interrupts.pop()  # before it is written
        honest(path, record)

    monkeypatch.setattr(bench, "write_json", stop_after_the_second)
    code, _, err = run(*args)
    assert code == 130
    assert f"error: interrupted; 2 of 4 questions are in {output}, --resume goes on" in err
    half = read(output)
    assert not half["is_complete"]
    monkeypatch.undo()
    code, out, err = run(*args)
    assert (code, out) == (2, "")
    assert "is there already, from the same command, with 2 questions; --resume goes on" in err
    code, out, _ = run(*args, "--resume")
    assert code == 0
    assert "4/4 equal" in out
    whole = read(output)
    assert whole["questions"] == [1, 2, 3, 4]
    for before, after in zip(half["runs"], whole["runs"], strict=True):
        assert {q: after["by_question"][q] for q in ("1", "2")} == before["by_question"]  # the old times too
    code, out, _ = run(*args, "--resume")
    assert (code, read(output)) == (0, whole)


def test_another_command_or_model_is_refused_and_both_are_named(run, model, questions, tmp_path, tiny):
    output = tmp_path / "r.json"
    args = ["--questions", questions, "--output", output, *FAST]
    assert run("bench", "--model", model, *args, "--runs", "plain")[0] == 0
    before = output.read_text()
    got = run("bench", "--model", model, *args, *RUNS, "--resume")
    assert_refused(got, "made with settings runs plain, this command has plain;ngram:3")
    got = run("bench", "--model", model, *args, "--runs", "plain", "--seed", "3", "--resume")
    assert_refused(got, "made with settings seed 0, this command has 3")
    other = make_checkpoint(tiny)
    other.params["final_norm"] = other.params["final_norm"] * 2
    folder = write_folder(tmp_path / "other", other)
    other.params["final_norm"] = other.params["final_norm"] / 2
    got = run("bench", "--model", folder, *args, "--runs", "plain", "--resume")
    assert_refused(got, "made with model name tiny, this command has other")
    for there in ("{}", "no json", '{"format": 1, "runs": []}', '{"format": 1, "runs": [{}]}', "[" * 10**5):
        output.write_text(there)
        code, out, err = run("bench", "--model", "none", *args, "--runs", "plain")  # before the model is looked for
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert str(output) in err
    assert before != output.read_text()


def test_a_record_that_was_edited_is_not_continued(run, model, questions, tmp_path):
    output = tmp_path / "r.json"
    args = ["bench", "--model", model, "--questions", questions, "--output", output, *FAST, *RUNS]
    assert run(*args)[0] == 0
    whole = read(output)

    def edited(edit):
        record = json.loads(json.dumps(whole))
        edit(record["runs"])
        output.write_text(json.dumps(record))
        assert_refused(run(*args, "--resume"), "was changed since: its runs do not fit its settings or questions")
        assert read(output) == record

    edited(lambda runs: runs.pop())
    edited(lambda runs: runs[1]["by_question"].pop("1"))
    edited(lambda runs: [run["by_question"].update({"99": run["by_question"]["1"]}) for run in runs])
    edited(lambda runs: runs[0]["by_question"]["1"].update(seconds=0))


def test_what_does_not_fit_is_said_and_kept_in_the_record(run, model, questions, tmp_path):
    with questions.open("a") as file:
        file.write(json.dumps({"question_id": "long", "category": "first", "turns": [words(*[5] * 600)]}) + "\n")
    output = tmp_path / "r.json"
    args = ["--model", model, "--questions", questions, "--output", output, "--runs", "plain"]
    code, _, err = run("bench", *args, "--no-chat-template", "--max-new-tokens", "2")
    assert code == 0
    assert "question long is skipped: 600 tokens and 2 new ones are more than the model's context of 512." in err
    assert list(read(output)["skipped"]) == ["long"]
    assert read(output)["questions"] == [1, 2, 3, 4]
    assert read(output)["is_complete"]


def test_bench_says_with_its_exit_code_that_tokens_differ(run, model, questions, tmp_path, monkeypatch):
    honest = TimedBatches.run

    def wrong(self, batch, settings):
        answers = honest(self, batch, settings)
        if self.source.num_rows > 1:
            token_ids = answers[0].generation.token_ids
            token_ids[1] = (token_ids[1] + 1) % 61
        return answers

    monkeypatch.setattr(TimedBatches, "run", wrong)
    args = ["--model", model, "--questions", questions, "--output", tmp_path / "r.json", *RUNS]
    code, out, _ = run("bench", *args, *FAST)
    assert code == 1
    assert "0/4 equal" in out


@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("{", "line 5 is not JSON"),
        (
            "[1]",
            'must be an object with "turns" (Spec-Bench, SPEED-Bench), "question" and "function" (BFCL) or "messages"',
        ),
        ('{"category": "a", "turns": ["x"]}', "id must be a text or a whole number, got null"),
        ('{"question_id": 2, "category": "a", "turns": ["x"]}', "has the id 2 of line 2; ids must differ"),
        ('{"question_id": 1.5, "category": "a", "turns": ["x"]}', "id must be a text or a whole number, got 1.5"),
        ('{"question_id": 9, "turns": ["x"]}', 'must have a text "category", got null'),
        (
            '{"question_id": 9, "category": "a", "turns": null}',
            'must have "turns", a list that begins with a text, got null',
        ),
        ('{"question_id": 9, "category": "a", "turns": []}', "begins with a text, got []"),
        ('{"question_id": 9, "category": "a", "turns": [3]}', "begins with a text, got [3]"),
        ('{"question_id": 9, "category": "a", "turns": ["\\ud800"]}', "half of a surrogate pair"),
    ],
)
def test_a_bad_question_stops_before_the_model_is_read(run, questions, tmp_path, line, says):
    with questions.open("a") as file:
        file.write(line + "\n")
    args = ["--model", "none", "--questions", questions, "--per-category", "1", "--output", tmp_path / "r.json"]
    assert_refused(run("bench", *args), says)
    assert_refused(run("align", *args[:-1], tmp_path / "folder"), says)


def test_bad_arguments(run, model, questions, tmp_path):
    args = ["bench", "--model", model, "--questions", questions]
    assert_refused(run(*args, "--output", tmp_path / "r.json", "--runs", "magic"), "draft 'magic': the name is none of")
    assert_refused(run(*args, "--output", tmp_path / "none" / "r.json"), "in a folder that does not exist")
    assert_refused(run(*args, "--output", questions), "is read by this command")
    assert_refused(
        run(*args, "--output", tmp_path / "r.json", "--per-category", "0"), "per_category must be at least 1"
    )
    assert_refused(run(*args, "--output", tmp_path / "r.json", "--batch-size", "0"), "batch_size must be at least 1")
    assert_refused(
        run(*args, "--output", tmp_path / "r.json", "--temperature", "-1", "--runs", "plain"), "temperature must be 0"
    )
    (tmp_path / "empty.jsonl").write_text("\n")
    empty = ["--questions", tmp_path / "empty.jsonl", "--output", tmp_path / "r.json"]
    assert_refused(run("bench", "--model", model, *empty), "holds no questions")
    assert_refused(run("bench", "report", "--output", tmp_path), "R.json")
    assert_refused(run("align", *args[1:], "--output", tmp_path / "a", "--num-masks", "0"), "at least one mask")
    assert_refused(run("align", *args[1:], "--output", tmp_path / "a", "--batch-size", "2"), "leave --batch-size 2 out")
    assert not (tmp_path / "r.json").exists()


def test_report_and_align_write_their_files(run, model, questions, tmp_path):
    pytest.importorskip("matplotlib")
    output = tmp_path / "r.json"
    assert run("bench", "--model", model, "--questions", questions, "--output", output, *RUNS, *FAST)[0] == 0
    code, out, _ = run("bench", "report", output, "--output", tmp_path / "report")
    assert code == 0
    assert [str(tmp_path / "report" / f"report.{end}") for end in ("html", "md")] == out.splitlines()[:2]
    assert "| ngram:3 | " in (tmp_path / "report" / "report.md").read_text()
    args = ["--model", model, "--questions", questions, "--per-category", "1", "--tree", "5", *FAST]
    code, out, _ = run("align", *args, "--output", tmp_path / "align")
    assert code == 0
    assert sorted(path.name for path in (tmp_path / "align").iterdir()) == [
        "alignment.json",
        "alignment.md",
        "alignment.svg",
    ]
    assert read(tmp_path / "align" / "alignment.json")["prompts"] == [1, 2]
