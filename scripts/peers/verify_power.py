"""Measures how well `verify --outputs` tells planted outputs from honest ones: AUC by number of tokens, and causes named.

    python scripts/peers/planted_outputs.py --help          # makes the files
    python scripts/peers/verify_power.py --model MODEL --outputs FOLDER --output R.json

Each KIND.jsonl of the folder is examined under the model in float32. A block is so many tokens in the order of the file; its
clipped mean margin is compared with those of the honest kinds, whose names begin with "honest". Causes are asked of the whole
file and of random halves of its answers. Kinds whose records state a temperature are judged as draws of unknown seeds, and,
as NAME@greedy, as if they were greedy. The honest kinds come first, and the record is written anew after each kind.
"""

import argparse
import dataclasses
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from checkpoints_convert import load_checkpoint
from jax_probe_mtp.decoding.settings import Prompt, Settings
from jax_probe_mtp.errors import Parser, exit_status, positive
from jax_probe_mtp.files.output_file import OutputFile
from jax_probe_mtp.files.whole_files import check_files, write_json
from jax_probe_mtp.measuring.environment import environment
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.sameness import verdicts
from jax_probe_mtp.sameness.evidence import MARGIN_CLIP
from jax_probe_mtp.sameness.file_report import FileReport
from jax_probe_mtp.sameness.output import Examined, Output

SIZES = (25, 50, 100, 150, 300)
HONEST = "honest"


def main() -> int:
    """Prints a line a kind and writes the record."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--outputs", type=Path, required=True, metavar="FOLDER")
    parser.add_argument("--batch-size", type=positive, default=32)
    parser.add_argument("--subsets", type=positive, default=20, help="random halves that causes are asked of")
    parser.add_argument("--output", type=Path, metavar="R.json")
    args = parser.parse_args()
    check_files({"--output": args.output}, [])
    paths = sorted(args.outputs.glob("*.jsonl"), key=lambda path: (not path.name.startswith(HONEST), path.name))
    if not paths or not paths[0].name.startswith(HONEST):
        raise ValueError(f"{args.outputs} holds no {HONEST}*.jsonl, with which others are compared.")
    checkpoint = load_checkpoint(args.model, dtype="float32")
    record: dict[str, Any] = {"environment": environment("float32"), "batch_size": args.batch_size, "kinds": {}}
    kinds, margins = record["kinds"], {}
    for path in paths:
        outputs = outputs_of(path)
        is_drawn = any(output.prompt.temperature for output in outputs)
        for name, greedy in [(path.stem, False), *([(f"{path.stem}@greedy", True)] if is_drawn else [])]:
            kinds[name], margins[name] = measure(checkpoint, outputs, args, greedy)
            print(name, kinds[name]["causes"] or "no cause", flush=True)
        honest = [name for name in margins if name.startswith(HONEST)]
        for name, found in kinds.items():
            found["auc_by_tokens"] = {size: auc(margins, name, honest, size) for size in SIZES}
        if args.output:
            write_json(args.output, record)
    return 0


def outputs_of(path: Path) -> list[Output]:
    """Reads a kind; its records hold token ids, of the prompt too, and the temperature and cuts of draws."""
    found = []
    for given in OutputFile(path):
        record = given.record
        how: dict[str, Any] = {"temperature": record.temperature, "top_p": record.top_p}
        prompt = Prompt(id=record.id, token_ids=record.prompt_ids or [], **how)
        found.append(Output(prompt=prompt, token_ids=given.token_ids or [], limit=record.max_new_tokens))
    return found


def measure(
    checkpoint: Checkpoint, outputs: Sequence[Output], args: argparse.Namespace, greedy: bool
) -> tuple[dict[str, Any], np.ndarray]:
    """Examines a kind twice, the second time for the clock; gives what was found, and the margins of its tokens."""
    if greedy:
        outputs = [
            dataclasses.replace(each, prompt=dataclasses.replace(each.prompt, temperature=0)) for each in outputs
        ]
    settings, examined = Settings(batch_size=args.batch_size), list[Examined]()
    for _ in range(2):
        report = FileReport(checkpoint=checkpoint, settings=settings, knows_seeds=False)
        examined.clear()
        report.of_each = examined.append
        start = time.perf_counter()
        totals = verdicts.summary(report.verdicts(outputs))
        seconds = time.perf_counter() - start
    draw, named = random.Random(0), Counter[str]()
    for _ in range(args.subsets):
        part = FileReport(checkpoint=checkpoint, settings=settings, knows_seeds=False)
        for each in draw.sample(examined, max(len(examined) // 2, 1)):  # examined once: that takes the time
            part.add(each)
        named[part.causes[0].split(":")[0] if part.causes else "none"] += 1
    found = {
        **report.as_json(),
        "verdicts": {kind: totals[kind] for kind in verdicts.KINDS},
        "seconds": seconds,
        "causes_of_halves": dict(named.most_common()),
    }
    margins = [
        np.asarray(each.choices.best_score_BA - each.choices.given_score_BA) for each in examined if each.choices
    ]
    return found, np.minimum(np.concatenate(margins), MARGIN_CLIP)


def auc(margins: dict[str, np.ndarray], name: str, honest: Sequence[str], size: int) -> float | None:
    """Gives the chance that a block of a kind has a larger mean margin than an honest one; ties count half."""

    def blocks(name: str) -> np.ndarray:
        count = len(margins[name]) // size
        return margins[name][: count * size].reshape(count, size).mean(1)

    good, other = np.concatenate([blocks(each) for each in honest]), blocks(name)
    if not len(good) or not len(other):
        return None
    return float((other[:, None] > good).mean() + (other[:, None] == good).mean() / 2)


if __name__ == "__main__":
    sys.exit(exit_status(main))
