"""Makes questions of given lengths out of a Spec-Bench file, for `jax-probe-mtp bench` on long prompts.

    python scripts/long_questions.py --model MODEL --questions F.jsonl --lengths 1000 2000 4000 --count 4 --output G.jsonl

A question is a request for a summary after as many of the file's summarization texts as its length in tokens takes; the
last text is cut there. The length is the question's category.
"""

import argparse
import itertools
import json
from pathlib import Path

from checkpoints_convert import load_checkpoint
from jax_probe_mtp.records import read_questions

REQUEST = "\n\nSummarize the texts above in one paragraph."


def main() -> None:
    """Reads the texts, cuts them to length, writes the questions."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="whose tokens are counted")
    parser.add_argument("--questions", required=True, type=Path)
    parser.add_argument("--lengths", type=int, nargs="+", default=[1000, 2000, 4000], metavar="TOKENS")
    parser.add_argument("--count", type=int, default=4, help="questions of each length")
    parser.add_argument("--output", required=True, type=Path)
    args = parser.parse_args()

    tokenizer = load_checkpoint(args.model).tokenizer
    texts = [
        q.text.removeprefix("Summarize: ") for q in read_questions(args.questions) if q.category == "summarization"
    ]
    if not texts:
        raise SystemExit(f"error: {args.questions} has no questions of the category summarization.")
    supply = itertools.cycle(texts)
    with args.output.open("w", encoding="utf-8") as file:
        for length, number in itertools.product(args.lengths, range(args.count)):
            token_ids: list[int] = []
            while len(token_ids) < length:
                token_ids += tokenizer(next(supply) + "\n\n", add_special_tokens=False)["input_ids"]
            text = tokenizer.decode(token_ids[:length]) + REQUEST
            question = {"question_id": f"{length}-{number}", "category": f"{length} tokens", "turns": [text]}
            file.write(json.dumps(question, ensure_ascii=False) + "\n")


if __name__ == "__main__":
    main()
