"""`generate`: text on stdout, files of answers, statistics, seeds, and one line for prompts and files that are bad."""

import dataclasses
import hashlib
import json
import os
import re

import pytest
import reference
from checkpoints import EOS, make_checkpoint, word, words, write_folder
from support.commands import PROMPTS, RAW, TEXT, assert_refused, read_lines, text_of, write, write_prompts

from jax_probe_mtp.generation import exact_check

SEEDS_OF_RUN_7 = {"a": "82d9d62b", "b": "ec2ad6f6", "c": "18ec666c"}  # `printf 7:a | sha256sum`, first 8 digits


def digest_of(asked):
    """What stands for all that a record asks for, given as JSON."""
    return hashlib.blake2b(asked.encode(), digest_size=8, person=b"content").digest()[::-1].hex()


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
            "content": digest_of(json.dumps({"prompt": words(*prompt)}).replace(": ", ":")),
        }
        for name, prompt in PROMPTS.items()
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
    assert {line["draft"] for line in lines} == {"plain"}
    assert all(len(accepted) <= calls for (_, accepted), calls in zip(expected.values(), (2, 23, 23), strict=True))
    assert sum(len(accepted) for _, accepted in expected.values()) < 48


def test_sampling_follows_the_seed(run, model, tiny, tmp_path):
    cuts = ["--temperature", "1", "--top-k", "40", "--top-p", "0.95", "--batch-size", "3"]
    files = ["--model", model, "--input", write_prompts(tmp_path)]
    outputs = {}
    for name, seed in {"first": 7, "again": 7, "other": 8}.items():
        assert run("generate", *files, "--output", tmp_path / name, "--seed", seed, *cuts, *RAW)[0] == 0
        outputs[name] = [line["token_ids"] for line in read_lines(tmp_path / name)]
    for (name, prompt), tokens in zip(PROMPTS.items(), outputs["first"], strict=True):
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
    assert "; 1 rows a call on cpu; host memory " in err


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


def test_a_device_that_is_not_exact_is_refused(run, model, monkeypatch):
    honest = exact_check.check

    def check(programs, checkpoint, source, decode_cfg, rows):  # of the ordinary mode, whose sums have no one order
        return honest(programs, checkpoint, source, dataclasses.replace(decode_cfg, is_exact=False), rows)

    monkeypatch.setattr(exact_check, "check", check)
    code, out, err = run("generate", "--model", model, "--prompt", "w7", "--exact", "--max-new-tokens", "5")
    assert (code, out) == (2, "")
    assert re.fullmatch(r"error: not exact on this device: \d+ of \d+ rows of logits .*; leave --exact out.*\n", err)


SAYS = [4, 4, 60, 4]  # what greedy decoding of "c" begins with: w4 w4 <bot> w4
STOPS = {"<bot>": "w4 w4", "w4<bot>": "w4 "}  # stop text, the text before it


def test_a_stop_text_may_hold_a_special_token(run, model, plain, tmp_path):
    assert plain["c"][:4] == SAYS
    given = ["generate", "--model", model, "--prompt", words(*PROMPTS["c"]), *RAW]
    for stop, text in STOPS.items():
        assert run(*given, "--stop", stop) == (0, text + "\n", "")
        assert run(*given, "--stop", stop, "--stream") == (0, text + "\n", "")
    records = [{"id": stop, "prompt_ids": PROMPTS["c"], "stop": stop} for stop in STOPS]
    files = ["--input", write(tmp_path / "p.jsonl", records), "--output", tmp_path / "a.jsonl"]
    assert run("generate", "--model", model, *files, *RAW)[0] == 0
    got = {line["id"]: (line["token_ids"], line["text"], line["finish_reason"]) for line in read_lines(files[-1])}
    assert got == {stop: (SAYS[:3], text, "stop") for stop, text in STOPS.items()}
