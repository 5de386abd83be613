"""The command that runs a job: which options go together, and what it tells."""

import json
import re
from pathlib import Path

import numpy as np
import pytest
from checkpoints import words
from support.files.job_runs import ERRORS, RECORDS, assert_refused, files, read, write

from jax_probe_mtp.commands import generate as generate_cli
from jax_probe_mtp.commands import options


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (b'{"id": 1, "prompt": "x"}\n{"id": 2, "prompt": 7}\n', "line 2: prompt must be a text, got 7"),
        (b'{"id": 1, "prompt": "x"}\nnone\n', "line 2 is not JSON"),
        (
            b'{"id": 1, "prompt": "x", "temperature": -1}\n',
            "line 1: temperature must be a number of at least 0, got -1",
        ),
        (b'{"id": 1, "prompt": "x"}\n{"id": "1", "prompt": "y"}\n', "line 2 has the id '1' of line 1; ids must differ"),
        (b'{"id": 1, "prompt": "\xff"}\n', "line 1 is not UTF-8 (byte 21 of the file)"),
        (b"\n", "holds no records"),
    ],
)
def test_bad_prompts_are_refused_before_anything_is_opened(generate, tmp_path, monkeypatch, content, says):
    monkeypatch.setattr(options, "open_model", lambda *_: pytest.fail("the model was opened"))
    command = files(tmp_path)
    (tmp_path / "prompts.jsonl").write_bytes(content)
    assert_refused(generate(*command), tmp_path / "prompts.jsonl", says)
    assert [path.name for path in tmp_path.iterdir()] == ["prompts.jsonl"]


@pytest.mark.parametrize(
    ("flags", "says"),
    [
        (["--prompt", "w7", "--ordered"], "--ordered is for --input; leave it out"),
        (["--prompt", "w7", "--distributed"], "--distributed is for --input; leave it out"),
        (["--prompt", "w7", "--logprobs", "0"], "--logprobs is for --input; leave it out"),
        (["--prompt", "w7", "--prompt-logprobs"], "--prompt-logprobs is for --input; leave it out"),
        (
            ["--input", "i", "--output", "o", "--logprobs", "-1"],
            "--logprobs: must be a whole number of at least 0, got -1",
        ),
        (["--prompt", "w7", "--output", "o"], "--input and --output go together"),
        (["--input", "i"], "--input and --output go together"),
        (["--input", "i", "--output", "o", "--stream"], "--stream is for --prompt; leave it out"),
        (["--input", "i", "--output", "o", "--coordinator", "h:1"], "are of --distributed; give it too"),
        (["--input", "i", "--output", "o", "--num-processes", "2"], "are of --distributed; give it too"),
        (["--prompt", "w7", "--process-id", "0"], "are of --distributed; give it too"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_options_that_do_not_go_together(generate, tmp_path, monkeypatch, flags, says):
    monkeypatch.chdir(tmp_path)
    write(tmp_path, RECORDS, "i")
    monkeypatch.setattr(options, "open_model", lambda *_: pytest.fail("the model was opened"))
    assert_refused(generate(*flags), says)
    assert [path.name for path in tmp_path.iterdir()] == ["i"]


def test_logprobs_and_stats(generate, tiny, tmp_path):
    command = [*files(tmp_path, [RECORDS[0], *ERRORS[3:5]]), "--batch-size", "8", "--logprobs", "4", "--ordered"]
    command += ["--prompt-logprobs"]
    command += ["--calls-per-chunk", "5"]  # so that a row ends in the middle of a chunk, and waits
    code, _, err = generate(*command, "--stats", "--stats-json", tmp_path / "s.json", "--log-level", "error")
    assert code == 3
    first, second, refused = map(json.loads, read(tmp_path / "answers.jsonl"))
    for answer in (first, second):
        ids = [*answer["prompt_ids"], *answer["token_ids"]]
        logits = tiny.reference.logits(tiny.reference.embed(ids))[:-1]
        expected = logits - np.log(np.exp(logits).sum(1, keepdims=True))
        assert answer["prompt_logprobs"][0] is answer["prompt_top_logprobs"][0] is None
        of_tokens = [*answer["prompt_logprobs"][1:], *answer["logprobs"]]
        np.testing.assert_allclose(of_tokens, expected[range(len(logits)), ids[1:]], atol=1e-4)
        best, of_places = np.argsort(-expected, axis=1, kind="stable")[:, :4], answer["prompt_top_logprobs"][1:]
        of_places += answer["top_logprobs"]
        assert [[token for token, _ in place] for place in of_places] == best.tolist()
        top = [[logprob for _, logprob in place] for place in of_places]
        np.testing.assert_allclose(top, np.take_along_axis(expected, best, axis=1), atol=1e-4)
    assert "logprobs" not in refused
    assert not {"top_logprobs", "prompt_logprobs", "prompt_top_logprobs"} & refused.keys()

    stats = json.loads((tmp_path / "s.json").read_text())
    calls, tokens = first["calls"] + second["calls"], len(first["token_ids"]) + len(second["token_ids"])
    assert (stats["records"], stats["errors"]) == (3, 1)
    assert (stats["batch_size"], stats["capacity"]) == (3, 128)  # no more rows than records; 7 + 60 do not fit 64
    assert (stats["calls"], stats["committed"], stats["new_tokens"]) == (calls, tokens - 2, tokens)
    assert stats["tau"] == pytest.approx((tokens - 2) / calls)
    # Of 3 rows one decodes a call for each of the 60 tokens' calls and the prefill's, one for the 3 tokens', one nothing.
    assert (stats["row_calls"], stats["busy_row_calls"]) == (3 * (first["calls"] + 1), calls + 2)
    assert stats["busy_share"] == pytest.approx((calls + 2) / (3 * (first["calls"] + 1)))
    assert 0 < stats["host_seconds"] < stats["seconds"]
    assert stats["host_share"] == pytest.approx(stats["host_seconds"] / stats["seconds"])
    assert stats["tokens_per_second"] == pytest.approx(tokens / stats["seconds"])
    assert 5 * 10**7 < stats["peak_host_bytes"] < 10**11
    assert (stats["rows_per_call"], stats["mesh"]) == (33, None)
    page = (Path(__file__).parents[2] / "docs" / "batch.md").read_text(encoding="utf-8")
    rows = page.partition("### Statistics")[2].partition("## ")[0].splitlines()
    named = re.findall(r"`(\w+)`", " ".join(row.split("|")[1] for row in rows if row.startswith("| `")))
    assert sorted(named) == sorted(stats)
    assert stats["run"] == json.loads((tmp_path / "answers.jsonl.run.json").read_text())
    own = {"draft": "probe:7+3", "logprobs": True, "top_logprobs": 4, "prompt_logprobs": True, "stop": []}
    assert stats["run"]["settings"] | own == stats["run"]["settings"]
    assert err.startswith(f"tau {(tokens - 2) / calls:.3f}, {calls} calls for {tokens - 2} tokens, ")
    assert "; 33 rows a call" in err
    assert err.count("\n") == 1


def test_a_stream_is_the_answer_in_pieces(generate, monkeypatch):
    flags = ["--prompt", words(5, 9, 2), "--stats"]
    expected = generate(*flags)
    end = expected[1].split()[-1]
    flags += ["--stop", f"{end} no such"]  # the end of the answer may become a stop text, and is held back
    pieces = []

    def note(*args, **more):
        if more.get("file") is None:
            pieces.append("".join(args))
        print(*args, **more)

    monkeypatch.setattr(generate_cli, "print", note, raising=False)
    code, out, err = generate(*flags, "--stream")
    assert (code, out) == (0, expected[1])
    assert err.split(" tokens/s")[0].rsplit(", ", 1)[0] == expected[2].split(" tokens/s")[0].rsplit(", ", 1)[0]
    assert len([piece for piece in pieces if piece]) >= 5
    assert "".join(pieces) + "\n" == out


def test_the_log_level_says_what_is_told(generate, whole, leave, tmp_path):
    records = [record | {"category": "x", "turns": []} for record in RECORDS]
    leave(whole[:2])
    code, _, err = generate(*files(tmp_path, records))
    assert code == 0
    assert err.splitlines() == [
        f"{tmp_path / 'prompts.jsonl'}: not read: category, turns",
        f"{tmp_path / 'answers.jsonl'} holds 2 of 10 records: going on",
        f"10 of 10 records in {tmp_path / 'answers.jsonl'}",
    ]
    leave(whole[:2])
    assert generate(*files(tmp_path, records), "--log-level", "warning") == (0, "", "")
    leave(whole[:2])
    debug = generate(*files(tmp_path, records), "--log-level", "debug")[2].splitlines()
    assert len(debug) == 4
    assert re.fullmatch(r"weights .* \+ 3 rows of .* a device; capacity 128", debug[1])


def test_calls_of_a_chunk_are_a_number_that_the_device_can_count(generate, tmp_path):
    (tmp_path / "p.jsonl").write_text(json.dumps(RECORDS[1]) + "\n")
    files = ["--input", tmp_path / "p.jsonl", "--output", tmp_path / "o.jsonl"]
    assert_refused(generate(*files, "--calls-per-chunk", 2**31), "calls_per_chunk must be at most 2147483647")
    assert_refused(generate(*files, "--logprobs", 101), "(--logprobs K) must be a whole number from 0 to ")
    assert not (tmp_path / "o.jsonl").exists()
