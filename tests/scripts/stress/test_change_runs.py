"""`scripts/stress/change_runs.py`: runs that are killed while their input is edited end with every record's own answer."""

import json
import os
import subprocess
import sys
from pathlib import Path

from checkpoints import make_checkpoint, write_folder

SCRIPT = Path(__file__).resolve().parents[3] / "scripts" / "stress" / "change_runs.py"
SECONDS = 900  # more is an error, on a slow and busy machine too


def test_runs_whose_input_is_edited_give_each_record_its_answer(tiny, tmp_path):
    model = write_folder(tmp_path / "tiny", make_checkpoint(tiny))
    command = [sys.executable, str(SCRIPT), "--model", str(model), "--folder", str(tmp_path / "runs")]
    command += ["--records", "30", "--kills", "4", "--batch-size", "2", "--output", str(tmp_path / "record.json")]
    own = {
        "JAX_PLATFORMS": "cpu",
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path / "compiled"),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }
    done = subprocess.run(command, env=os.environ | own, capture_output=True, timeout=SECONDS, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    record = json.loads((tmp_path / "record.json").read_text())
    assert record | json.loads(done.stdout) == record
    assert (record["statuses_at_the_end"], record["each_record_has_its_answer"]) == ([0, 0, 0], True)
    assert record["counts"]["kills"] == 4
    asked = [json.loads(line) for line in (tmp_path / "runs" / "prompts.jsonl").read_text().splitlines()]
    answered = [json.loads(line) for line in (tmp_path / "runs" / "merged.jsonl").read_text().splitlines()]
    assert len(asked) == len(answered) == record["records"]
    for number, (record, answer) in enumerate(zip(asked, answered, strict=True), start=1):
        assert (answer["id"], answer["prompt_ids"]) == (record.get("id", number), record["prompt_ids"])
        assert len(answer["token_ids"]) <= record.get("max_new_tokens", 12)
