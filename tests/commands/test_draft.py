"""`--draft`: the text form gives what the older flags give, a source of the user's own works, and one line for what is bad."""

import json
import sys

import pytest
from checkpoints import words
from support.commands import PROMPTS, TEXT, assert_refused, read_lines, write_prompts
from support.drafting import own_sources

SIZES = ["--no-chat-template", "--max-new-tokens", "12", "--capacity", "64", "--prompt-slots", "8"]
SHORTHAND = {
    "probe:4": ["--tree", "4"],
    "plain": ["--method", "ar"],
    "recycle:12@warm=1": ["--method", "recycle", "--tree", "12", "--warm"],
}
COMMANDS = ["generate", "verify", "bench"]


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    lines = [{"question_id": n, "category": "c", "turns": [words(*ids)]} for n, ids in PROMPTS.items()]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture
def own_module(tmp_path, monkeypatch):
    """The working folder holds a module of sources, which no other test sees."""
    (tmp_path / f"{own_sources.NAME}.py").write_text(own_sources.TEXT)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", sys.path.copy())
    monkeypatch.delitem(sys.modules, own_sources.NAME, raising=False)
    yield own_sources.NAME
    sys.modules.pop(own_sources.NAME, None)


@pytest.fixture
def answers(run, model, tmp_path):
    """Answers the prompts; gives the lines."""

    def answers(*flags):
        output = tmp_path / "answers.jsonl"
        files = ["--input", write_prompts(tmp_path), "--output", output, "--batch-size", "3", "--ordered"]
        assert run("generate", "--model", model, *files, *SIZES, *flags) == (0, "", "")
        lines = read_lines(output)
        made_by = json.loads((tmp_path / "answers.jsonl.run.json").read_text())["settings"]["draft"]
        assert {line["draft"] for line in lines} == {made_by}
        output.unlink()
        return lines

    return answers


@pytest.fixture
def verdicts(run, model, tmp_path):
    """Verifies the prompts; gives what stdout says and the draft in the report."""

    def verdicts(*flags):
        report = tmp_path / "verdicts.json"
        files = ["--input", write_prompts(tmp_path), "--json", report, "--batch-size", "3"]
        code, out, _ = run("verify", "--model", model, *files, *SIZES, *flags)
        assert (code, out.splitlines()[-1]) == (0, "3 same, 0 tie, 0 diverged")
        return out, json.loads(report.read_text())["run"]["draft"]

    return verdicts


@pytest.fixture
def measured(run, model, questions, tmp_path):
    """Benches the prompts; gives the counts of each run."""

    def measured(*flags):
        output = tmp_path / "record.json"
        code, _, err = run("bench", "--model", model, "--questions", questions, "--output", output, *SIZES, *flags)
        assert code == 0, err
        record = json.loads(output.read_text())
        output.unlink()
        assert [each["run"] for each in record["runs"]] == record["settings"]["runs"]
        assert all(each["exact_match"] == 1 for each in record["runs"])
        names = ("calls", "committed", "accepted_by_depth", "accepted_by_source", "rows_per_call")
        return {each["run"]: {name: each[name] for name in names} for each in record["runs"]}

    return measured


@pytest.mark.parametrize("spec", SHORTHAND)
def test_generate_answers_as_with_the_shorthand(answers, spec):
    got = answers("--draft", spec)
    assert [line["draft"] for line in got] == [spec] * 3
    assert got == answers(*SHORTHAND[spec])


@pytest.mark.parametrize("spec", ["probe:4", "recycle:12@warm=1"])
def test_verify_compares_as_with_the_shorthand(verdicts, spec):
    got = verdicts("--draft", spec)
    assert got[1] == spec
    assert got == verdicts(*SHORTHAND[spec])


def test_bench_measures_each_draft_beside_plain_decoding(measured):
    got = measured("--draft", "probe:4", "--draft", "plain", "--draft", "recycle:12@warm=1")
    assert list(got) == ["plain", "probe:4", "recycle:12@warm=1"]
    assert got == measured("--runs", "ar;probe:4;recycle:12@warm=1")
    assert 0 < sum(got["probe:4"]["accepted_by_depth"]) == got["probe:4"]["accepted_by_source"]["probe"]


def test_what_verify_compares_with_is_nothing_to_verify(run, model):
    for spec in ("plain", "ar"):
        result = run("verify", "--model", model, "--prompt", TEXT, "--draft", spec)
        assert_refused(result, f"--draft {spec} is plain decoding, with which verify compares: name a way of drafting.")


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--method", "probe"], "leave --method out"),
        (["--tree", "4"], "leave --tree out"),
        (["--num-masks", "0"], "leave --num-masks out"),
        (["--mask-ema", "0"], "leave --mask-ema out"),
        (["--no-prune"], "leave --no-prune out"),
        (["--warm"], "leave --warm out"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_a_draft_beside_the_shorthand_is_refused(run, questions, tmp_path, flags, says):
    flags = ["--model", "none", "--draft", "probe:4", *flags]
    for command in ("generate", "verify"):
        assert_refused(run(command, "--prompt", TEXT, *flags), f"--draft says all of it: {says}.")
    files = ["--questions", questions, "--output", tmp_path / "out"]
    assert_refused(run("align", *files, *flags), f"--draft says all of it: {says}.")


def test_other_places_for_a_draft_are_refused(run, questions, tmp_path):
    files = ["--model", "none", "--questions", questions, "--output", tmp_path / "out"]
    assert_refused(run("bench", *files, "--draft", "probe:4", "--runs", "probe:5"), "not allowed with argument")
    assert_refused(run("bench", *files, "--draft", "probe:4", "--draft", "probe:4"), "are the same; leave one out.")
    outputs = ["--model", "none", "--outputs", write_prompts(tmp_path)]
    assert_refused(run("verify", *outputs, "--draft", "probe:4"), "--draft says how to decode, and --outputs decodes")


def refusal(run, model, questions, tmp_path, command, spec):
    """What a command says of a spec: a line on stderr, nothing on stdout or disk."""
    asked = ["--prompt", TEXT]
    if command == "bench":
        asked = ["--questions", questions, "--output", tmp_path / "record.json"]
    before = sorted(path.name for path in tmp_path.iterdir() if path.name not in ("__pycache__", "cache"))
    result = run(command, "--model", model, *asked, *SIZES, "--draft", spec)
    assert sorted(path.name for path in tmp_path.iterdir() if path.name not in ("__pycache__", "cache")) == before
    return result


@pytest.mark.parametrize("command", COMMANDS)
def test_a_draft_that_cannot_be_had_is_named(run, own_module, questions, tmp_path, command):
    (tmp_path / "broken.py").write_text("raise RuntimeError('two\\nlines')\n")
    bad = {
        "": "draft '' cannot be read" if command != "bench" else None,  # of bench: no run beside plain decoding
        "probe:": "draft 'probe:' cannot be read: write name:shape@option=value,...",
        "probe:4@": "cannot be read",
        "magic": "draft 'magic': the name is none of plain, probe, dynamic, ngram, recycle, merged, auto, and no module:Class.",
        "probe:4@size=3": "it takes mask_init, mask_offset, mask_ema, prune, rank_with_noise after the @, got 'size=3'",
        "plain:3": "it has no shape, got '3'",
        "no_module:MySource": "module no_module cannot be imported: No module named 'no_module'",
        "broken:MySource": "module broken cannot be imported: two lines.",
        "my_module:Nobody": "module my_module has no class Nobody.",
        "my_module:Other": "my_module:Other is no DraftSource.",
        "json:dumps": "json:dumps is no DraftSource.",
        "my_module:NotFrozen": "is no frozen dataclass; put @dataclasses.dataclass(frozen=True) above it.",
        "my_module:Picky": "draft 'my_module:Picky': not today",
        "my_module:NoHash": "draft 'my_module:NoHash': unhashable type: 'list'.",
        "my_module:NoPropose": "draft 'my_module:NoPropose': Can't instantiate abstract class NoPropose",
        "my_module:MySource@size=many": "size cannot be 'many'.",
        "my_module:MySource@width=3": "it takes size after the @, got 'width=3'",
    }
    for spec, says in bad.items():
        if says:
            assert_refused(refusal(run, "none", questions, tmp_path, command, spec), says)
    sys.modules.pop("broken", None)


@pytest.mark.parametrize("command", COMMANDS)
@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("LateParent", "LateParent: propose: a parent does not come before its child (row 0, candidate 0: "),
        ("HighScore", "HighScore: propose: a score is above its parent's (row 0, candidate 1: "),
        ("NoRows", "NoRows: start gives rows without B = 3 in front"),
    ],
)
def test_a_source_that_breaks_the_contract_is_told_where(
    run, model, own_module, questions, tmp_path, command, name, says
):
    assert_refused(refusal(run, model, questions, tmp_path, command, f"{own_module}:{name}"), says)


def test_a_source_of_ones_own_drafts(own_module, answers, verdicts, measured):
    spec = f"{own_module}:MySource@size=3"
    got, plain = answers("--draft", spec), answers("--draft", "plain")
    assert {line["draft"] for line in got} == {spec}
    assert [line["token_ids"] for line in got] == [line["token_ids"] for line in plain]
    assert sum(line["calls"] for line in got) < sum(line["calls"] for line in plain)  # the text repeats tokens
    assert verdicts("--draft", spec)[1] == spec
    mine = measured("--draft", spec)[spec]
    assert (mine["rows_per_call"], list(mine["accepted_by_source"])) == (4, ["mysource"])
    assert sum(mine["accepted_by_depth"]) == mine["accepted_by_source"]["mysource"] > 0


def test_a_default_is_left_out_of_the_name(own_module, answers):
    assert answers("--draft", f"{own_module}:MySource@size=2")[0]["draft"] == f"{own_module}:MySource"
