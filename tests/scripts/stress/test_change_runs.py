"""`scripts/stress/change_runs.py`: runs that are killed while their input is edited end with every record's own answer."""

import json

from support.killed_runs import killed_runs


def test_runs_whose_input_is_edited_give_each_record_its_answer(tiny, tmp_path):
    record = killed_runs("change_runs.py", tiny, tmp_path)
    assert (record["statuses_at_the_end"], record["each_record_has_its_answer"]) == ([0, 0, 0], True)
    assert record["counts"]["kills"] == 4
    asked = [json.loads(line) for line in (tmp_path / "runs" / "prompts.jsonl").read_text().splitlines()]
    answered = [json.loads(line) for line in (tmp_path / "runs" / "merged.jsonl").read_text().splitlines()]
    assert len(asked) == len(answered) == record["records"]
    for number, (record, answer) in enumerate(zip(asked, answered, strict=True), start=1):
        assert (answer["id"], answer["prompt_ids"]) == (record.get("id", number), record["prompt_ids"])
        assert len(answer["token_ids"]) <= record.get("max_new_tokens", 12)
