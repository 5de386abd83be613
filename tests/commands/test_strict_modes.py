"""JAX's strict modes hold in the commands too: nothing that they run promotes a rank or a dtype in silence."""

import json

import jax
import pytest
from checkpoints import words

QUESTION = {"question_id": 1, "category": "a", "turns": [words(5, 9, 2)]}


@pytest.fixture
def strict():
    with jax.numpy_rank_promotion("raise"), jax.numpy_dtype_promotion("strict"):
        yield


@pytest.fixture
def prompts(tmp_path):
    path = tmp_path / "prompts.jsonl"
    records = [{"id": i, "prompt": words(5, 9, i), "temperature": 0.7 * i, "top_k": 9, "top_p": 0.9} for i in range(2)]
    path.write_text("".join(json.dumps(record) + "\n" for record in records))
    return path


def test_generate_and_verify(strict, run, model, prompts, tmp_path):
    answers = tmp_path / "answers.jsonl"
    of_model = ["--model", model, "--max-new-tokens", "6"]
    assert (
        run("generate", *of_model, "--input", prompts, "--output", answers, "--logprobs", "--draft", "probe:4")[0] == 0
    )
    assert run("verify", *of_model, "--input", prompts, "--exact", "--draft", "recycle:12")[0] == 0
    outputs = tmp_path / "outputs.jsonl"
    asked = [json.loads(line) for line in prompts.read_text().splitlines()]
    given = [json.loads(line) for line in answers.read_text().splitlines()]
    lines = [
        json.dumps(record | {"token_ids": answer["token_ids"]}) for record, answer in zip(asked, given, strict=True)
    ]
    outputs.write_text("\n".join(lines))
    assert run("verify", "--model", model, "--outputs", outputs, "--max-new-tokens", "6")[0] in (0, 1)


def test_bench_and_align(strict, run, model, tmp_path):
    questions = tmp_path / "questions.jsonl"
    questions.write_text(json.dumps(QUESTION) + "\n")
    asked = ["--model", model, "--questions", questions, "--max-new-tokens", "6"]
    assert run("bench", *asked, "--runs", "probe:4;ngram:3", "--output", tmp_path / "r.json")[0] == 0
    assert run("align", *asked, "--tree", "4", "--output", tmp_path / "align")[0] == 0
