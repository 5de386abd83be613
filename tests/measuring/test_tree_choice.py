"""The tree that pays: picked from given costs by hand, measured once and kept, and as a command."""

import dataclasses
import json
import math
import re

import jax
import pytest
from checkpoints import make_checkpoint, words, write_folder

from jax_probe_mtp import ProbeConfig, Settings, generate
from jax_probe_mtp.drafting.draft_config import PLAIN
from jax_probe_mtp.measuring import tree_choice
from jax_probe_mtp.measuring.call_cost import Timing
from jax_probe_mtp.measuring.tree_choice import PRIOR_TAU, choose, next_to_measure, pick

SETTINGS = Settings(batch_size=2, capacity=128)
CHEAP = {1: 10.0, 10: 10.5, 30: 11.0, 60: 13.0}  # 30 rows pay best: 1.503 * 10 / 11
PROMPT = words(5, 9, 2, 44, 17, 3, 3)


@pytest.fixture(scope="module")
def checkpoint(tiny):
    return make_checkpoint(tiny)


@pytest.fixture
def timer(monkeypatch):
    """Stands for `call_cost.time_step`: says what was asked and answers from `costs`, by rows."""

    class Timer:
        costs = CHEAP

        def __init__(self):
            self.asked = []

        def __call__(self, params, cfg, draft_cfg, decode_cfg, **more):
            self.asked.append((draft_cfg, decode_cfg, more))
            cost = self.costs[draft_cfg.num_rows]
            if isinstance(cost, Exception):
                raise cost
            return Timing(ms=(cost / 2, cost, cost * 9), compile_seconds=0.0, temp_bytes=None)

        @property
        def rows(self):
            return [draft_cfg.num_rows for draft_cfg, _, _ in self.asked]

    timer = Timer()
    monkeypatch.setattr(tree_choice.call_cost, "time_step", timer)
    return timer


@pytest.mark.parametrize(
    ("costs", "rows", "expected"),
    [
        (CHEAP, 30, {1: 1, 10: 13.55 / 10.5, 30: 15.03 / 11, 60: 15.73 / 13}),
        ({1: 8, 10: 8, 30: 8, 60: 8}, 60, {1: 1, 10: 1.355, 30: 1.503, 60: 1.573}),
        ({1: 2, 10: 2.1, 30: 3.1, 60: 5}, 10, {1: 1, 10: 2.71 / 2.1, 30: 3.006 / 3.1, 60: 3.146 / 5}),
        ({1: 3, 10: 7}, 1, {1: 1, 10: 4.065 / 7}),
        ({1: 3}, 1, {1: 1}),
        ({1: 3, 10: 4, 30: math.inf}, 10, {1: 1, 10: 4.065 / 4, 30: 0}),
    ],
    ids=["30", "60", "10", "none pays", "nothing measured", "no memory"],
)
def test_picks_the_best_expected_speed(costs, rows, expected):
    assert pick(costs, PRIOR_TAU) == (rows, pytest.approx(expected))


def test_ties_go_to_plain_decoding_and_then_to_fewer_rows():
    prior = {1: 1.0, 10: 1.5, 30: 2.0}
    assert pick({1: 2.0, 10: 3.0, 30: 4.0}, prior) == (1, {1: 1.0, 10: 1.0, 30: 1.0})
    assert pick({1: 2.0, 10: 2.25, 30: 3.0}, prior)[0] == 10  # 4/3 both
    assert pick({30: 3.0, 10: 2.25, 1: 2.0}, prior)[0] == 10  # whatever their order


@pytest.mark.parametrize(
    ("costs", "says"),
    [
        ({}, "plain decoding, 1 row, needs a cost"),
        ({10: 1.0}, "plain decoding, 1 row, needs a cost"),
        ({1: math.nan}, "nan"),
        ({1: math.inf, 10: 1.0}, "inf"),
        ({1: 1.0, 10: 0.0}, "above 0"),
        ({1: -1.0}, "above 0"),
        ({1: 1.0, 10: math.nan}, "above 0"),
        ({1: 1.0, 12: 1.0}, "12: 1.0"),
    ],
)
def test_costs_that_make_no_sense(costs, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        pick(costs, PRIOR_TAU)


@pytest.mark.parametrize(
    ("costs", "rows"),
    [
        ({}, 1),
        ({1: 10.0}, 10),
        ({1: 10.0, 10: 15.72}, 30),
        ({1: 10.0, 10: 15.73}, None),  # 60 rows give 1.573 at best
        ({1: 10.0, 10: 14.0, 30: 15.72}, 60),
        ({1: 10.0, 10: 14.0, 30: 15.73}, None),
        (CHEAP, None),
        ({1: 10.0, 10: math.inf}, None),
    ],
)
def test_measures_what_can_pay_with_fewer_rows_first(costs, rows):
    assert next_to_measure(costs, PRIOR_TAU) == rows


def test_the_choice_says_what_and_why(checkpoint, timer):
    choice = choose(checkpoint, SETTINGS)
    assert choice.draft == ProbeConfig(tree=(14,))
    assert (choice.costs, choice.prior, choice.is_cached) == (CHEAP, PRIOR_TAU, False)
    assert choice.expected == pytest.approx({1: 1, 10: 13.55 / 10.5, 30: 15.03 / 11, 60: 15.73 / 13})
    assert str(choice) == (
        "probe:14, expected to be 1.37 x as fast as plain decoding (fresh: 1 row 10.00 ms a call, 10 rows 10.50 ms for "
        "1.29 x, 30 rows 11.00 ms for 1.37 x, 60 rows 13.00 ms for 1.21 x)"
    )
    timer.costs = {1: 10.0, 10: 16.0}
    plain = choose(checkpoint, SETTINGS)
    assert plain.draft == PLAIN
    assert str(plain) == (
        "ar, no tree pays (fresh: 1 row 10.00 ms a call, 10 rows 16.00 ms for 0.85 x, 30 rows skipped, 60 rows skipped)"
    )


def test_times_the_run_that_is_asked_for(checkpoint, timer):
    assert choose(checkpoint, SETTINGS).draft.num_rows == 30
    assert timer.rows == [1, 10, 30, 60]
    for _, decode_cfg, more in timer.asked:
        assert (decode_cfg.capacity, decode_cfg.is_sampled) == (128, False)
        assert (more["batch_size"], more["in_use"], more["temperature"], more["top_p"]) == (2, 64, 0.0, 1.0)
    timer.asked.clear()
    like = ProbeConfig(tree=(7, 3), mask_init="last_k", rank_with_noise=False)
    drawn = dataclasses.replace(SETTINGS, temperature=0.5, top_k=3, capacity=1)
    assert choose(checkpoint, drawn, like=like).draft == dataclasses.replace(like, tree=(14,), num_masks=1)
    assert [draft_cfg.num_rows for draft_cfg, _, _ in timer.asked] == [1, 10, 30, 60]
    assert timer.asked[0][0] == PLAIN
    for _, decode_cfg, more in timer.asked:
        assert (decode_cfg.capacity, decode_cfg.is_sampled) == (64, True)  # no cache is smaller than a bucket
        assert more["temperature"] == 0.5
        assert 0 < more["top_p"] < 1  # stands for the cut by top-k


def test_stops_where_more_rows_cannot_pay(checkpoint, timer):
    timer.costs = {1: 10.0, 10: 14.0, 30: 20.0}
    choice = choose(checkpoint, SETTINGS)
    assert timer.rows == [1, 10, 30]
    assert choice.draft == PLAIN


def test_trees_wider_than_the_vocabulary_are_left_out(tiny, timer):
    narrow = make_checkpoint(tiny)
    narrow = dataclasses.replace(narrow, config=dataclasses.replace(narrow.config, vocab_size=29))
    assert list(choose(narrow, SETTINGS).prior) == timer.rows == [1, 10, 30]  # [29] looks at 30 candidates


def test_a_tree_that_does_not_fit_is_not_chosen_and_not_kept(checkpoint, timer, tmp_path):
    out_of_memory = jax.errors.JaxRuntimeError("RESOURCE_EXHAUSTED: Out of memory allocating 9 bytes.")
    timer.costs = {1: 10.0, 10: 11.0, 30: out_of_memory}
    choice = choose(checkpoint, SETTINGS, folder=tmp_path)
    assert choice.draft == ProbeConfig(tree=(4,))
    assert "30 rows do not fit, 60 rows skipped" in str(choice)
    assert list(tmp_path.iterdir()) == []
    timer.costs = {1: out_of_memory}
    with pytest.raises(jax.errors.JaxRuntimeError, match="9 bytes"):
        choose(checkpoint, SETTINGS)
    timer.costs = {1: 10.0, 10: jax.errors.JaxRuntimeError("INTERNAL: a fault")}
    with pytest.raises(jax.errors.JaxRuntimeError, match="a fault"):
        choose(checkpoint, SETTINGS)


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"capacity": None}, "settings have no capacity"),
        ({"capacity": 0}, "capacity must be at least 1, got 0"),
        ({"batch_size": 0}, "batch_size must be at least 1, got 0"),
        ({"temperature": -1.0}, "got -1.0"),
        ({"temperature": math.nan}, "got nan"),
    ],
)
def test_settings_that_make_no_sense(checkpoint, timer, changes, says):
    with pytest.raises(ValueError, match=re.escape(says)):
        choose(checkpoint, dataclasses.replace(SETTINGS, **changes))
    assert timer.asked == []


def test_what_was_measured_once_is_read(checkpoint, timer, tmp_path):
    folder, lines = tmp_path / "new" / "folder", []
    first = choose(checkpoint, SETTINGS, folder=folder, say=lines.append)
    assert len(lines) == 1
    assert "1, 10, 30, 60 rows" in lines[0]
    timer.costs = {}  # it would raise
    again = choose(checkpoint, SETTINGS, folder=folder, say=lines.append)
    assert again == dataclasses.replace(first, is_cached=True)
    assert "(cached: " in str(again)
    assert len(lines) == 1
    # What a call does not cost anything for: other values of the same program.
    like = {"seed": 3, "max_new_tokens": 5, "mask_ema": 0.5}
    assert choose(checkpoint, dataclasses.replace(SETTINGS, **like), folder=folder).is_cached
    assert len(list(folder.iterdir())) == 1


@pytest.mark.parametrize(
    "change",
    [
        {"batch_size": 3},
        {"capacity": 256},
        {"temperature": 1.0},
        {"temperature": 1.0, "top_p": 0.5},
        "like",
        "model",
        "dtype",
        "device",
        "jax",
        "jax_probe_mtp",
    ],
    ids=str,
)
def test_another_key_is_measured_by_itself(checkpoint, timer, tmp_path, monkeypatch, change):
    choose(checkpoint, SETTINGS, folder=tmp_path)
    if isinstance(change, dict) and "top_p" in change:
        choose(checkpoint, dataclasses.replace(SETTINGS, temperature=1.0), folder=tmp_path)
    timer.asked.clear()
    other, settings, more = checkpoint, SETTINGS, {}
    if isinstance(change, dict):
        settings = dataclasses.replace(SETTINGS, **change)
    elif change == "like":
        more["like"] = ProbeConfig(tree=(14,), prune=False)
    elif change == "model":
        params = checkpoint.params | {"final_norm": checkpoint.params["final_norm"] * 2}
        other = dataclasses.replace(checkpoint, params=params)
    else:
        environment = tree_choice.environment("float32") | {change: "another"}
        monkeypatch.setattr(tree_choice, "environment", lambda dtype: environment)
    assert not choose(other, settings, folder=tmp_path, **more).is_cached
    assert timer.rows == [1, 10, 30, 60]
    assert choose(other, settings, folder=tmp_path, **more).is_cached
    assert len(timer.asked) == 4


def _with_costs(costs):
    return lambda text: json.dumps(json.loads(text) | {"costs": costs})


DAMAGE = {
    "cut short": lambda text: text[:-9],
    "empty": lambda text: "",
    "not UTF-8": lambda text: b"\xff\xfe",
    "deep": lambda text: "[" * 100_000,
    "a list": lambda text: "[]",
    "no object": lambda text: "3",
    "another format": lambda text: json.dumps(json.loads(text) | {"format": 0}),
    "another's costs": lambda text: text.replace("DecodeConfig(capacity=128", "DecodeConfig(capacity=256"),
    "no keys": lambda text: "{}",
    "a number beyond floats": _with_costs({"1": 10, "10": 10**400}),
    "no costs": _with_costs({}),
    "costs of nothing": _with_costs(None),
    "costs in a list": _with_costs([1, 2]),
    "a cost of no number": _with_costs({"1": 10, "10": "many"}),
    "a cost of null": _with_costs({"1": 10, "10": None}),
    "no time at all": _with_costs({"1": 10, "10": 0}),
    "endless": _with_costs({"1": 10, "10": math.inf}),
    "unlike rows": _with_costs({"1": 10, "11": 90}),
    "rows missing": _with_costs({"1": 10, "10": 11, "30": 12}),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_a_damaged_file_is_measured_again_and_replaced(checkpoint, timer, tmp_path, name):
    choose(checkpoint, SETTINGS, folder=tmp_path)
    (path,) = tmp_path.iterdir()
    whole = path.read_text()
    damaged = DAMAGE[name](whole)
    assert damaged != whole
    path.write_bytes(damaged if isinstance(damaged, bytes) else damaged.encode())
    timer.asked.clear()
    assert not choose(checkpoint, SETTINGS, folder=tmp_path).is_cached
    assert timer.rows == [1, 10, 30, 60]
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_text() == whole


def test_a_folder_that_cannot_be_written_costs_a_line(checkpoint, timer, tmp_path):
    (tmp_path / "file").touch()
    lines = []
    for _ in range(2):
        choice = choose(checkpoint, SETTINGS, folder=tmp_path / "file" / "folder", say=lines.append)
        assert (choice.draft.num_rows, choice.is_cached) == (30, False)
    assert len(lines) == 4
    assert lines[1].startswith("what a call costs is not kept: ")
    assert "\n" not in lines[1]


def test_measures_a_real_model_and_decodes_with_the_choice(checkpoint):
    settings = Settings(max_new_tokens=16, batch_size=2, capacity=64)
    choice = choose(checkpoint, settings)
    assert 1 in choice.costs
    assert 10 in choice.costs
    assert all(0 < cost < 1e4 for cost in choice.costs.values())
    (got,) = generate(checkpoint, [PROMPT], draft=choice.draft, settings=settings)
    (plain,) = generate(checkpoint, [PROMPT], draft=PLAIN, settings=settings)
    assert got.token_ids == plain.token_ids


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
    [(CHEAP, "probe:14"), ({1: 10.0, 10: 20.0}, "ar")],
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
    if draft != "ar":
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
    assert {line["draft"] for line in answers(output)} == {"probe:14@init=last_k,prune=0,ema=0.5"}
    output.unlink()
    assert run(*generate, "--mask-init", "last_k", "--mask-ema", "0.5", "--no-prune", "--tree", "14")[0] == 0
    assert {line["draft"] for line in answers(output)} == {"probe:14@init=last_k,prune=0,ema=0.5"}


@pytest.mark.parametrize(("costs", "draft"), [(CHEAP, "probe:14"), ({1: 10.0, 10: 20.0}, "ar")], ids=["tree", "plain"])
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
    assert drafted.startswith(f"{draft}: tau 1.000") == (draft == "ar")


def test_a_cache_that_cannot_be_written_costs_the_command_a_line(run, command, timer, tmp_path, monkeypatch):
    (tmp_path / "cache").touch()
    generate, output = command
    code, out, err = run(*generate, "--tree", "auto")
    assert (code, out) == (0, "")
    assert err.splitlines()[1].startswith("what a call costs is not kept: ")
    assert err.count("\n") == 2
    monkeypatch.setattr(
        "jax_probe_mtp.commands.demo_model.cache_folder", lambda: (_ for _ in ()).throw(ValueError("no home"))
    )
    code, out, err = run(*generate, "--tree", "auto")
    assert (code, out) == (0, "")
    assert err.splitlines()[0] == "what a call costs is not kept: no home"
    assert {line["draft"] for line in answers(output)} == {"probe:14"}


def test_commands_whose_trees_are_named_refuse_it(run, model, timer, tmp_path):
    (tmp_path / "q.jsonl").write_text('{"question_id": 1, "category": "qa", "turns": ["w5"]}\n')
    for command, options, says in (
        ("bench", ["--runs", "probe:auto"], "14, 15+4 or dynamic60k2, got auto"),
        ("bench", ["--tree", "auto"], "--tree auto"),
        ("align", ["--tree", "auto"], "--tree auto is for generate and verify"),
    ):
        args = ["--model", model, "--questions", tmp_path / "q.jsonl", "--output", tmp_path / "out"]
        code, out, err = run(command, *args, *options)
        assert (code, out, err.count("\n")) == (2, "", 1)
        assert says in err
    assert timer.asked == []
