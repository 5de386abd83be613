"""Runs that were cut off: they go on, and are refused where they are another run's."""

import json
import resource

import pytest
from checkpoints import make_checkpoint, write_folder
from conftest import BASE, make_tiny
from support.files.job_runs import IDS, RECORDS, SIZES, assert_refused, files, ids_of, read, write

from jax_probe_mtp.jobs import made_by


@pytest.mark.parametrize(
    ("kept", "torn"), [(0, ""), (0, '{"id": "lo'), (1, ""), (4, '{"id": "3", "prompt_ids": [60, 1'), (9, "\0\0\0")]
)
def test_a_run_that_was_cut_off_goes_on(generate, leave, whole, tmp_path, kept, torn):
    leave(whole[:kept], torn)
    code, out, err = generate(*files(tmp_path))
    assert (code, out) == (0, "")
    lines = read(tmp_path / "answers.jsonl")
    assert lines[:kept] == whole[:kept]
    assert sorted(lines) == sorted(whole)
    says = [f"dropped {len(torn)} bytes after record {kept}"] if torn else []
    says += [f"holds {kept} of 10 records: going on"] if kept else []
    says += [f"10 of 10 records in {tmp_path / 'answers.jsonl'}"]
    assert len(err.splitlines()) == len(says)
    assert all(part in line for part, line in zip(says, err.splitlines(), strict=True))


def test_a_run_that_is_complete_changes_nothing_and_takes_new_records(generate, whole, tmp_path):
    command, output = files(tmp_path), tmp_path / "answers.jsonl"
    assert generate(*command)[0] == 0
    assert read(output) == whole
    before = output.stat().st_mtime_ns
    assert generate(*command, "--stats-json", tmp_path / "stats.json")[:2] == (0, "")
    assert (read(output), output.stat().st_mtime_ns) == (whole, before)
    stats = json.loads((tmp_path / "stats.json").read_text())
    assert (stats["records"], stats["calls"], stats["row_calls"], stats["busy_share"]) == (0, 0, 0, None)
    write(tmp_path, [{"id": "before", "prompt_ids": [4]}, *RECORDS, {"id": "behind", "prompt_ids": [4]}])
    assert generate(*command)[0] == 0
    lines = read(output)
    assert lines[:10] == whole
    assert sorted(ids_of(lines[10:])) == ["before", "behind"]
    assert json.loads(lines[10])["token_ids"] == json.loads(lines[11])["token_ids"]


@pytest.mark.parametrize(
    ("flags", "then", "now"),
    [
        (["--temperature", "0.5"], "settings.temperature 0.0", "0.5"),
        (["--stop", "w9"], "settings.stop []", "['w9']"),
        (["--tree", "7"], "settings.draft 'probe:7+3'", "'probe:7'"),
        (["--method", "ngram", "--tree", "4"], "settings.draft 'probe:7+3'", "'ngram:4'"),
        (["--mask-ema", "0.5"], "settings.draft 'probe:7+3'", "'probe:7+3@mask_ema=0.5'"),
        (["--max-new-tokens", "23"], "settings.max_new_tokens 24", "23"),
        (["--top-k", "3", "--top-p", "0.5"], "settings.top_k 0, settings.top_p 1.0", "3, 0.5"),
        (["--seed", "1"], "settings.seed 0", "1"),
        (["--logprobs"], "settings.logprobs False", "True"),
        (
            ["--logprobs", "--prompt-logprobs"],
            "settings.logprobs False, settings.prompt_logprobs nothing",
            "True, True",
        ),
        (["--logprobs", "2"], "settings.logprobs False, settings.top_logprobs nothing", "True, 2"),
        (["--dtype", "bfloat16"], "model.dtype 'float32'", "'bfloat16'"),
        (["--weights", "int8"], "model.dtype 'float32'", "'float32, int8 weights'"),
        (["--no-chat-template"], "settings.chat_template True", "False"),
        (["--eos-token-id", "9", "--eos-token-id", "7"], "model.eos_token_ids [26]", "[7, 9]"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_answers_of_another_run_are_left_alone(generate, leave, whole, tmp_path, flags, then, now):
    leave(whole[:3])
    command = files(tmp_path)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert_refused(generate(*command, *flags), "answers.jsonl was made with", then, "but this run has", now)
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_answers_of_another_model_are_left_alone(generate, leave, whole, tmp_path):
    leave(whole[:3])
    other = write_folder(tmp_path / "other" / "tiny", make_checkpoint(make_tiny(BASE, seed=4)))  # of the same name
    result = generate(*files(tmp_path), of=other)
    assert_refused(
        result, "answers.jsonl was made with model.fingerprint '", "', but this run has '", "'; name another"
    )
    assert read(tmp_path / "answers.jsonl") == whole[:3]


def test_sizes_may_change_between_two_runs(generate, leave, whole, tmp_path):
    leave(whole[:3])
    sizes = ["--batch-size", "2", "--capacity", "100", "--calls-per-chunk", "5", "--prompt-slots", "7"]
    assert generate(*files(tmp_path), *sizes)[0] == 0
    lines = read(tmp_path / "answers.jsonl")
    assert lines[:3] == whole[:3]
    assert sorted(lines) == sorted(whole)


def test_exact_answers_are_those_of_one_program(generate, tmp_path):
    command = [*files(tmp_path, RECORDS[1:4]), "--exact", *SIZES]
    assert generate(*command)[0] == 0
    lines = read(tmp_path / "answers.jsonl")
    for flags, name in ((["--batch-size", "2"], "batch_size"), (["--calls-per-chunk", "3"], "calls_per_chunk")):
        assert_refused(generate(*command, *flags), f"was made with program.{name} ", "but this run has", flags[1])
    assert_refused(
        generate(*files(tmp_path, RECORDS[1:4]), *SIZES), "was made with settings.exact True", "but this run has False"
    )
    assert generate(*command)[0] == 0
    assert read(tmp_path / "answers.jsonl") == lines


def test_exact_answers_of_one_text_go_on_under_any_program(generate, tmp_path, monkeypatch):
    monkeypatch.setattr(made_by, "has_one_text", lambda checkpoint: True)  # as on a GPU in bfloat16
    command = files(tmp_path, RECORDS[1:4])
    assert generate(*command, "--exact", *SIZES, "--limit", "1")[0] == 0
    begun = read(tmp_path / "answers.jsonl")
    run = json.loads((tmp_path / "answers.jsonl.run.json").read_text())
    assert (run["settings"]["exact"], "draft" in run["settings"]) == ("one text", False)
    assert run["program"] == {"mesh": None, "device": "cpu", "order": 3}
    others = ["--tree", "5,2", "--batch-size", "1", "--capacity", "120", "--calls-per-chunk", "3"]
    code, _, err = generate(*command, "--exact", *others)
    assert code == 0, err
    lines = read(tmp_path / "answers.jsonl")
    assert (lines[:1], len(lines)) == (begun, 3)
    assert_refused(generate(*command, *SIZES), "was made with settings.exact", "one text", "but this run has False")


def test_what_was_written_out_of_order_stays_where_it_is(generate, leave, whole, tmp_path):
    leave(whole[1:3])
    assert generate(*files(tmp_path), "--ordered")[0] == 0
    lines = read(tmp_path / "answers.jsonl")
    assert lines[:2] == whole[1:3]
    assert ids_of(lines[2:]) == [name for name in IDS if name not in ids_of(whole[1:3])]


def test_a_full_disk_keeps_what_is_whole(generate, leave, whole, tmp_path):
    leave(whole[:1])
    command = files(tmp_path)
    room = sum(len(line.encode()) for line in whole[:3]) + 40  # bytes: the fourth record does not fit
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (room, hard))
    try:
        code, out, err = generate(*command, "--log-level", "error")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    says = "File too large; 3 records are whole in it: free some space and give the same command again."
    assert (code, out, err) == (2, "", f"error: {tmp_path / 'answers.jsonl'}: {says}\n")
    assert read(tmp_path / "answers.jsonl") == whole[:3]
    assert generate(*files(tmp_path))[0] == 0
    assert sorted(read(tmp_path / "answers.jsonl")) == sorted(whole)
