"""Rows of tokens as JSON lines and Parquet: what they hold, and that a table is whole or not there."""

import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import reference
from checkpoints import make_checkpoint

from jax_probe_mtp.decoding.settings import Prompt, Settings
from jax_probe_mtp.sameness import token_table
from jax_probe_mtp.sameness.given_outputs import examine
from jax_probe_mtp.sameness.output import Output
from jax_probe_mtp.sameness.token_table import COLUMNS, TokenTable

PROMPT = [5, 9, 2, 44, 17, 3, 3]


@pytest.fixture(scope="module")
def examined(tiny):
    """Three outputs: the model's own, one with another second token, and one that cannot be read."""
    own, gap = reference.plain_decode(tiny.reference, PROMPT, max_new_tokens=4)
    assert gap > 1e-2
    given = {"a": own, 7: [own[0], (own[1] + 1) % 50, own[2], own[3]], "c": [10_000]}
    outputs = [Output(prompt=Prompt(id=name, token_ids=PROMPT), token_ids=ids, limit=4) for name, ids in given.items()]
    return list(examine(make_checkpoint(tiny), outputs, Settings(batch_size=2)))


def expected(tiny, found):
    """The rows by one forward pass in NumPy, token after token."""
    rows, ids = [], list(found.output.token_ids)
    for place, token in enumerate(ids):
        logits = tiny.reference.logits(tiny.reference.embed([*PROMPT, *ids[:place]]))[-1]
        logp = logits - np.log(np.exp(logits).sum())
        row = {
            "id": found.output.prompt.id,
            "sample": 0,
            "position": place,
            "token": token,
            "best": int(np.argmax(logits)),
            "margin": float(logits.max() - logits[token]),
            "rank": int((logits > logits[token]).sum()),
            "logprob": float(logp[token]),
            "probability": float(np.exp(logp[token])),
            "entropy": float(-(np.exp(logp) * logp).sum()),
            "ambiguous": False,
        }
        rows.append(row)
    return rows


def assert_same(rows, wanted):
    assert len(rows) == len(wanted)
    for row, want in zip(rows, wanted, strict=True):
        assert tuple(row) == COLUMNS
        for name, value in want.items():
            assert row[name] == (pytest.approx(value, abs=1e-4) if isinstance(value, float) else value), name


def test_json_lines_hold_a_row_a_token(examined, tiny, tmp_path):
    path = tmp_path / "t.jsonl"
    with TokenTable(path) as table:
        for found in examined:
            table.add(found)
        assert not path.exists(), "it has its name before it is whole"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    assert_same(rows, [*expected(tiny, examined[0]), *expected(tiny, examined[1])])
    assert [row["margin"] > 0 for row in rows[:6]] == [False] * 4 + [False, True]
    assert [file.name for file in tmp_path.iterdir()] == ["t.jsonl"]


def test_parquet_holds_the_same_with_ids_as_text(examined, tiny, tmp_path, monkeypatch):
    monkeypatch.setattr(token_table, "ROWS", 3)  # several pieces
    with TokenTable(tmp_path / "t.parquet") as table:
        for found in examined:
            table.add(found)
    wanted = [*expected(tiny, examined[0]), *expected(tiny, examined[1])]
    assert_same(pq.read_table(tmp_path / "t.parquet").to_pylist(), [row | {"id": str(row["id"])} for row in wanted])


@pytest.mark.parametrize("name", ["t.jsonl", "t.parquet"])
def test_an_error_leaves_the_old_table(examined, tmp_path, name):
    path = tmp_path / name
    path.write_text("old")

    def write():
        with TokenTable(path) as table:
            table.add(examined[0])
            raise KeyError("an output that breaks")

    with pytest.raises(KeyError):
        write()
    assert path.read_text() == "old"
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_parquet_without_pyarrow_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(token_table.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"t\.parquet needs pyarrow: pip install .*\[parquet\]"):
        TokenTable(tmp_path / "t.parquet")
