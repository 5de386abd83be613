"""`--tree auto` of the commands: the choice is said, kept, followed, and refused where trees are named."""

import json

import pytest
from checkpoints import make_checkpoint, words, write_folder
from support.measuring.tree_timer import CHEAP, Timer

from jax_probe_mtp.measuring import call_cost

PROMPT = words(5, 9, 2, 44, 17, 3, 3)


@pytest.fixture(scope="module")
def checkpoint(tiny):
    return make_checkpoint(tiny)


@pytest.fixture
def timer(monkeypatch):
    timer = Timer()
    monkeypatch.setattr(call_cost, "time_step", timer)
    return timer


@pytest.fixture(scope="module")
def model(checkpoint, tmp_path_factory):
    return str(write_folder(tmp_path_factory.mktemp("models") / "tiny", checkpoint))


@pytest.fixture
def command(model, tmp_path):
    """`generate` without what drafts, for two prompts of different lengths, and the file it writes."""
    prompts, output = tmp_path / "prompts.jsonl", tmp_path / "answers.jsonl"
    texts = {"a": words(7), "b": PROMPT}
    lines = [json.dumps({"id": name, "prompt": text}) for name, text in texts.items()]
    prompts.write_text("\n".join(lines))
    files = ["--model", model, "--input", prompts, "--output", output]
    return ["generate", *files, "--no-chat-template", "--max-new-tokens", "70", "--batch-size", "8"], output


def answers(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


@pytest.mark.parametrize(
    ("costs", "draft"),
    [(CHEAP, "probe:14"), ({1: 10.0, 10: 20.0}, "plain")],
    ids=["a tree pays", "none pays"],
)
def test_the_command_decodes_with_what_pays(run, command, timer, tmp_path, costs, draft):
    generate, output = command
    assert run(*generate, "--method", "ar") == (0, "", "")
    plain = answers(output)
    output.unlink()  # of another draft
    timer.costs = costs
    code, out, err = run(*generate, "--tree", "auto", "--stats")
    assert (code, out) == (0, "")
    measures, says, stats = err.splitlines()
    assert measures.startswith("choosing a tree: ")
    assert says.startswith(f"auto: {draft}, ")
    assert "(fresh: 1 row 10.00 ms" in says
    assert stats.startswith("tau ")
    got = answers(output)
    assert [line["draft"] for line in got] == [draft, draft]
    assert [line["token_ids"] for line in got] == [line["token_ids"] for line in plain]
    if draft != "plain":
        assert sum(line["calls"] for line in got) < sum(line["calls"] for line in plain)
    # Two rows, since there are two prompts; and the bucket of the longer one, 7 + 70 - 1 tokens.
    assert {(asked[1].capacity, asked[2]["batch_size"]) for asked in timer.asked} == {(128, 2)}
    assert len(list((tmp_path / "cache" / "jax_probe_mtp" / "auto_tree").iterdir())) == 1
    timer.costs = {}
    output.unlink()
    code, out, err = run(*generate, "--tree", "auto", "--stats")
    assert (code, out) == (0, "")
    assert err.splitlines()[0] == says.replace("(fresh: ", "(cached: ")
    assert answers(output) == got
    output.unlink()
    assert run(*generate, "--tree", "auto") == (0, "", "")


def test_the_masks_options_stay(run, command, timer):
    generate, output = command
    options = ["--tree", "auto", "--mask-init", "last_k", "--mask-ema", "0.5", "--no-prune"]
    assert run(*generate, *options)[0] == 0
    assert {line["draft"] for line in answers(output)} == {"probe:14@mask_init=last_k,mask_ema=0.5,prune=0"}
    output.unlink()
    assert run(*generate, "--mask-init", "last_k", "--mask-ema", "0.5", "--no-prune", "--tree", "14")[0] == 0
    assert {line["draft"] for line in answers(output)} == {"probe:14@mask_init=last_k,mask_ema=0.5,prune=0"}


@pytest.mark.parametrize(
    ("costs", "draft"), [(CHEAP, "probe:14"), ({1: 10.0, 10: 20.0}, "plain")], ids=["tree", "plain"]
)
def test_verify_compares_what_was_chosen(run, model, timer, costs, draft):
    timer.costs = costs
    code, out, err = run("verify", "--model", model, "--prompt", PROMPT, "--no-chat-template", "--tree", "auto")
    assert code == 0
    assert out.endswith("1 same, 0 tie, 0 diverged\n")
    measures, says, plain, drafted = err.splitlines()
    assert measures.startswith("choosing a tree: ")
    assert says.startswith(f"auto: {draft}, ")
    assert plain.startswith("plain: tau 1.000")
    assert drafted.startswith(f"{draft}: tau 1.")
    assert drafted.startswith(f"{draft}: tau 1.000") == (draft == "plain")


def test_a_cache_that_cannot_be_written_costs_the_command_a_line(run, command, timer, tmp_path, monkeypatch):
    (tmp_path / "cache").touch()
    generate, output = command
    code, out, err = run(*generate, "--tree", "auto")
    assert (code, out) == (0, "")
    assert err.splitlines()[1].startswith("what a call costs is not kept: ")
    assert err.count("\n") == 2
    monkeypatch.setattr(
        "jax_probe_mtp.commands.auto_tree.cache_folder", lambda: (_ for _ in ()).throw(ValueError("no home"))
    )
    code, out, err = run(*generate, "--tree", "auto")
    assert (code, out) == (0, "")
    assert err.splitlines()[0] == "what a call costs is not kept: no home"
    assert {line["draft"] for line in answers(output)} == {"probe:14"}


def test_commands_whose_trees_are_named_refuse_it(run, model, timer, tmp_path):
    (tmp_path / "q.jsonl").write_text('{"question_id": 1, "category": "qa", "turns": ["w5"]}\n')
    for command, options, says in (
        ("bench", ["--runs", "probe:auto"], "draft 'probe:auto': widths cannot be 'auto'."),
        ("bench", ["--tree", "auto"], "--tree auto"),
        ("align", ["--tree", "auto"], "--tree auto is for generate and verify"),
    ):
        args = ["--model", model, "--questions", tmp_path / "q.jsonl", "--output", tmp_path / "out"]
        code, out, err = run(command, *args, *options)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert says in err
    assert timer.asked == []
