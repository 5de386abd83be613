"""The commands: exit codes, what goes to stdout and stderr, files, and one line for every bad input."""

import json
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import jax
import pytest
import reference
from checkpoints import EOS, SPECIAL, make_checkpoint, word, words, write_folder

from jax_probe_mtp import NgramConfig, ProbeConfig, RecycleConfig
from jax_probe_mtp.commands import generate as generate_cli
from jax_probe_mtp.commands import main as cli
from jax_probe_mtp.generation.decoder import Decoder, Settings, Stats
from jax_probe_mtp.sameness import first_difference

PROMPT = [5, 9, 2, 44, 17, 3, 3]
TEXT = words(*PROMPT)
OTHERS = {"a": [7], "b": PROMPT, "c": [60, 1, 33, 8]}
SEEDS_OF_RUN_7 = {"a": "82d9d62b", "b": "ec2ad6f6", "c": "18ec666c"}  # `printf 7:a | sha256sum`, first 8 digits
RAW = ["--no-chat-template", "--max-new-tokens", "24", "--tree", "7,3"]
TREE = {
    "tree": (7, 3),
    "num_masks": 2,
    "block_complexity": None,
    "prune": True,
    "mask_init": "mean",
    "mask_offset": 5.0,
}


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    return str(write_folder(tmp_path_factory.mktemp("models") / "tiny", make_checkpoint(tiny)))


@pytest.fixture(autouse=True)
def _no_traces_at_home(own_caches):
    """Also where a test calls `main` itself or starts a process."""


@pytest.fixture(scope="module")
def expected(tiny):
    """Greedy tokens of each prompt, and the drafts accepted in each call."""
    outputs = {}
    for name, prompt in OTHERS.items():
        tokens, gap = reference.plain_decode(tiny.reference, prompt, max_new_tokens=24, eos=(EOS,))
        assert gap > 1e-3, "choose another prompt: rounding could decide this one"
        accepted = reference.probe_decode(tiny.reference, prompt, TREE, max_new_tokens=24, eos=(EOS,))[2]
        outputs[name] = tokens, accepted
    return outputs


def text_of(tokens):
    return words(*[token for token in tokens if token not in SPECIAL])


def write_prompts(folder, prompts=OTHERS):
    path = folder / "prompts.jsonl"
    lines = [json.dumps({"id": name, "prompt": words(*prompt)}) for name, prompt in prompts.items()]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read_lines(path):
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_generate_prints_the_text_and_nothing_else(run, model, expected):
    code, out, err = run("generate", "--model", model, "--prompt", TEXT, *RAW)
    assert (code, out, err) == (0, text_of(expected["b"][0]) + "\n", "")


def test_stats_go_to_stderr(run, model, expected):
    code, out, err = run("generate", "--model", model, "--prompt", TEXT, "--stats", *RAW)
    calls = len(expected["b"][1])
    assert (code, out) == (0, text_of(expected["b"][0]) + "\n")
    assert err.startswith(f"tau {23 / calls:.3f}, {calls} calls for 23 tokens, ")
    assert err.count("\n") == 1


def test_generate_reads_and_writes_files(run, model, expected, tmp_path):
    output = tmp_path / "answers.jsonl"
    args = ["--model", model, "--input", write_prompts(tmp_path), "--output", output, "--batch-size", "3", "--ordered"]
    code, out, err = run("generate", *args, *RAW)
    assert (code, out, err) == (0, "", "")  # no progress bar where stderr is no terminal
    assert read_lines(output) == [
        {
            "id": name,
            "prompt_ids": prompt,
            "token_ids": expected[name][0],
            "text": text_of(expected[name][0]),
            "finish_reason": "stop" if expected[name][0][-1] == EOS else "length",
            "draft": "probe:7+3",
            "calls": len(expected[name][1]),
            "committed": len(expected[name][0]) - 1,
            "accepted_by_depth": [sum(count >= depth for count in expected[name][1]) for depth in (1, 2)],
        }
        for name, prompt in OTHERS.items()
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "answers.jsonl",
        "answers.jsonl.run.json",
        "prompts.jsonl",
    ]


def test_ar_gives_the_same_tokens_in_more_calls(run, model, expected, tmp_path):
    output = tmp_path / "answers.jsonl"
    args = ["--model", model, "--input", write_prompts(tmp_path), "--output", output, "--batch-size", "3", "--ordered"]
    code, _, _ = run("generate", *args, "--no-chat-template", "--max-new-tokens", "24", "--method", "ar")
    assert code == 0
    lines = read_lines(output)
    assert [line["token_ids"] for line in lines] == [expected[name][0] for name in "abc"]
    assert [line["calls"] for line in lines] == [2, 23, 23]
    assert {line["draft"] for line in lines} == {"ar"}
    assert all(len(accepted) <= calls for (_, accepted), calls in zip(expected.values(), (2, 23, 23), strict=True))
    assert sum(len(accepted) for _, accepted in expected.values()) < 48


def test_sampling_follows_the_seed(run, model, tiny, tmp_path):
    cuts = ["--temperature", "1", "--top-k", "40", "--top-p", "0.95", "--batch-size", "3"]
    files = ["--model", model, "--input", write_prompts(tmp_path)]
    outputs = {}
    for name, seed in {"first": 7, "again": 7, "other": 8}.items():
        assert run("generate", *files, "--output", tmp_path / name, "--seed", seed, *cuts, *RAW)[0] == 0
        outputs[name] = [line["token_ids"] for line in read_lines(tmp_path / name)]
    for (name, prompt), tokens in zip(OTHERS.items(), outputs["first"], strict=True):
        seed = int.from_bytes(bytes.fromhex(SEEDS_OF_RUN_7[name]), "little")
        draw = {"temperature": 1.0, "top_k": 40, "top_p": 0.95, "seed": seed}
        plain, gap = reference.plain_decode(tiny.reference, prompt, max_new_tokens=24, eos=(EOS,), **draw)
        assert gap > 1e-3
        assert tokens == plain
    assert outputs["again"] == outputs["first"]
    assert outputs["other"] != outputs["first"]


def test_the_chat_template_is_used_unless_told(run, model, tiny):
    args = ["generate", "--model", model, "--prompt", word(7), "--max-new-tokens", "24", "--tree", "7,3"]
    for prompt, options in (([0, 59, 7, 60], []), ([7], ["--no-chat-template"])):
        tokens, _ = reference.plain_decode(tiny.reference, prompt, max_new_tokens=24, eos=(EOS,))
        assert run(*args, *options) == (0, text_of(tokens) + "\n", "")


def test_verify_prints_each_record_and_the_counts(run, model, expected, tmp_path):
    args = ["--model", model, "--input", write_prompts(tmp_path), "--batch-size", "3"]
    code, out, err = run("verify", *args, *RAW)
    assert code == 0
    assert out.splitlines() == [
        *[
            f"{name}: same {len(tokens)} tokens; {len(accepted)} calls, plain decoding {len(tokens) - 1}"
            for name, (tokens, accepted) in expected.items()
        ],
        "3 same, 0 tie, 0 diverged",
    ]
    plain, probe = err.splitlines()
    assert plain.startswith("plain: tau 1.000, 48 calls for 48 tokens, ")
    assert probe.startswith(f"probe: tau {48 / sum(len(accepted) for _, accepted in expected.values()):.3f}, ")


@pytest.mark.parametrize("method", ["ngram", "recycle"])
def test_other_sources_give_the_same_tokens(run, model, expected, tmp_path, method):
    args = [
        "--model",
        model,
        "--input",
        write_prompts(tmp_path),
        "--batch-size",
        "3",
        "--method",
        method,
        "--tree",
        "12",
    ]
    code, out, err = run("verify", *args, "--no-chat-template", "--max-new-tokens", "24")
    assert code == 0
    assert out.endswith("3 same, 0 tie, 0 diverged\n")
    assert err.splitlines()[1].startswith(f"{method}: tau 1.")
    assert not err.splitlines()[1].startswith(f"{method}: tau 1.000")


def test_verify_samples_both_ways_alike(run, model, tmp_path):
    args = ["--model", model, "--input", write_prompts(tmp_path), "--temperature", "1", "--batch-size", "3"]
    code, out, _ = run("verify", *args, *RAW, "--seed", "5")
    assert code == 0
    assert out.endswith("3 same, 0 tie, 0 diverged\n")


@pytest.fixture
def plant(monkeypatch):
    """Puts a wrong token into what the drafted decoder gives for record "b"."""

    def plant(position):
        honest = Decoder.run

        def wrong(self, prompts, settings):
            for generation in honest(self, prompts, settings):
                if self.draft_cfg.num_nodes > 1 and generation.id == "b":
                    generation.token_ids[position] = (generation.token_ids[position] + 1) % 61
                yield generation

        monkeypatch.setattr(Decoder, "run", wrong)

    return plant


@pytest.mark.parametrize("cuts", [[], ["--temperature", "1", "--seed", "7"]], ids=["greedy", "drawn"])
def test_verify_fails_where_tokens_differ(run, model, expected, tmp_path, plant, cuts):
    plant(4)
    args = ["--model", model, "--input", write_prompts(tmp_path), "--batch-size", "3"]
    code, out, _ = run("verify", *args, *RAW, *cuts)
    assert code == 1
    a, b, c, counts = out.splitlines()
    assert "a: same" in a
    assert "c: same" in c
    assert counts == "2 same, 0 tie, 1 diverged"
    if not cuts:
        right = expected["b"][0][4]
        assert b.startswith(f"b: diverged at new token 4: plain {right} (")
        assert f", this {right + 1} (" in b


def test_verify_forgives_a_tie(run, model, tmp_path, plant, monkeypatch):
    plant(4)
    monkeypatch.setattr(first_difference, "FLOAT32_TIE", 1e9)  # everything is a tie
    args = ["--model", model, "--input", write_prompts(tmp_path), "--batch-size", "3"]
    code, out, _ = run("verify", *args, *RAW)
    assert code == 0
    assert "b: tie at new token 4" in out
    assert out.endswith("2 same, 1 tie, 0 diverged\n")


def test_options_reach_the_library(run, tiny, monkeypatch):
    seen = {}

    class Recorder:
        stats = Stats()

        def __init__(self, checkpoint, probe):
            seen["probe"] = probe

        def run(self, prompts, settings):
            seen.update(prompts=prompts, settings=settings)
            return iter(())

    def open_checkpoint(name, *, dtype, revision):
        seen.update(model=name, dtype=dtype, revision=revision)
        checkpoint = make_checkpoint(tiny)
        return SimpleNamespace(config=tiny.cfg, tokenizer=checkpoint.tokenizer, load=lambda mesh: checkpoint)

    monkeypatch.setattr(generate_cli, "Decoder", Recorder)
    monkeypatch.setattr("checkpoints_convert.open_checkpoint", open_checkpoint)
    options = {
        "--model": "org/name",
        "--revision": "main",
        "--dtype": "bfloat16",
        "--tree": "dynamic",
        "--num-masks": 2,
        "--block-complexity": 60,
        "--mask-init": "offset",
        "--mask-offset": 1.5,
        "--mask-ema": 0.25,
        "--max-new-tokens": 9,
        "--temperature": 0.5,
        "--top-k": 3,
        "--top-p": 0.75,
        "--seed": 11,
        "--batch-size": 4,
        "--capacity": 99,
        "--prompt-slots": 12,
    }
    options = [
        "--no-chat-template",
        "--no-prune",
        "--rank-without-noise",
        *[text for option in options.items() for text in option],
    ]
    assert run("generate", "--prompt", TEXT, *options) == (0, "", "")
    assert (seen["model"], seen["revision"], seen["dtype"]) == ("org/name", "main", "bfloat16")
    assert seen["probe"] == ProbeConfig(
        tree="dynamic",
        num_masks=2,
        block_complexity=60,
        mask_init="offset",
        mask_offset=1.5,
        prune=False,
        rank_with_noise=False,
    )
    assert seen["settings"] == Settings(
        max_new_tokens=9,
        temperature=0.5,
        top_k=3,
        top_p=0.75,
        seed=11,
        mask_ema=0.25,
        batch_size=4,
        capacity=99,
        prompt_slots=12,
    )
    assert [prompt.token_ids for prompt in seen["prompts"]] == [PROMPT]
    others = {
        "--method ngram": NgramConfig(),
        "--method ngram --tree 4 --max-ngram 2 --match first": NgramConfig(num_drafts=4, max_ngram=2, match="first"),
        "--method recycle": RecycleConfig(),
        "--method recycle --tree 30 --warm": RecycleConfig(tree=30, is_warm=True),
        "--method recycle --tree static80": RecycleConfig(tree="static80"),
    }
    for options, draft in others.items():
        assert run("generate", "--model", "m", "--prompt", TEXT, *options.split()) == (0, "", "")
        assert seen["probe"] == draft
    run("generate", "--model", "m", "--prompt", TEXT)
    assert seen["probe"] == ProbeConfig(tree=(14,))
    assert seen["settings"] == Settings()
    assert (seen["dtype"], seen["revision"]) == (None, None)


BAD = {
    "an offset that is no number": (None, ["--mask-init", "offset", "--mask-offset", "nan"], "got nan"),
    "an offset beyond float32": (None, ["--mask-init", "offset", "--mask-offset", "1e39"], "at most 1e+06"),
    "plain decoding with an init": (None, ["--method", "ar", "--mask-init", "last_k"], "options of masks and trees"),
    "plain decoding with a budget": (
        None,
        ["--method", "ar", "--block-complexity", "30"],
        "options of masks and trees",
    ),
    "a budget without a tree": (None, ["--block-complexity", "60"], "--block-complexity 60 needs a --tree"),
    "no such model": ("no/such/folder", [], "no/such/folder does not exist"),
    "model is empty": ("", [], ""),
    "masks without a tree": (None, ["--num-masks", "2"], "--num-masks 2 needs a --tree"),
    "tree over its budget": (
        None,
        ["--tree", "15,4", "--block-complexity", "30"],
        "60 rows, but block_complexity is 30",
    ),
    "tree of letters": (None, ["--tree", "x"], "got 'x'"),
    "tree of nothing": (None, ["--tree", ""], "got ''"),
    "tree with a hole": (None, ["--tree", "3,,2"], "got '3,,2'"),
    "tree of another length": (None, ["--tree", "3", "--num-masks", "2"], "2 masks need a tree of 2 numbers"),
    "tree too deep": (None, ["--tree", "1,1,1,1"], "at most 3 depths"),
    "tree without candidates": (None, ["--tree", "0"], "whole number of candidates, at least 1"),
    "tree wider than the vocabulary": (None, ["--tree", "61"], "62 candidates"),
    "dynamic without a budget": (None, ["--tree", "dynamic", "--num-masks", "2"], "num_masks and block_complexity"),
    "dynamic without masks": (
        None,
        ["--tree", "dynamic", "--block-complexity", "60"],
        "num_masks and block_complexity",
    ),
    "ar with a tree": (None, ["--method", "ar", "--tree", "14"], "--method ar"),
    "a tree of depths for a chain": (
        None,
        ["--method", "ngram", "--tree", "4,4"],
        "whole number for this method, got '4,4'",
    ),
    "a chain of nothing": (
        None,
        ["--method", "ngram", "--tree", "0"],
        "num_drafts must be a whole number from 1 to 64",
    ),
    "a table of one node": (None, ["--method", "recycle", "--tree", "1"], "tree must be a whole number from 2 to 256"),
    "masks for a table": (
        None,
        ["--method", "recycle", "--num-masks", "1"],
        "--num-masks is for --method probe, not recycle",
    ),
    "an n-gram for masks": (None, ["--max-ngram", "3"], "--max-ngram is for --method ngram, not probe"),
    "a warm n-gram": (None, ["--method", "ngram", "--warm"], "--warm is for --method recycle, not ngram"),
    "lambda without masks": (None, ["--method", "ngram", "--mask-ema", "0.5"], "--mask-ema is for --method probe"),
    "lambda of plain decoding": (None, ["--method", "ar", "--mask-ema", "0.5"], "leave the options of masks"),
    "fewer slots than the prompt": (
        None,
        ["--prompt-slots", "6"],
        "prompt_slots 6 must hold the longest prompt, 7 tokens",
    ),
    "more slots than the cache": (
        None,
        ["--prompt-slots", "66", "--capacity", "64", "--max-new-tokens", "9"],
        "at most 65",
    ),
    "an automatic chain": (
        None,
        ["--method", "ngram", "--tree", "auto"],
        "--tree auto is for --method probe, not ngram",
    ),
    "an automatic table": (None, ["--method", "recycle", "--tree", "auto"], "is for --method probe, not recycle"),
    "automatic plain decoding": (None, ["--method", "ar", "--tree", "auto"], "is for --method probe, not ar"),
    "an automatic tree with masks": (None, ["--tree", "auto", "--num-masks", "0"], "leave --num-masks 0 out"),
    "an automatic tree within rows": (
        None,
        ["--tree", "auto", "--block-complexity", "30"],
        "leave --block-complexity 30 out",
    ),
    "an automatic tree for no batch": (
        None,
        ["--tree", "auto", "--batch-size", "0"],
        "batch_size must be at least 1, got 0",
    ),
    "an automatic tree over the context": (
        None,
        ["--tree", "auto", "--max-new-tokens", "506"],
        "7 tokens, with 506 new ones more than the model's context of 512",
    ),
    "an offset without its init": (None, ["--mask-offset", "10"], "--mask-offset is of --mask-init offset"),
    "negative temperature": (None, ["--temperature", "-1"], "got -1.0"),
    "temperature nan": (None, ["--temperature", "nan"], "got nan"),
    "top-p 0": (None, ["--top-p", "0"], "got 0.0"),
    "top-k negative": (None, ["--top-k", "-2"], "got -2"),
    "mask-ema over 1": (None, ["--mask-ema", "2"], "got 2.0"),
    "no new tokens": (None, ["--max-new-tokens", "0"], "got 0"),
    "over the context": (
        None,
        ["--max-new-tokens", "506"],
        "7 tokens, with 506 new ones more than the model's context of 512",
    ),
    "over the capacity": (
        None,
        ["--capacity", "29", "--max-new-tokens", "24"],
        "holds 29 tokens, but prompt 7 + new 24 need 30",
    ),
    "no batch": (None, ["--batch-size", "0"], "got 0"),
    "capacity beyond int32": (None, ["--capacity", str(10**11)], "100000000000"),
    "unknown option": (None, ["--trees", "3"], "--trees"),
    "option cut short": (None, ["--temp", "x"], "--temp"),
    "no number": (None, ["--max-new-tokens", "many"], "'many'"),
    "unknown method": (None, ["--method", "magic"], "'magic'"),
    "unknown mask init": (None, ["--mask-init", "zero"], "'zero'"),
    "output without input": (None, ["--output", "answers.jsonl"], "--input and --output go together"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_on_stderr(run, model, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, options, says = BAD[name]
    folder = model if folder is None else folder
    assert_refused(run("generate", "--model", folder, "--prompt", TEXT, "--no-chat-template", *options), says)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("prompt", "says"),
    [
        ("", "prompt 0 is empty"),
        (words(*[5] * 600), "600 tokens, with 128 new ones more than the model's context of 512"),
    ],
    ids=["empty", "over the context"],
)
def test_bad_prompts(run, model, prompt, says):
    assert_refused(run("generate", "--model", model, "--prompt", prompt, "--no-chat-template"), says)


@pytest.mark.parametrize(
    ("args", "says"),
    [
        ([], "COMMAND"),
        (["translate"], "'translate'"),
        (["generate", "--prompt", "x"], "--model"),
        (["generate", "--model", "m"], "--prompt"),
        (["generate", "--model", "m", "--prompt", "x", "--input", "f.jsonl"], "not allowed with"),
        (["verify", "--model", "m", "--prompt", "x", "--num-masks", "2"], "--num-masks 2 needs a --tree"),
        (["verify", "--model", "m", "--prompt", "x", "--output", "f.jsonl"], "--output"),
        (
            ["verify", "--model", "m", "--prompt", "x", "--num-masks", "0"],
            "--num-masks 0 is plain decoding, with which",
        ),
        (
            ["generate", "--model", "m", "--prompt", "x", "--num-masks", "0", "--mask-ema", "0"],
            "--num-masks 0 is plain",
        ),
        (["generate", "--model", "m", "--prompt", "x", "--num-masks", "0", "--no-prune"], "--num-masks 0 is plain"),
        (["generate", "--model", "m", "--prompt", "x", "--logprobs"], "--logprobs is for --input"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_bad_commands(run, args, says):
    assert_refused(run(*args), says)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"prompt": "w5"}\n{"prompt": \n', "line 2 is not JSON"),
        ('{"id": 1, "prompt": "w5"}\n{"id": 1, "prompt": "w6"}\n', "line 2 has the id 1 of line 1"),
        ("", "holds no records"),
        pytest.param(
            "[" * 100_000,
            "line 1",
        ),
        pytest.param(
            '{"prompt": "w5", "n": ' + "9" * 5000 + "}",
            "line 1",
        ),
        pytest.param(
            '{"prompt": "\\ud800"}\n',
            "line 1",
        ),
    ],
    ids=[
        "cut short",
        "same id",
        "empty file",
        "deep",
        "long number",
        "half a character",
    ],
)
def test_bad_files(run, model, tmp_path, content, says):
    (tmp_path / "prompts.jsonl").write_text(content)
    args = ["--model", model, "--input", tmp_path / "prompts.jsonl", "--output", tmp_path / "out.jsonl"]
    assert_refused(run("generate", *args, "--no-chat-template"), says)
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]


def test_a_records_own_seed_is_its_noise(run, model, tmp_path):
    prompt = json.dumps(TEXT)
    (tmp_path / "p.jsonl").write_text(
        f'{{"id": 1, "prompt": {prompt}, "seed": 5}}\n{{"id": 2, "prompt": {prompt}, "seed": 5}}\n'
        f'{{"id": 3, "prompt": {prompt}, "seed": 6}}\n'
    )
    args = ["--model", model, "--input", tmp_path / "p.jsonl", "--output", tmp_path / "o.jsonl", "--temperature", "1"]
    assert run("generate", *args, *RAW)[0] == 0
    first, second, third = ([*map(json.loads, (tmp_path / "o.jsonl").read_text().splitlines())][i] for i in range(3))
    assert first["token_ids"] == second["token_ids"] != third["token_ids"]


def test_no_masks_are_plain_decoding(run, model):
    code, _, err = run(
        "generate", "--model", model, "--prompt", TEXT, "--no-chat-template", "--num-masks", "0", "--stats"
    )
    assert code == 0
    assert err.startswith("tau 1.000, ")
    assert "; 1 rows a call; host memory " in err


@pytest.mark.parametrize("template", ["{% if %}", "{{ raise_exception('no system turn') }}", "{{ messages[9].x.y }}"])
def test_a_chat_template_that_fails(run, tiny, tmp_path, template):
    folder = write_folder(tmp_path / "model", make_checkpoint(tiny, template=template))
    assert_refused(run("generate", "--model", folder, "--prompt", TEXT), "the chat template failed")


def test_files_that_are_not_there(run, model, tmp_path):
    prompts = write_prompts(tmp_path)
    missing = ["--input", tmp_path / "none.jsonl", "--output", tmp_path / "out.jsonl"]
    assert_refused(run("generate", "--model", model, *missing), "none.jsonl")
    no_folder = ["--input", prompts, "--output", tmp_path / "none" / "out.jsonl"]
    assert_refused(run("generate", "--model", model, *no_folder), str(tmp_path / "none" / "out.jsonl"))
    assert_refused(run("generate", "--model", model, "--input", prompts), "--input and --output go together")
    assert list(tmp_path.iterdir()) == [prompts]


@pytest.mark.parametrize("taken", ["prompts.jsonl", "out.jsonl", "out.jsonl.run.json", "none/s.json", "pipe"])
def test_statistics_are_a_file_of_their_own(run, model, tmp_path, taken):
    prompts = write_prompts(tmp_path)
    before = prompts.read_bytes()
    os.mkfifo(tmp_path / "pipe")
    args = ["--model", model, "--input", prompts, "--output", tmp_path / "out.jsonl", "--stats-json", tmp_path / taken]
    assert_refused(run("generate", *args, *RAW), f"--stats-json {tmp_path / taken} is ")
    assert prompts.read_bytes() == before
    assert {path.name for path in tmp_path.iterdir()} == {"prompts.jsonl", "pipe"}


def assert_refused(result, says):
    code, out, err = result
    assert code == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.endswith("\n")
    assert err.count("\n") == 1
    assert says in err


def test_compiled_programs_are_kept_in_the_users_cache(run, monkeypatch, tmp_path):
    bad = ["generate", "--model", "no/such/folder", "--prompt", "x"]
    before = jax.config.jax_compilation_cache_dir
    run(*bad)
    assert jax.config.jax_compilation_cache_dir == before  # the user has set a folder: it stays
    monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
    run(*bad)
    assert jax.config.jax_compilation_cache_dir == str(tmp_path / "cache" / "jax_probe_mtp" / "compiled")


def test_demo_fetches_once_and_shows_the_proof(run, tiny, tmp_path, monkeypatch):
    fetched = []

    def convert(source, destination):
        fetched.append(source)
        write_folder(Path(destination), make_checkpoint(tiny))

    monkeypatch.setattr(cli.demo_model, "fetch", lambda folder: folder / "fetched.gguf")
    monkeypatch.setattr("checkpoints_convert.convert_gguf", convert)
    code, out, err = run("demo")
    assert code == 0
    assert out.endswith("2 same, 0 tie, 0 diverged\n")
    assert all(f"> {prompt}\n" in out for prompt in cli.DEMO_PROMPTS)
    assert "fetching" in err
    assert fetched == [tmp_path / "cache" / "jax_probe_mtp" / "fetched.gguf"]
    code, again, err = run("demo")
    assert (code, again) == (0, out)
    assert "fetching" not in err
    assert len(fetched) == 1


def test_as_a_program(model, expected):
    def run(*options):
        command = [sys.executable, "-m", "jax_probe_mtp", "generate", "--model", model, "--prompt", TEXT, *options]
        done = subprocess.run(command, capture_output=True, env=os.environ | {"JAX_PLATFORMS": "cpu"}, check=False)
        return done.returncode, done.stdout.decode("utf-8"), done.stderr.decode("utf-8")

    code, out, err = run("--no-chat-template", "--method", "ar", "--max-new-tokens", "2")
    assert code == 0, err
    assert out == text_of(expected["b"][0][:2]) + "\n"
    assert_refused(run("--tree", "x"), "got 'x'")
