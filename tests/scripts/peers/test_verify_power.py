"""Planted outputs of a tiny model are told from honest ones, and the record says how well."""

import json

import numpy as np
import pytest
import verify_power
from checkpoints import make_checkpoint, write_folder
from support.commands import write

from jax_probe_mtp import generate
from jax_probe_mtp.decoding.settings import Prompt, Settings

PROMPTS = np.random.default_rng(5).integers(0, 57, (30, 6)).tolist()


@pytest.fixture
def folder(tiny, tmp_path):
    """Honest answers, the same with the last token changed, and draws."""
    checkpoint, path = make_checkpoint(tiny), tmp_path / "outputs"
    path.mkdir()
    prompts = [Prompt(id=i, token_ids=ids, seed=i) for i, ids in enumerate(PROMPTS)]
    for name, how in {"honest_ours": {}, "drawn": {"temperature": 1.0}}.items():
        settings = Settings(max_new_tokens=20, batch_size=15, **how)
        answers = generate(checkpoint, prompts, draft="plain", settings=settings)
        records = [
            {"id": one.id, "prompt_ids": PROMPTS[one.id], "token_ids": one.token_ids, "max_new_tokens": 20, **how}
            for one in answers
        ]
        write(path / f"{name}.jsonl", records)
        if not how:
            changed = [
                one | {"token_ids": [*one["token_ids"][:-1], (one["token_ids"][-1] + 1) % 57]} for one in records
            ]
            write(path / "changed.jsonl", changed)
    return path, str(write_folder(tmp_path / "tiny", checkpoint))


def test_a_folder_of_kinds_is_measured(folder, tmp_path, monkeypatch, capsys):
    path, model = folder
    flags = [
        "--model",
        model,
        "--outputs",
        path,
        "--subsets",
        "2",
        "--batch-size",
        "15",
        "--output",
        tmp_path / "r.json",
    ]
    monkeypatch.setattr("sys.argv", ["verify_power.py", *map(str, flags)])
    assert verify_power.main() == 0
    kinds = json.loads((tmp_path / "r.json").read_text())["kinds"]
    assert set(kinds) == {"honest_ours", "changed", "drawn", "drawn@greedy"}
    assert kinds["honest_ours"]["greedy"]["match_rate"] == 1
    assert (kinds["honest_ours"]["auc_by_tokens"]["50"], kinds["changed"]["auc_by_tokens"]["50"]) == (0.5, 1)
    assert kinds["honest_ours"]["causes_of_halves"] == {"none": 2}
    assert kinds["changed"]["verdicts"]["diverged"] == len(PROMPTS)
    assert abs(kinds["drawn"]["drawn"]["z_likelihood"]) < 4
    assert kinds["drawn@greedy"]["greedy"]["match_rate"] < 0.9


def test_a_folder_without_honest_outputs_is_refused(folder, monkeypatch):
    path, model = folder
    (path / "honest_ours.jsonl").unlink()
    monkeypatch.setattr("sys.argv", ["verify_power.py", "--model", model, "--outputs", str(path)])
    with pytest.raises(ValueError, match=r"holds no honest\*\.jsonl"):
        verify_power.main()
