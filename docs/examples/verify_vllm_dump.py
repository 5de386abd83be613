"""Checks outputs of another framework against a model, and reads the verdict from Python: here a dump of vLLM's.

A line of the dump is one `RequestOutput` of vLLM as JSON: `request_id`, `prompt`, `prompt_token_ids` and `outputs`, each with
`index`, `text`, `token_ids` and `finish_reason`. `vllm_dump.jsonl` beside this file was made by hand: SmolLM2-135M's greedy
answers to three prompts, with one token of the request "changed" replaced. The model is the one that `jax-probe-mtp demo`
fetches; answers of its original in bfloat16 differ.

    jax-probe-mtp verify --model SmolLM2-135M-Instruct.Q4_1.gguf --outputs vllm_dump.jsonl
    python verify_vllm_dump.py --model SmolLM2-135M-Instruct.Q4_1.gguf

`verdicts_of_file` runs the command and reads its `--json`: every format, prompts of `--input`, statistics and causes of the
whole file (docs/verify.md). `verdicts_of_ids` checks token ids that are in memory, with no file and no process.
"""

import argparse
import json
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from checkpoints_convert import load_checkpoint
from jax_probe_mtp import Checkpoint, Prompt, Settings
from jax_probe_mtp.commands.main import main as jax_probe_mtp
from jax_probe_mtp.sameness.given_outputs import Output, judge

DUMP = Path(__file__).parent / "vllm_dump.jsonl"


def verdicts_of_file(model: str, outputs: Path, *flags: str) -> tuple[int, dict[str, Any]]:
    """Gives the command's exit status, 1 where an output diverged, and what it found.

    Of what it found, `records` holds a verdict for each output, `summary` the counts, `file` what the tokens say together.
    """
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.json"
        files = ["--outputs", str(outputs), "--json", str(report)]
        status = jax_probe_mtp(["verify", "--model", model, *files, *flags])
        if not report.exists():
            raise ValueError(f"verify ended with {status}; it says why on stderr.")
        return status, json.loads(report.read_text(encoding="utf-8"))


def verdicts_of_ids(checkpoint: Checkpoint, pairs: Sequence[tuple[Sequence[int], Sequence[int]]]) -> list[str]:
    """Gives "same", "tie" or "diverged" for each pair of prompt and greedy output, in token ids."""
    outputs = [
        Output(prompt=Prompt(id=number, token_ids=prompt_ids), token_ids=token_ids, limit=len(token_ids))
        for number, (prompt_ids, token_ids) in enumerate(pairs)
    ]
    return [verdict.kind for verdict in judge(checkpoint, outputs, Settings())]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--outputs", type=Path, default=DUMP)
    args = parser.parse_args(argv)

    status, found = verdicts_of_file(args.model, args.outputs)
    print(f"exit status {status}, {found['summary']['diverged']} of {len(found['records'])} outputs diverged")
    for record in found["records"]:
        if record["kind"] == "diverged":
            place = record["difference"]
            print(
                f"{record['id']}: token {place['position']} is {place['token']}, the model's own {place['plain_token']},"
            )
            print(f"which it likes more by {place['gap']:.2f} nats; a tie is up to {place['tolerance']:.1e}")

    requests = [json.loads(line) for line in args.outputs.read_text(encoding="utf-8").splitlines()]
    pairs = [(each["prompt_token_ids"], each["outputs"][0]["token_ids"]) for each in requests]
    print(verdicts_of_ids(load_checkpoint(args.model, dtype="float32"), pairs))


if __name__ == "__main__":
    main()
