"""Measures how much faster outputs are checked than made: `verify --outputs` beside plain decoding, text after text.

    python scripts/measure/check_speed.py --model MODEL --input F.jsonl --max-new-tokens 100 --batch-sizes 1,8 --output R.json

Both run once before they are timed, so that nothing is compiled within; neither time includes loading and tokenizing. Checking
makes the verdicts and the report on the file, with what it says of causes. Where
an output is neither the same nor tied, which rounding to bfloat16 can bring about, the record says so and the exit status is 1.
"""

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from jax_probe_mtp.commands import options
from jax_probe_mtp.decoding.settings import Settings
from jax_probe_mtp.drafting.spec import PLAIN, parse_draft
from jax_probe_mtp.errors import Parser, exit_status, positive, positives
from jax_probe_mtp.files import whole_files
from jax_probe_mtp.files.prompt_file import PromptFile
from jax_probe_mtp.generation.decoder import Decoder
from jax_probe_mtp.measuring.environment import environment
from jax_probe_mtp.model.fingerprint import model_identity
from jax_probe_mtp.sameness import verdicts
from jax_probe_mtp.sameness.file_report import FileReport
from jax_probe_mtp.sameness.output import Output


def main(argv: Sequence[str] | None = None) -> int:
    """Decodes, checks, prints and writes the record; gives 1 where an output diverged."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_model(parser)
    parser.add_argument("--input", type=Path, required=True, help="as for generate")
    options.add_template(parser)
    parser.add_argument("--max-new-tokens", type=positive, default=100)
    parser.add_argument("--batch-sizes", type=positives, default="1,8", help="texts that are checked at a time")
    parser.add_argument("--repeats", type=positive, default=3)
    parser.add_argument("--capacity", type=int, help="of decoding, as for generate: with --prompt-slots, one program")
    parser.add_argument("--prompt-slots", type=int)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(argv)
    whole_files.check_files({"--output": args.output}, [args.input])
    checkpoint = options.load(args)
    prompts = list(map(options.encoder(args, checkpoint.tokenizer), PromptFile(args.input)))
    settings = Settings(max_new_tokens=args.max_new_tokens, capacity=args.capacity, prompt_slots=args.prompt_slots)
    decoder = Decoder(checkpoint, parse_draft(PLAIN))
    decode_seconds: list[float] = []
    check_seconds: dict[int, list[float]] = {size: [] for size in args.batch_sizes}
    totals: dict[int, dict[str, Any]] = {}
    for _ in range(1 + args.repeats):
        start = time.perf_counter()
        answers = list(decoder.run(prompts, settings))
        decode_seconds.append(time.perf_counter() - start)
        outputs = [
            Output(prompt=prompt, token_ids=answer.token_ids, limit=prompt.of("max_new_tokens", settings))
            for prompt, answer in zip(prompts, answers, strict=True)
        ]
        for size, seconds in check_seconds.items():
            start = time.perf_counter()
            report = FileReport(checkpoint=checkpoint, settings=Settings(batch_size=size))
            found = list(report.verdicts(outputs))
            report.lines(checkpoint.name)
            seconds.append(time.perf_counter() - start)
            totals[size] = verdicts.summary(found)
    decoding = statistics.median(decode_seconds[1:])
    record = {
        "records": len(prompts),
        "new_tokens": sum(len(answer.token_ids) for answer in answers),
        "seconds_of_decoding": decoding,
        "seconds_of_checking": {size: statistics.median(seconds[1:]) for size, seconds in check_seconds.items()},
        "times_faster": {size: decoding / statistics.median(seconds[1:]) for size, seconds in check_seconds.items()},
        "found": {size: verdicts.counts_line(totals[size]) for size in check_seconds},
    }
    print(json.dumps(record, indent=1))
    if args.output:
        made_with = environment(checkpoint.number_format)
        whole_files.write_json(args.output, record | {"model": model_identity(checkpoint), "environment": made_with})
    return max(verdicts.status_of(totals[size]) for size in check_seconds)


if __name__ == "__main__":
    sys.exit(exit_status(main))
