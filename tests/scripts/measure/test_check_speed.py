"""scripts/measure/check_speed.py: both times are there, and an output that is not plain decoding's is no success."""

import dataclasses
import json

import check_speed
import pytest
from checkpoints import make_checkpoint, write_folder

PROMPTS = [{"id": i, "prompt_ids": [7, i]} for i in range(3)]


@pytest.fixture
def command(tiny, tmp_path, own_caches):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(json.dumps(record) + "\n" for record in PROMPTS))
    model = write_folder(tmp_path / "tiny", make_checkpoint(tiny))
    flags = {"--model": model, "--input": prompts, "--max-new-tokens": 12, "--repeats": 2, "--batch-sizes": "1,2"}
    return [*(str(part) for pair in flags.items() for part in pair), "--output", str(tmp_path / "r.json")]


def test_the_record_has_both_times(command, capsys, tmp_path):
    assert check_speed.main(command) == 0
    printed, record = json.loads(capsys.readouterr().out), json.loads((tmp_path / "r.json").read_text())
    assert record | printed == record
    assert (record["records"], record["model"]["name"]) == (3, "tiny")
    assert record["found"] == dict.fromkeys(("1", "2"), "3 same, 0 tie, 0 diverged")
    assert 3 <= record["new_tokens"] <= 36
    for size in ("1", "2"):
        assert record["seconds_of_checking"][size] > 0
        ratio = record["seconds_of_decoding"] / record["seconds_of_checking"][size]
        assert record["times_faster"][size] == pytest.approx(ratio)


def test_outputs_that_diverged_are_recorded_and_no_success(command, monkeypatch, tmp_path):
    honest = check_speed.Decoder.run

    def run(self, prompts, settings):
        for answer in honest(self, prompts, settings):
            yield dataclasses.replace(answer, token_ids=[(answer.token_ids[0] + 1) % 26, *answer.token_ids[1:]])

    monkeypatch.setattr(check_speed.Decoder, "run", run)
    assert check_speed.main([*command, "--capacity", "32", "--prompt-slots", "8"]) == 1
    found = json.loads((tmp_path / "r.json").read_text())["found"]
    assert found == dict.fromkeys(("1", "2"), "0 same, 0 tie, 3 diverged")
