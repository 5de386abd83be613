"""The flags that several commands share: what they stand for, and one line for every value that is bad."""

from types import SimpleNamespace

import pytest
from checkpoints import EOS, make_checkpoint, words
from support.commands import PROMPT, PROMPTS, TEXT, assert_refused, read_lines, write

from jax_probe_mtp.commands import generate
from jax_probe_mtp.decoding.settings import Settings
from jax_probe_mtp.drafting import DynamicProbe, Ngram, Probe, Recycle
from jax_probe_mtp.errors import Parser, positives
from jax_probe_mtp.generation.answers import Stats


def test_options_reach_the_library(run, tiny, monkeypatch):
    seen = {}

    class Recorder:
        stats = Stats()

        def __init__(self, checkpoint, source, groups, shared):
            seen["source"] = source
            assert shared is None

        def run(self, prompts, settings):
            seen.update(prompts=prompts, settings=settings)
            return iter(())

    def open_checkpoint(name, *, dtype, weights, revision, eos_token_ids):
        seen.update(model=name, dtype=dtype, weights=weights, revision=revision, eos_token_ids=eos_token_ids)
        checkpoint = make_checkpoint(tiny)
        more = {"tokenizer": checkpoint.tokenizer, "generation_defaults": {}}
        return SimpleNamespace(config=tiny.cfg, load=lambda mesh: checkpoint, **more)

    monkeypatch.setattr(generate, "Decoder", Recorder)
    monkeypatch.setattr("checkpoints_convert.open_checkpoint", open_checkpoint)
    options = {
        "--model": "org/name",
        "--revision": "main",
        "--dtype": "bfloat16",
        "--weights": "int8",
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
        *["--eos-token-id", 5, "--eos-token-id", 9],
    ]
    assert run("generate", "--prompt", TEXT, *options) == (0, "", "")
    assert (seen["model"], seen["revision"], seen["dtype"], seen["weights"]) == ("org/name", "main", "bfloat16", "int8")
    assert seen["eos_token_ids"] == [5, 9]
    assert seen["source"] == DynamicProbe(
        rows=60,
        num_masks=2,
        mask_init="offset",
        mask_offset=1.5,
        mask_ema=0.25,
        prune=False,
        rank_with_noise=False,
    )
    assert seen["settings"] == Settings(
        max_new_tokens=9,
        temperature=0.5,
        top_k=3,
        top_p=0.75,
        seed=11,
        batch_size=4,
        capacity=99,
        prompt_slots=12,
    )
    assert [prompt.token_ids for prompt in seen["prompts"]] == [PROMPT]
    others = {
        "--method ngram": Ngram(),
        "--method ngram --tree 4 --max-ngram 2 --match first": Ngram(num_drafts=4, max_ngram=2, match="first"),
        "--method recycle": Recycle(),
        "--method recycle --tree 30 --warm": Recycle(tree=30, warm=True),
        "--method recycle --tree static80": Recycle(tree="static80"),
    }
    for options, draft in others.items():
        assert run("generate", "--model", "m", "--prompt", TEXT, *options.split()) == (0, "", "")
        assert seen["source"] == draft
    run("generate", "--model", "m", "--prompt", TEXT)
    assert seen["source"] == Probe(widths=(14,))
    assert seen["settings"] == Settings()
    assert (seen["dtype"], seen["weights"], seen["revision"], seen["eos_token_ids"]) == (None, None, None, None)


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
        "60 rows, but --block-complexity is 30",
    ),
    "tree of letters": (None, ["--tree", "x"], "got 'x'"),
    "tree of nothing": (None, ["--tree", ""], "got ''"),
    "tree with a hole": (None, ["--tree", "3,,2"], "got '3,,2'"),
    "tree of another length": (None, ["--tree", "3", "--num-masks", "2"], "2 masks need a tree of 2 numbers"),
    "tree too deep": (None, ["--tree", "1,1,1,1"], "a tree has 1 to 3 depths"),
    "tree without candidates": (None, ["--tree", "0"], "whole number of candidates, at least 1"),
    "tree wider than the vocabulary": (None, ["--tree", "61"], "62 candidates"),
    "dynamic without a budget": (
        None,
        ["--tree", "dynamic", "--num-masks", "2"],
        "needs --num-masks and --block-complexity",
    ),
    "dynamic without masks": (
        None,
        ["--tree", "dynamic", "--block-complexity", "60"],
        "needs --num-masks and --block-complexity",
    ),
    "ar with a tree": (None, ["--method", "ar", "--tree", "14"], "--method ar"),
    "a tree of depths for a chain": (
        None,
        ["--method", "ngram", "--tree", "4,4"],
        "draft 'ngram:4,4' cannot be read",
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
    "a warm n-gram": (
        None,
        ["--method", "ngram", "--warm"],
        "--warm is for --method recycle or merged or auto, not ngram",
    ),
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
    "an automatic tree, as it was": (None, ["--tree", "auto"], "--tree auto is --draft auto now"),
    "an automatic chain": (None, ["--method", "ngram", "--tree", "auto"], "--tree auto is --draft auto now"),
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
    "unknown mask init": (None, ["--mask-init", "ones"], "'ones'"),
    "output without input": (None, ["--output", "answers.jsonl"], "--input and --output go together"),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_is_one_line_on_stderr(run, model, name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder, options, says = BAD[name]
    folder = model if folder is None else folder
    assert_refused(run("generate", "--model", folder, "--prompt", TEXT, "--no-chat-template", *options), says)
    assert list(tmp_path.iterdir()) == []


def test_numbers_of_at_least_one(capsys):
    parser = Parser(prog="p")
    parser.add_argument("--sizes", type=positives)
    assert parser.parse_args(["--sizes", "1,8"]).sizes == [1, 8]
    for text, says in (("0", "must be at least 1, got 0"), ("3,x", "invalid positives value: '3,x'")):
        with pytest.raises(SystemExit, match="2"):
            parser.parse_args(["--sizes", text])
        assert capsys.readouterr().err == f"error: argument --sizes: {says} (see p --help)\n"


OF_FILES = {  # those that take no addresses
    "generate": ["--stats-json", "--masks"],
    "verify": ["--masks", "--json", "--markdown"],
    "bench": ["--questions", "--output", "--masks"],
    "bench report": ["--output"],
    "align": ["--output"],
    "tune-masks": ["--input", "--output"],
}


@pytest.mark.parametrize(("command", "flag"), [(name, flag) for name, flags in OF_FILES.items() for flag in flags])
def test_every_other_flag_of_a_file_refuses_addresses(run, command, flag):
    assert_refused(run(*command.split(), flag, "gs://b/f"), f"argument {flag}: gs://b/f is an address")


FILES = {  # command -> the flag of its file, and a line of it
    "generate": ("--input", {"prompt": "w5"}),
    "verify": ("--input", {"prompt": "w5"}),
    "verify outputs": ("--outputs", {"prompt": "w5", "token_ids": [5]}),
    "bench": ("--questions", {"question_id": 1, "category": "x", "turns": ["w5"]}),
    "align": ("--questions", {"question_id": 1, "category": "x", "turns": ["w5"]}),
}


@pytest.mark.parametrize("command", FILES)
def test_the_ids_that_end_a_text_are_checked_in_every_command(run, model, tmp_path, command):
    flag, line = FILES[command]
    args = [command.split()[0], "--model", model, flag, write(tmp_path / "f.jsonl", [line]), "--eos-token-id", "61"]
    args += [] if command.startswith("verify") else ["--output", tmp_path / "out"]
    assert_refused(run(*args), "--eos-token-id (eos_token_ids=[...] in Python) 61 is no id below 61.")


def test_the_ids_that_end_a_text_do_so_in_place_of_the_models_own(run, model, plain, tmp_path):
    """Those of "b" begin with 20, 36; those of "a" end with the model's own end of text."""
    assert (plain["b"][:2], plain["a"][-1]) == ([20, 36], EOS)
    prompts = [{"id": name, "prompt_ids": PROMPTS[name]} for name in "ab"]
    files = ["--input", write(tmp_path / "p.jsonl", prompts), "--output", tmp_path / "a.jsonl", "--ordered"]
    ends = ["--eos-token-id", "36", "--eos-token-id", "59", "--max-new-tokens", "6"]
    assert run("generate", "--model", model, *files, *ends)[0] == 0
    a, b = read_lines(files[3])
    assert (a["token_ids"][:3], len(a["token_ids"]), a["finish_reason"]) == (plain["a"], 6, "length")
    assert (b["token_ids"], b["text"], b["finish_reason"]) == ([20, 36], words(20, 36), "stop")
    code, out, _ = run("verify", "--model", model, "--outputs", files[3], *ends)
    assert (code, out.splitlines()[:2]) == (0, ["a: same 6 tokens", "b: same 2 tokens"])
