"""Answers a file of prompts on several devices: weights split over `tensor` of them, batch rows over `data` groups.

`--input` holds one `{"id": ..., "prompt": ...}` a line. The command does all of it, and goes on where a kill left it
(docs/batch.md):

    jax-probe-mtp generate --model MODEL --input prompts.jsonl --output answers.jsonl --mesh data=2,tensor=4 --batch-size 8

In Python the checkpoint is loaded onto a mesh, and `generate` is called as on one device; the tokens are the same:

    python prompts_on_a_mesh.py --model MODEL --input prompts.jsonl --output answers.jsonl --data 2 --tensor 4

`tensor` divides the model's kv heads and mlp width, `data` the batch size. Without several devices, XLA makes some of a CPU;
SmolLM2-135M has 3 kv heads:

    XLA_FLAGS=--xla_force_host_platform_device_count=6 JAX_PLATFORMS=cpu python prompts_on_a_mesh.py --data 2 --tensor 3 \
      --model HuggingFaceTB/SmolLM2-135M-Instruct --input prompts.jsonl --output answers.jsonl
"""

import argparse
import json
from pathlib import Path

from checkpoints_convert import load_checkpoint
from jax_probe_mtp import Settings, generate
from jax_probe_mtp.model.mesh import make_mesh


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--input", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--data", type=int, default=1)
    parser.add_argument("--tensor", type=int, default=1)
    parser.add_argument("--draft", default="probe:14")
    parser.add_argument("--max-new-tokens", type=int, default=32)
    args = parser.parse_args(argv)

    mesh = make_mesh(args.data, args.tensor)  # of jax.devices(); each device reads its part of the weights alone
    checkpoint = load_checkpoint(args.model, dtype="float32", mesh=mesh)
    records = [json.loads(line) for line in args.input.read_text(encoding="utf-8").splitlines()]
    rows = -(-len(records) // args.data) * args.data  # a multiple of the groups; rows without a prompt are idle
    answers = generate(
        checkpoint,
        [record["prompt"] for record in records],
        draft=args.draft,
        settings=Settings(max_new_tokens=args.max_new_tokens, batch_size=min(rows, 8 * args.data)),
    )
    with args.output.open("w", encoding="utf-8") as file:
        for record, answer in zip(records, answers, strict=True):
            said = {"id": record["id"], "prompt_ids": answer.prompt_ids, "token_ids": answer.token_ids}
            file.write(json.dumps({**said, "text": answer.text}) + "\n")
    tokens, calls = (sum(getattr(answer, name) for answer in answers) for name in ("committed", "calls"))
    print(f"{len(answers)} answers on data={args.data},tensor={args.tensor}: {tokens} tokens in {calls} decode calls")


if __name__ == "__main__":
    main()
