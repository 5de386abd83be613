"""Compares the decode calls of a bench record, prompt by prompt, with those of an independent implementation.

    jax-probe-mtp bench --model MODEL --questions F.jsonl --per-category 2 --output R.json \
        --runs "probe:4@mask_init=mean;probe:14@mask_init=mean"
    python scripts/measure/fidelity.py R.json reference_runs.json:NAME

The reference's record has, under models and NAME, runs with `per_prompt` lists of `qid` and `decode_calls`. The exit status
is 1 where a prompt's calls differ, or nothing could be compared.
"""

import argparse
import json
import sys
from pathlib import Path

from jax_probe_mtp.errors import Parser, exit_status
from jax_probe_mtp.measuring.bench_record import read_record

# A run of the bench -> the reference's name for it.
REFERENCE_NAMES = {
    "probe:4@mask_init=mean": "bc10_k1_4",
    "probe:14@mask_init=mean": "bc30_k1_14",
    "probe:29@mask_init=mean": "bc60_k1_29",
    "probe:15+4@mask_init=mean": "bc60_k2_15-4",
    "probe:7+2@mask_init=mean": "bc30_k2_7-2",
    "dynamic:60@mask_init=mean": "bc60_k2_dynamic",
    "probe:14@mask_init=mean,mask_ema=0.0": "bc30_k1_14_frozen",
    "probe:14@mask_init=last_k": "bc30_k1_14_last_k",
    "probe:14@mask_init=mean,prune=0": "bc30_k1_14_prune_off",
    "ngram:10@max_ngram=2,match=first": "pld",  # transformers' prompt lookup
}


def main() -> int:
    """Prints one line for each run that both have."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("record", type=Path, metavar="R.json")
    parser.add_argument("reference", metavar="FILE:NAME")
    args = parser.parse_args()

    path, _, model = args.reference.rpartition(":")
    reference = json.loads(Path(path).read_text(encoding="utf-8"))["models"][model]["runs"]
    num_compared, differs = 0, False
    for run in read_record(args.record)["runs"]:
        theirs = reference.get(REFERENCE_NAMES.get(run["run"], ""))
        if theirs is None:
            continue
        num_compared += 1
        calls_of = {str(prompt["qid"]): prompt["decode_calls"] for prompt in theirs["per_prompt"]}
        mine = {question: result["calls"] for question, result in run["by_question"].items()}
        others = [question for question, calls in mine.items() if calls != calls_of.get(question)]
        differs |= bool(others)
        expected = sum(calls_of.get(question, 0) for question in mine)
        where = f"; other calls at {', '.join(others)}" if others else ""
        print(
            f"{run['run']:28} {run['calls']} calls, reference {expected}, {len(mine)} of {len(calls_of)} prompts{where}"
        )
    if not num_compared:
        print("no run of the record is one of the reference's", file=sys.stderr)
    return int(differs or not num_compared)


if __name__ == "__main__":
    sys.exit(exit_status(main))
