"""Makes questions of given lengths out of a Spec-Bench file, for `jax-probe-mtp bench` on long prompts.

    python scripts/measure/long_questions.py --model MODEL --questions F.jsonl \
        --lengths 1000 2000 4000 --count 4 --output G.jsonl

A question is as many of the file's summarization texts as its length in tokens takes, the last one cut there, and then the
request for a summary. The length is the question's category.
"""

import argparse
import itertools
import json
import sys
from pathlib import Path

from checkpoints_convert import load_checkpoint
from jax_probe_mtp.errors import Parser, exit_status, positive
from jax_probe_mtp.files.questions import read_questions
from jax_probe_mtp.files.whole_files import check_files, write_files

REQUEST = "\n\nSummarize the texts above in one paragraph."


def main() -> int:
    """Reads the texts, cuts them to length, writes the questions."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="whose tokens are counted")
    parser.add_argument("--questions", required=True, type=Path)
    parser.add_argument("--lengths", type=positive, nargs="+", default=[1000, 2000, 4000], metavar="TOKENS")
    parser.add_argument("--count", type=positive, default=4, help="questions of each length")
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()

    check_files({"--output": args.output}, [args.questions])
    tokenizer = load_checkpoint(args.model).tokenizer
    texts = [
        q.text.removeprefix("Summarize: ") for q in read_questions(args.questions) if q.category == "summarization"
    ]
    if not any(texts):
        raise ValueError(f"{args.questions} has no questions of the category summarization.")
    supply = itertools.cycle(texts)
    lines = []
    for length, number in itertools.product(sorted(set(args.lengths)), range(args.count)):
        token_ids: list[int] = []
        while len(token_ids) < length:
            token_ids += tokenizer(next(supply) + "\n\n", add_special_tokens=False)["input_ids"]
        text = tokenizer.decode(token_ids[:length]) + REQUEST
        question = {"question_id": f"{length}-{number}", "category": f"{length} tokens", "turns": [text]}
        lines.append(json.dumps(question, ensure_ascii=False) + "\n")
    write_files(args.output.parent, {args.output.name: "".join(lines)})
    return 0


if __name__ == "__main__":
    sys.exit(exit_status(main))
