"""Checks outputs of another framework against a model, and reads the verdict from Python: here a dump of vLLM's.

A line of the dump is one `RequestOutput` of vLLM as JSON: `request_id`, `prompt`, `prompt_token_ids` and `outputs`, each with
`index`, `text`, `token_ids` and `finish_reason`. `vllm_dump.jsonl` beside this file was made by hand: SmolLM2-135M's greedy
answers to three prompts, with one token of the request "changed" replaced. The model is the one that `jax-probe-mtp demo`
fetches; answers of its original in bfloat16 differ.

    jax-probe-mtp verify --model SmolLM2-135M-Instruct.Q4_1.gguf --outputs vllm_dump.jsonl
    python verify_vllm_dump.py --model SmolLM2-135M-Instruct.Q4_1.gguf

`verify_file` reads every format, prompts of a file of their own, statistics and causes of the whole file (docs/verify.md).
`verdicts_of_ids` checks token ids that are in memory, with no file.
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path

from checkpoints_convert import load_checkpoint
from jax_probe_mtp import Checkpoint, Prompt, Settings, verify_file
from jax_probe_mtp.sameness.given_outputs import examine
from jax_probe_mtp.sameness.output import Output

DUMP = Path(__file__).parent / "vllm_dump.jsonl"


def verdicts_of_ids(checkpoint: Checkpoint, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[str]:
    """Gives "same", "tie" or "diverged" for each pair of prompt and greedy output, in token ids."""
    outputs = [
        Output(prompt=Prompt(id=number, token_ids=prompt_ids), token_ids=token_ids, limit=len(token_ids))
        for number, (prompt_ids, token_ids) in enumerate(pairs)
    ]
    return [found.verdict.kind for found in examine(checkpoint, outputs, Settings())]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--outputs", type=Path, default=DUMP)
    args = parser.parse_args(argv)

    checkpoint = load_checkpoint(args.model, dtype="float32")
    found = verify_file(checkpoint, args.outputs)
    print(*found.says, *found.lines, sep="\n")
    print(f"status {found.status}, {found.counts['diverged']} of {len(found.verdicts)} outputs diverged")
    for verdict in found.verdicts:
        if verdict.kind == "diverged" and (place := verdict.difference) is not None:
            print(f"{verdict.id}: token {place.position} is {place.other_token}, the model's own {place.plain_token},")
            print(f"which it likes more by {place.gap:.2f} nats; a tie is up to {place.tolerance:.1e}")

    requests = [json.loads(line) for line in args.outputs.read_text(encoding="utf-8").splitlines()]
    pairs = [(each["prompt_token_ids"], each["outputs"][0]["token_ids"]) for each in requests]
    print(verdicts_of_ids(checkpoint, pairs))


if __name__ == "__main__":
    main()
