"""A model at an address: what it answers, and that a job goes on with it wherever it lies."""

import argparse
import json

import pytest
from support.files.job_runs import RECORDS, assert_refused, files, read
from support.files.stores import fill

from jax_probe_mtp.commands import options


@pytest.fixture
def model_there(store, model):
    for path in model.rglob("*"):
        if path.is_file():
            fill(f"store://b/{model.name}/{path.relative_to(model)}", path.read_bytes())
    return f"store://b/{model.name}"


def test_answers_are_those_of_the_model_here_and_jobs_go_on(generate, model_there, leave, whole, whole_run, tmp_path):
    leave(whole[:4])
    assert generate(*files(tmp_path), of=model_there)[0] == 0  # what model made them is compared
    assert sorted(read(tmp_path / "answers.jsonl")) == sorted(whole)
    (tmp_path / "answers.jsonl").unlink()
    assert generate(*files(tmp_path), of=f"{model_there}/")[0] == 0
    assert read(tmp_path / "answers.jsonl") == whole
    run, expected = json.loads((tmp_path / "answers.jsonl.run.json").read_bytes()), json.loads(whole_run[1])
    assert {**run, "started": 0} == {**expected, "started": 0}


def test_messages_name_the_address(model_there, own_caches):
    args = argparse.Namespace(model=f"{model_there}/", revision=None, dtype=None, weights=None, eos_token_id=None)
    assert options.open_model(args).name == model_there


def test_models_that_are_not_there_are_refused(generate, store, tmp_path):
    says = "store://b/none is not there, or its bucket or folder is not; check the address."
    assert_refused(generate(*files(tmp_path, RECORDS), of="store://b/none"), says)
    result = generate(*files(tmp_path, RECORDS), "--revision", "main", of="store://b/none")
    assert_refused(result, "--revision is of a hub id, and store://b/none is an address; leave it out.")
