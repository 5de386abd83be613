"""`--draft auto` as a command: what calls cost is measured once, kept, and written beside the answers."""

import json

import pytest
from support.commands import assert_refused

from jax_probe_mtp.commands import kept_costs
from jax_probe_mtp.drafting.merged import choice
from jax_probe_mtp.generation.programs import Programs
from jax_probe_mtp.measuring.environment import environment

AUTO = ["--draft", "auto:16", "--max-new-tokens", "24", "--calls-per-chunk", "2", "--batch-size", "2"]


@pytest.fixture
def job(run, model, tmp_path, monkeypatch):
    """Answers some prompts; gives the answers, what the run file says, and stderr."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(choice, "MEASURED", 2)
    # Sizes are compiled when they are wanted: so short a job would end before the background has compiled one.
    monkeypatch.setattr(Programs, "is_there", lambda *_, **__: True)
    prompts = tmp_path / "prompts.jsonl"
    lines = [json.dumps({"id": i, "prompt_ids": [3 + i, 5, 7 + 2 * i]}) for i in range(6)]

    def answer(name, *flags, num=6):
        prompts.write_text("\n".join(lines[:num]) + "\n")
        output = tmp_path / name
        code, _, err = run("generate", "--model", model, "--input", prompts, "--output", output, *flags)
        assert code == 0, err
        answers = {each["id"]: each for each in map(json.loads, output.read_text().splitlines())}
        return answers, json.loads((tmp_path / f"{name}.run.json").read_text()), err

    return answer


def kept(tmp_path):
    [path] = (tmp_path / "cache" / "jax_probe_mtp" / "call_costs").iterdir()
    return path


def test_costs_are_kept_for_the_device_and_written_beside_the_answers(job, tmp_path):
    answers, made_by, err = job("a.jsonl", *AUTO, "--stats")
    assert "time by " in err
    costs = json.loads(kept(tmp_path).read_text())
    assert made_by["costs"] == costs
    assert costs["seconds"].keys() == {"2 rows of 64 slots"}
    assert costs["seconds"]["2 rows of 64 slots"].keys() <= {"plain", "merged:16"}
    assert all(0 < cost < 60 for cost in costs["seconds"]["2 rows of 64 slots"].values())
    assert costs["depends_on"].keys() >= {"device", "jax", "jax_probe_mtp", "model", "dtype"}
    plain, _, _ = job("plain.jsonl", *AUTO[2:], "--draft", "plain")
    assert {i: each["token_ids"] for i, each in answers.items()} == {i: each["token_ids"] for i, each in plain.items()}
    assert all(sum(each["calls_by_draft"].values()) == each["calls"] for each in answers.values())
    assert "calls_by_draft" not in plain[0]


def test_a_job_goes_on_with_the_costs_of_its_run_file(job, tmp_path, caplog):
    _, made_by, _ = job("a.jsonl", *AUTO, num=2)
    beside = tmp_path / "a.jsonl.run.json"
    made_by["costs"]["seconds"] = {"2 rows of 64 slots": {"plain": 1.5, "merged:16": 0.25}}
    beside.write_text(json.dumps(made_by))
    kept(tmp_path).write_text("no JSON")
    answers, after, _ = job("a.jsonl", *AUTO)
    assert "left out" not in caplog.text
    assert after["costs"]["seconds"] == made_by["costs"]["seconds"]
    assert len(answers) == 6


def test_costs_of_another_device_are_measured_again(job, tmp_path, caplog):
    _, made_by, _ = job("a.jsonl", *AUTO, num=2)
    made_by["costs"] |= {"depends_on": made_by["costs"]["depends_on"] | {"device": "a faster one"}}
    made_by["costs"]["seconds"] = {"2 rows of 64 slots": {"plain": 1e-9}}
    (tmp_path / "a.jsonl.run.json").write_text(json.dumps(made_by))
    kept(tmp_path).unlink()
    _, after, _ = job("a.jsonl", *AUTO)
    assert caplog.text.count("a.jsonl.run.json: what its calls cost was measured on another device, model") == 1
    assert after["costs"]["seconds"]["2 rows of 64 slots"].get("plain") != 1e-9


def test_another_version_measures_for_itself(job, tmp_path, monkeypatch):
    job("a.jsonl", *AUTO)
    monkeypatch.setattr(kept_costs, "environment", lambda dtype: environment(dtype) | {"jax": "another"})
    job("b.jsonl", *AUTO)
    assert len(list((tmp_path / "cache" / "jax_probe_mtp" / "call_costs").iterdir())) == 2


def test_without_a_place_to_keep_them_a_run_goes_its_way(job, tmp_path, caplog):
    (tmp_path / "cache").write_text("a file")
    answers, made_by, _ = job("a.jsonl", *AUTO)
    assert len(answers) == 6
    assert made_by["costs"]["seconds"]
    assert caplog.text.count("what a call costs is not kept: ") == 1


def test_exact_answers_of_one_program_are_no_choice(run, model, tmp_path):
    (tmp_path / "p.jsonl").write_text('{"prompt_ids": [3]}\n')
    files = ["--input", tmp_path / "p.jsonl", "--output", tmp_path / "g.jsonl"]
    result = run("generate", "--model", model, *files, *AUTO, "--exact")
    assert_refused(result, "--exact is exact within one program here, and auto:16 chooses among several; name a size")
    assert not (tmp_path / "g.jsonl").exists()
