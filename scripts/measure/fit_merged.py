"""Fits the weights that a merged draft begins with, on what a model accepted while it answered questions.

    python scripts/measure/fit_merged.py collect --model MODEL --questions F.jsonl --skip 2 --rows 32 --output A.json
    python scripts/measure/fit_merged.py fit A.json B.json --output weights.json

`collect` answers the questions with `merged:ROWS` and counts, of every child of an accepted node, what was known of it and
whether it was accepted. `fit` finds the weights that make this likeliest; each file counts alike.
"""

import argparse
import json
import sys
from collections import Counter
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from checkpoints_convert import load_checkpoint
from jax_probe_mtp.commands.options import NEW_TOKENS
from jax_probe_mtp.decoding.batch import make_batch
from jax_probe_mtp.decoding.settings import Settings
from jax_probe_mtp.decoding.trace import trace
from jax_probe_mtp.drafting import NO_TOKEN, parse_draft
from jax_probe_mtp.drafting.merged import acceptance
from jax_probe_mtp.drafting.merged.facts import FIRST_WEIGHT, GROUPS, NUM_WEIGHTS, Facts, chosen
from jax_probe_mtp.drafting.spec import with_tuned_masks
from jax_probe_mtp.errors import Parser, exit_status, positive
from jax_probe_mtp.files.questions import read_questions
from jax_probe_mtp.files.whole_files import check_files, write_files, write_json
from jax_probe_mtp.measuring.bench import read_prompts
from jax_probe_mtp.tuning.masks_file import load_masks

PADDED = 256  # prompts are padded to a multiple, so that few programs are compiled
PRIOR = 1e-4  # of the squares of the weights, beside the mean log-likelihood


def main() -> int:
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(dest="command", required=True)
    collect_parser = commands.add_parser("collect")
    collect_parser.add_argument("--model", required=True)
    collect_parser.add_argument("--masks", type=Path, metavar="FILE", help="tuned masks (default: untuned ones)")
    collect_parser.add_argument(
        "--questions", required=True, type=Path, metavar="F.jsonl", help="in Spec-Bench's format"
    )
    collect_parser.add_argument("--skip", type=int, default=2, metavar="N", help="the first N of each category")
    collect_parser.add_argument("--count", type=positive, metavar="N", help="of the rest only N, spread evenly")
    collect_parser.add_argument("--max-new-tokens", type=positive, default=NEW_TOKENS, metavar="N")
    collect_parser.add_argument("--rows", type=positive, default=32)
    collect_parser.add_argument("--output", required=True, type=Path, metavar="N.json")
    fit_parser = commands.add_parser("fit")
    fit_parser.add_argument("notes", nargs="+", type=Path, metavar="N.json")
    fit_parser.add_argument("--output", required=True, type=Path, metavar="weights.json")
    args = parser.parse_args()
    check_files({"--output": args.output}, args.notes if args.command == "fit" else [args.questions, args.masks])
    return {"collect": collect, "fit": fit}[args.command](args)


def collect(args: argparse.Namespace) -> int:
    """Answers questions and writes what was known of the children of accepted nodes, how often, and how often accepted."""
    checkpoint = load_checkpoint(args.model, dtype="float32")
    source, shared = parse_draft(f"merged:{args.rows}"), None
    if args.masks:
        source, shared = with_tuned_masks(source), load_masks(args.masks, checkpoint).shared
    seen: Counter[str] = Counter()
    questions = []
    for question in read_questions(args.questions):
        seen[question.category] += 1
        if seen[question.category] > args.skip:
            questions.append(question)
    if args.count and args.count < len(questions):
        questions = [questions[i] for i in np.linspace(0, len(questions) - 1, args.count).astype(int)]
    times: Counter[int] = Counter()
    accepted: Counter[int] = Counter()
    calls = tokens = 0
    prompts, _ = read_prompts(checkpoint, questions, args.max_new_tokens, use_chat_template=True)
    for number, prompt in enumerate(prompts, start=1):
        capacity = -(-(len(prompt.token_ids) + args.max_new_tokens) // 1024) * 1024
        settings = Settings(max_new_tokens=args.max_new_tokens, capacity=capacity)
        batch = make_batch(checkpoint.config, source, [prompt], settings, eos_token_ids=checkpoint.eos_token_ids)
        padding = min(-batch.prompt_BT.shape[1] % PADDED, capacity + 1 - batch.prompt_BT.shape[1])
        batch = batch.replace(prompt_BT=jnp.pad(batch.prompt_BT, ((0, 0), (0, padding))))
        for traced in trace(checkpoint.params, batch, checkpoint.config, source, shared):
            tree, path = jax.device_get((traced.call.tree, traced.call.accepted.node_BP[0]))
            for node in range(1, source.num_nodes):
                if tree.token_BN[0, node] != NO_TOKEN and tree.parent_BN[0, node] in path:
                    times[int(tree.note_BN[0, node])] += 1
                    accepted[int(tree.note_BN[0, node])] += int(node in path)
        calls += int(traced.after.calls_B[0])
        tokens += int(traced.after.length_B[0]) - len(prompt.token_ids)
        print(f"{number} of {len(prompts)}: tau {tokens / max(calls, 1):.3f}", flush=True)
    notes = sorted(times)
    write_json(
        args.output, {"note": notes, "times": [times[i] for i in notes], "accepted": [accepted[i] for i in notes]}
    )
    return 0


def fit(args: argparse.Namespace) -> int:
    """Fits by L-BFGS, prints the mean log-likelihood before and after, and writes the weights."""
    notes = [{name: np.asarray(x) for name, x in json.loads(path.read_text()).items()} for path in args.notes]
    number_Xg = jnp.concatenate([_numbers(part["note"]) for part in notes])
    share_X = jnp.concatenate([part["times"] / part["times"].sum() / len(notes) for part in notes])
    accepted_X = jnp.concatenate([part["accepted"] / part["times"].sum() / len(notes) for part in notes])

    def cost(weight_F: jax.Array) -> jax.Array:
        sum_X = jnp.sum(weight_F[number_Xg], axis=1)
        return jnp.sum(share_X * jax.nn.softplus(sum_X) - accepted_X * sum_X)

    def with_prior(weight_F: jax.Array) -> jax.Array:
        return cost(weight_F) + PRIOR * jnp.mean(weight_F**2)

    weight_F = minimum(with_prior, jnp.zeros(NUM_WEIGHTS))
    print(f"{int(sum(part['times'].sum() for part in notes))} candidates, {len(number_Xg)} different")
    for name, weights in (("before", jnp.asarray(acceptance.shipped_weights())), ("fitted", weight_F)):
        print(f"{name}: {float(cost(weights)):.5f} nats a candidate")
    lines = [
        f" {json.dumps(group)}: {json.dumps([round(float(x), 3) for x in weight_F[first : first + GROUPS[group]]])}"
        for group, first in FIRST_WEIGHT.items()
    ]
    write_files(args.output.parent, {args.output.name: "{\n" + ",\n".join(lines) + "\n}\n"})
    return 0


def _numbers(note_X: np.ndarray) -> jax.Array:
    weights = chosen(Facts.unpack(jnp.asarray(note_X)))
    return jnp.stack([FIRST_WEIGHT[group] + i_X for group, i_X in weights.items()], axis=-1)


def minimum(function: Any, start: jax.Array, steps: int = 300) -> jax.Array:
    """Finds the minimum of a smooth function near `start`."""
    rule = optax.lbfgs()
    value_and_grad = optax.value_and_grad_from_state(function)

    @jax.jit
    def step(at: jax.Array, state: Any) -> tuple[jax.Array, Any]:
        value, gradient = value_and_grad(at, state=state)
        update, state = rule.update(gradient, state, at, value=value, grad=gradient, value_fn=function)
        return optax.apply_updates(at, update), state

    at, state = start, rule.init(start)
    for _ in range(steps):
        at, state = step(at, state)
    return at


if __name__ == "__main__":
    sys.exit(exit_status(main))
