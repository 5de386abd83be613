"""Counts decode calls on a question file, run by run, beside an independent implementation's counts.

    python scripts/fidelity.py --model DIR --questions F.jsonl --output R.json [--reference reference_runs.json:MODEL]

Questions are Spec-Bench's: one JSON object a line with `question_id`, `category` and `turns`; the first turn of the first
two questions of each category is asked. Each run is compared with plain decoding token by token and, where a reference
is given, prompt by prompt with its number of decode calls.
"""

import argparse
import json
import platform
import sys
import time
from pathlib import Path

import jax

from checkpoints_convert import load_checkpoint
from jax_probe_mtp.checkpoint import Checkpoint
from jax_probe_mtp.draft_config import ProbeConfig
from jax_probe_mtp.exactness import first_difference
from jax_probe_mtp.generation import Decoder, Generation, Prompt, Settings
from jax_probe_mtp.tokenizer import encode

# name -> masks and tree, lambda
RUNS: dict[str, tuple[ProbeConfig, float]] = {
    "bc10_k1_4": (ProbeConfig(tree=(4,)), 0.1),
    "bc30_k1_14": (ProbeConfig(tree=(14,)), 0.1),
    "bc60_k1_29": (ProbeConfig(tree=(29,)), 0.1),
    "bc60_k2_15-4": (ProbeConfig(tree=(15, 4)), 0.1),
    "bc30_k2_7-2": (ProbeConfig(tree=(7, 2)), 0.1),
    "bc60_k2_dynamic": (ProbeConfig(tree="dynamic", num_masks=2, block_complexity=60), 0.1),
    "bc30_k1_14_frozen": (ProbeConfig(tree=(14,)), 0.0),
    "bc30_k1_14_last_k": (ProbeConfig(tree=(14,), mask_init="last_k"), 0.1),
    "bc30_k1_14_prune_off": (ProbeConfig(tree=(14,), prune=False), 0.1),
}


def read_questions(path: Path, per_category: int) -> list[dict]:
    """The first questions of each category, in file order."""
    seen: dict[str, int] = {}
    questions = []
    for line in path.read_text(encoding="utf-8").splitlines():
        question = json.loads(line)
        seen[question["category"]] = seen.get(question["category"], 0) + 1
        if seen[question["category"]] <= per_category:
            questions.append(question)
    return questions


def run_all(
    checkpoint: Checkpoint, prompts: list[Prompt], probe: ProbeConfig, settings: Settings
) -> tuple[list[Generation], float]:
    """All prompts with one way of drafting; seconds without compilation."""
    decoder = Decoder(checkpoint, probe)
    generations = list(decoder.run(prompts, settings))
    return generations, decoder.stats.seconds


def summary(
    name: str,
    checkpoint: Checkpoint,
    plain: list[Generation],
    drafted: list[Generation],
    seconds: float,
    reference: dict | None,
) -> dict:
    """One run's record."""
    pairs = list(zip(plain, drafted, strict=True))
    differences = [first_difference(checkpoint, p.prompt_ids, p.token_ids, d.token_ids) for p, d in pairs]
    calls, committed = sum(g.calls for g in drafted), sum(g.committed for g in drafted)
    calls_by_prompt = {str(g.id): g.calls for g in drafted}
    record: dict = {
        "run": name,
        "calls": calls,
        "committed": committed,
        "tau": committed / calls,
        "accepted_by_depth": [sum(depth) for depth in zip(*(g.accepted_by_depth for g in drafted), strict=True)],
        "calls_by_prompt": calls_by_prompt,
        "exact": sum(difference is None for difference in differences),
        "prompts": len(drafted),
        "differences": {str(d.id): str(x) for d, x in zip(drafted, differences, strict=True) if x},
        "seconds": round(seconds, 1),
    }
    if reference:
        theirs = {str(prompt["qid"]): prompt["decode_calls"] for prompt in reference["per_prompt"]}
        record["reference_calls"] = sum(theirs[question] for question in calls_by_prompt)
        record["prompts_with_other_calls"] = [q for q, count in calls_by_prompt.items() if count != theirs[q]]
    return record


def main() -> None:
    """Runs what the flags name and writes one JSON record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--questions", required=True, type=Path)
    parser.add_argument("--per-category", type=int, default=2)
    parser.add_argument("--max-new-tokens", type=int, default=100)
    parser.add_argument("--runs", nargs="+", choices=RUNS, default=list(RUNS), metavar="RUN", help=", ".join(RUNS))
    parser.add_argument("--reference", help="FILE:MODEL, the reference's record and its name for the model")
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()

    checkpoint = load_checkpoint(args.model, dtype="float32")
    prompts = [
        Prompt(
            id=question["question_id"],
            token_ids=encode(checkpoint.tokenizer, question["turns"][0], use_chat_template=True),
        )
        for question in read_questions(args.questions, args.per_category)
    ]
    references = {}
    if args.reference:
        path, _, model = args.reference.rpartition(":")
        references = json.loads(Path(path).read_text())["models"][model]["runs"]
    device = jax.devices()[0]
    record = {
        "model": Path(checkpoint.name).name,
        "max_new_tokens": args.max_new_tokens,
        "environment": {"jax": jax.__version__, "python": platform.python_version(), "device": device.device_kind},
        "runs": [],
    }
    start = time.perf_counter()
    plain, seconds = run_all(checkpoint, prompts, ProbeConfig(), Settings(max_new_tokens=args.max_new_tokens))
    record["plain"] = {"tokens": sum(len(g.token_ids) for g in plain), "seconds": round(seconds, 1)}
    for name in args.runs:
        probe, mask_ema = RUNS[name]
        settings = Settings(max_new_tokens=args.max_new_tokens, mask_ema=mask_ema)
        drafted, seconds = run_all(checkpoint, prompts, probe, settings)
        result = summary(name, checkpoint, plain, drafted, seconds, references.get(name))
        record["runs"].append(result)
        args.output.write_text(json.dumps(record, indent=1) + "\n")
        print(
            f"{name:22} calls {result['calls']} (reference {result.get('reference_calls', '-')}), tau {result['tau']:.3f}, "
            f"exact {result['exact']}/{result['prompts']}, {result['seconds']} s, "
            f"total {time.perf_counter() - start:.0f} s",
            file=sys.stderr,
        )


if __name__ == "__main__":
    main()
