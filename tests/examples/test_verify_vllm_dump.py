"""verify_vllm_dump.py on a dump in vLLM's form: the verdicts of the command and of Python, with one planted token."""

import json

import pytest
import reference
import verify_vllm_dump
from checkpoints import EOS, make_checkpoint, words, write_folder
from support.commands import write
from support.files.outputs import read
from verify_vllm_dump import DUMP, verdicts_of_ids

from jax_probe_mtp import verify_file
from jax_probe_mtp.files.formats import vllm

PROMPTS = {"a": [7], "b": [5, 9, 2, 44, 17, 3, 3], "changed": [60, 1, 33, 8]}
NEW, PLACE = 12, 5


@pytest.fixture(scope="module")
def requests(tiny):
    """The requests of the example's own dump, with this model's tokens in place of theirs."""
    found = []
    for line, (name, prompt) in zip(DUMP.read_text(encoding="utf-8").splitlines(), PROMPTS.items(), strict=True):
        plain, gap = reference.plain_decode(tiny.reference, prompt, max_new_tokens=NEW, eos=(EOS,))
        assert gap > 1e-3, "choose another prompt: rounding could decide this one"
        if name == "changed":
            plain[PLACE] = (plain[PLACE] + 1) % 50
        request = json.loads(line)
        [output] = request["outputs"]
        output |= {
            "token_ids": plain,
            "text": words(*plain),
            "finish_reason": "stop" if plain[-1] == EOS else "length",
        }
        found.append(request | {"request_id": name, "prompt": words(*prompt), "prompt_token_ids": prompt})
    return found


@pytest.fixture(scope="module")
def model(tiny, tmp_path_factory):
    return str(write_folder(tmp_path_factory.mktemp("models") / "tiny", make_checkpoint(tiny)))


def test_the_dump_has_vllms_form():
    requests = [json.loads(line) for line in DUMP.read_text(encoding="utf-8").splitlines()]
    assert [request["request_id"] for request in requests] == ["capital", "count", "changed"]
    for request in requests:
        [given] = read(vllm, request)
        assert given.record.prompt_ids == request["prompt_token_ids"]
        assert given.token_ids == request["outputs"][0]["token_ids"]
        assert given.finish_reason in ("stop", "length")


def test_the_verdict_of_a_file(tiny, requests, tmp_path):
    found = verify_file(make_checkpoint(tiny), write(tmp_path / "o.jsonl", requests))
    kinds = {verdict.id: verdict.kind for verdict in found.verdicts}
    assert (found.status, kinds) == (1, {"a": "same", "b": "same", "changed": "diverged"})
    assert found.verdicts[2].difference.position == PLACE


def test_ids_in_memory_get_the_same_verdicts(tiny, requests):
    pairs = [(request["prompt_token_ids"], request["outputs"][0]["token_ids"]) for request in requests]
    assert verdicts_of_ids(make_checkpoint(tiny), pairs) == ["same", "same", "diverged"]


def test_it_runs_as_a_command(model, requests, tmp_path, capsys):
    verify_vllm_dump.main(["--model", model, "--outputs", str(write(tmp_path / "o.jsonl", requests))])
    lines = capsys.readouterr().out.splitlines()
    assert "status 1, 1 of 3 outputs diverged" in lines
    plain = requests[2]["outputs"][0]["token_ids"][PLACE]
    assert f"changed: token {PLACE} is {plain}, the model's own {(plain - 1) % 50}," in lines
    assert lines[-1] == "['same', 'same', 'diverged']"
