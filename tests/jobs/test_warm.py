"""A job whose rows share what they learn: a resumed one is as warm as it was, and a bad file costs only warmth."""

import json
import logging
import re

import numpy as np
import pytest
import safetensors.numpy
from support.files.job_runs import ids_of, read, write

from checkpoints_convert import load_checkpoint
from jax_probe_mtp import Settings
from jax_probe_mtp.decoding.settings import Prompt
from jax_probe_mtp.drafting import parse_draft
from jax_probe_mtp.generation.decoder import Decoder
from jax_probe_mtp.jobs import warm
from jax_probe_mtp.jobs.warm import _digest

DRAFT = "merged:12@mask_init=mean,warm=1"
# The same few tokens again and again, so that what one prompt taught drafts the next.
RECORDS = [{"id": i, "prompt_ids": [5, 9, 2, 44, 17, 3, i % 2]} for i in range(6)]
FLAGS = ["--draft", DRAFT, "--batch-size", "2", "--max-new-tokens", "24", "--capacity", "64", "--dtype", "float32"]


@pytest.fixture
def go_on(run, model, tmp_path, monkeypatch, log_level_stays, programs_are_compiled_once):
    """Answers the first records: ids and calls of all answers, and the lines of the log."""

    def go_on(num_records):
        files = "--input", write(tmp_path, RECORDS[:num_records]), "--output", tmp_path / "answers.jsonl"
        with monkeypatch.context() as patch:
            patch.setattr(logging.root, "handlers", [])
            code, out, err = run("generate", "--model", model, *FLAGS, *files)
        assert (code, out) == (0, ""), err
        answers = [json.loads(line) for line in read(tmp_path / "answers.jsonl")]
        return {answer["id"]: (answer["token_ids"], answer["calls"]) for answer in answers}, err.splitlines()

    return go_on


@pytest.fixture(scope="module")
def in_memory(model):
    """What one decoder gives that answers two records, then the other four: it keeps what it has learned."""
    decoder = Decoder(load_checkpoint(str(model), dtype="float32"), parse_draft(DRAFT))
    settings = Settings(batch_size=2, max_new_tokens=24, capacity=64)
    prompts = [Prompt(id=record["id"], token_ids=record["prompt_ids"]) for record in RECORDS]
    answers = [*decoder.run(prompts[:2], settings), *decoder.run(prompts[2:], settings)]
    return {answer.id: (answer.token_ids, answer.calls) for answer in answers}


def test_what_learns_nothing_is_never_asked_what_it_has_learned(model, tmp_path, monkeypatch):
    monkeypatch.setattr(warm, "SECONDS_BETWEEN", -1.0)
    params = load_checkpoint(str(model), dtype="float32").params

    def asked(draft):
        state = warm.WarmState(tmp_path / "answers.jsonl", {}, parse_draft(draft), params)
        state.save_sometimes(lambda: looks.append(draft) or {"x": np.zeros((1, 2), np.int32)})

    looks = []
    asked("probe:4")  # to look waits for the device
    assert looks == []
    asked(DRAFT)
    assert looks == [DRAFT]


def test_a_job_goes_on_as_warm_as_it_was(go_on, in_memory):
    first, _ = go_on(2)
    assert first == {i: in_memory[i] for i in (0, 1)}
    answers, says = go_on(6)
    assert answers == in_memory
    assert sum(calls for _, calls in in_memory.values()) < 6 * 23, "no draft was ever right"
    assert not any(".warm" in line for line in says)


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        ("torn", ""),
        ("empty", ""),
        ("another run", "it is of another run or version"),
        ("other shapes", r"in place of int32\[1, "),
        ("fewer arrays", "it holds 4 arrays, not 5"),
        ("other bytes", "it is damaged"),
        ("no groups", "it is of the groups 3, which are none"),
        ("other groups", r"it is of the groups \[3\] of other devices"),
    ],
)
def test_a_bad_file_is_left_out_with_one_line(go_on, in_memory, tmp_path, damage, why):
    go_on(2)
    path = tmp_path / "answers.jsonl.warm"
    whole = path.read_bytes()
    with safetensors.safe_open(path, framework="numpy") as file:
        says, arrays = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if damage == "torn":
        path.write_bytes(whole[:-7])
    elif damage == "empty":
        path.write_bytes(b"")
    else:
        if damage == "another run":
            says |= {"run": "0" * 64}
        elif damage == "other groups":
            says |= {"groups": "[3]"}
        elif damage == "no groups":
            says |= {"groups": "3"}
        elif damage == "other bytes":
            arrays["000"] = arrays["000"] ^ 1
        elif damage == "fewer arrays":
            arrays.pop(max(arrays))
        else:
            arrays = {name: np.concatenate([array, array], axis=-1) for name, array in arrays.items()}
        if damage != "other bytes":
            says |= {"digest": _digest(arrays[name] for name in sorted(arrays))}
        path.write_bytes(safetensors.numpy.save(arrays, metadata=says))
    answers, says = go_on(6)
    [line] = [line for line in says if ".warm" in line]
    assert re.search(f"{re.escape(str(path))} is left out, drafts begin with nothing learned: .*{why}", line)
    assert {i: tokens for i, (tokens, _) in answers.items()} == {i: tokens for i, (tokens, _) in in_memory.items()}
    assert sum(calls for _, calls in answers.values()) > sum(calls for _, calls in in_memory.values())
    assert path.read_bytes() != b""  # a good one again


def test_a_job_that_is_complete_leaves_the_file(go_on, tmp_path):
    go_on(2)
    before = (tmp_path / "answers.jsonl.warm").stat().st_mtime_ns
    go_on(2)
    assert (tmp_path / "answers.jsonl.warm").stat().st_mtime_ns == before
    assert ids_of(read(tmp_path / "answers.jsonl")) == [0, 1]


def test_a_job_keeps_what_it_learned_while_it_runs(go_on, tmp_path, monkeypatch):
    """Where a moment is a while, the file is written after every few calls."""
    monkeypatch.setattr(warm, "SECONDS_BETWEEN", 0.0)
    saved = []
    honest = warm.WarmState.save
    monkeypatch.setattr(warm.WarmState, "save", lambda self, shared: (honest(self, shared), saved.append(1)))
    go_on(6)
    assert len(saved) > 2
    assert (tmp_path / "answers.jsonl.warm").stat().st_size > 1000
    assert not (tmp_path / "answers.jsonl.warm.partial").exists()


def test_no_other_file_is_replaced_by_what_was_learned(run, model, tmp_path):
    path = write(tmp_path, RECORDS, name="answers.jsonl.warm")
    before = path.read_bytes()
    code, out, err = run("generate", "--model", model, *FLAGS, "--input", path, "--output", tmp_path / "answers.jsonl")
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"{path} is read by this command; name another" in err
    assert path.read_bytes() == before
