"""What a report says of a record: the sentence that answers, and the command that measures it again; expected by hand."""

import argparse
import shlex

import pytest
from support.measuring.bench_records import make_record, make_run

from jax_probe_mtp.commands import bench
from jax_probe_mtp.measuring.report.bench_section import make_section


def answer_of(*runs, **changed):
    record = make_record(*runs, **changed)
    section = make_section(record, "r.json")
    assert section.best is None or section.best in section.answer
    head = "For tiny_model.gguf on NVIDIA H200: "
    return section.answer.removeprefix(head).removeprefix(head.replace(":", ""))


def test_the_fastest_is_the_best_though_another_gives_more_tokens_a_call():
    runs = [make_run("plain"), make_run("recycle:60", 60, 2.5, 1.1), make_run("probe:14", 30, 1.7, 1.6)]
    assert answer_of(*runs) == (
        "the best draft is probe:14, with 1.70 tokens a call and 1.60 times plain decoding's speed; "
        "all outputs (3) are plain decoding's."
    )


@pytest.mark.parametrize("speedup", [0.56, 1.0])
def test_no_draft_is_faster(speedup):
    slow = answer_of(make_run("plain"), make_run("probe:4", 10, 1.2, 0.5), make_run("probe:14", 30, 1.7, speedup))
    assert slow == (
        f"no draft is faster than plain decoding; the fastest is probe:14, with 1.70 tokens a call and {speedup:.2f} times "
        "its speed; all outputs (3) are plain decoding's."
    )


@pytest.mark.parametrize(
    ("differences", "ties", "says"),
    [
        ({"81": "tie", "x": "diverged"}, 1, "1 of 3 outputs are plain decoding's (1 tie, 1 diverged)."),
        ({"81": "tie", "82": "tie", "x": "tie"}, 3, "0 of 3 outputs are plain decoding's (3 ties)."),
    ],
)
def test_what_differs_is_said_in_the_same_sentence(differences, ties, says):
    run = make_run("probe:14", 30, 1.7, 1.6, differences=differences, ties=ties)
    assert answer_of(make_run("plain"), run).endswith(f"speed; {says}")


def test_without_speeds_without_drafts_and_without_questions():
    untimed = [make_run(name, 9, tau) | {"speedup_vs_ar": None} for name, tau in (("a", 1.2), ("b", 1.4), ("c", 1.3))]
    assert answer_of(make_run("plain"), *untimed).startswith(
        "no speed was measured; the longest acceptance is that of b, with 1.40 tokens a call; "
    )
    assert "the fastest is d, with 1.10" in answer_of(make_run("plain"), untimed[0], make_run("d", 9, 1.1, 0.9))
    assert answer_of(make_run("plain")) == "no draft was measured beside plain decoding."
    assert answer_of(questions=[]) == "no question has been answered yet."


def test_the_command_is_one_that_bench_takes_and_asks_for_the_same():
    record = make_record()
    record["model"]["name"] = "my model;$(x)"
    record["environment"]["dtype"] = "bfloat16, int8 weights"
    record["settings"] |= {"temperature": 0.8, "top_k": 40, "top_p": 0.9, "seed": 7, "use_chat_template": False}
    record["settings"] |= {"masks": "digest", "eos_token_ids": [5, 9], "mesh": "data=1,tensor=2", "capacity": 1024}
    first, second = make_section(record, "r.json").commands
    program, *words = shlex.split(first)
    parser = argparse.ArgumentParser()
    bench.add_commands(parser.add_subparsers())
    args = parser.parse_args(words)
    assert program == "jax-probe-mtp"
    assert (args.model, args.dtype, args.weights) == ("my model;$(x)", "bfloat16", "int8")
    assert (str(args.questions), args.per_category, args.runs) == ("spec_bench.jsonl", 2, "plain;probe:15+4")
    assert (args.temperature, args.top_k, args.top_p, args.seed) == (0.8, 40, 0.9, 7)
    assert (args.max_new_tokens, args.batch_size, args.capacity, args.prompt_slots) == (100, 4, 1024, None)
    assert (args.eos_token_id, args.mesh, args.no_chat_template) == ([5, 9], "data=1,tensor=2", True)
    assert str(args.masks) == "MASKS.safetensors"
    report = parser.parse_args(bench.join_command(shlex.split(second)[1:]))
    assert (list(map(str, report.records)), str(report.output)) == (["R.json"], "FOLDER")


def test_a_greedy_bench_names_no_sampling():
    assert "--seed" not in make_section(make_record(), "r.json").commands[0]
