"""Measures `generate` on a file at several batch sizes: busy rows, the host's time between chunks, tokens a second.

    python scripts/measure/throughput.py --model MODEL --input F.jsonl --batch-sizes 1,8 \
        --drafts "plain;probe:14" --output R.json
    python scripts/measure/throughput.py --model MODEL --random 1000 --longest 400 \
        --batch-sizes 16 --drafts probe:14 --output R.json

Each draft and batch size decodes the same prompts with the same settings; its first pass, which compiles, is not counted.
They take turns, so that a machine that slows down slows all of them.
"""

import argparse
import dataclasses
import json
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from jax_probe_mtp.commands import draft_options, options
from jax_probe_mtp.decoding.batch import make_batch
from jax_probe_mtp.decoding.settings import Prompt, Settings
from jax_probe_mtp.drafting.source import DraftSource
from jax_probe_mtp.drafting.spec import parse_draft
from jax_probe_mtp.errors import Parser, exit_status, positive, positives
from jax_probe_mtp.files import whole_files
from jax_probe_mtp.files.prompt_file import PromptFile
from jax_probe_mtp.generation.answers import Stats
from jax_probe_mtp.generation.decoder import Decoder
from jax_probe_mtp.generation.groups import AnyDecoder
from jax_probe_mtp.measuring.environment import environment
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.mesh import make_mesh, parse_mesh


def main(argv: Sequence[str] | None = None) -> int:
    """Decodes the prompts with every draft at every batch size; prints the figures and writes the record."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_model(parser)
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--input", type=Path, help="as for generate")
    source.add_argument("--random", type=positive, metavar="N", help="so many prompts of random ids instead")
    options.add_template(parser)
    parser.add_argument("--longest", type=positive, default=400, help="tokens of the longest random prompt")
    parser.add_argument("--batch-sizes", type=positives, default="1,8")
    parser.add_argument("--drafts", default="plain;probe:14", help="as --runs of bench")
    draft_options.add_masks(parser)
    parser.add_argument("--max-new-tokens", type=positive, default=64)
    parser.add_argument("--calls-per-chunk", type=positive, default=Settings().calls_per_chunk)
    parser.add_argument("--mesh", metavar="data=D,tensor=T", help="as for generate; batch sizes are the whole mesh's")
    parser.add_argument("--times", type=positive, default=1, metavar="N", help="asks every prompt so many times")
    parser.add_argument("--repeats", type=positive, default=1)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args(argv)
    whole_files.check_files({"--output": args.output}, [args.input, args.masks])
    masks, runs = draft_options.MasksFlags(args), {name: parse_draft(name) for name in args.drafts.split(";")}
    for draft_source in runs.values():
        masks.check(draft_source)
    checkpoint = options.load(args, make_mesh(*parse_mesh(args.mesh)) if args.mesh else None)
    masks.check_model(checkpoint)
    prompts = _prompts(args, checkpoint) * args.times
    cells = [(draft, size) for size in args.batch_sizes for draft in runs]
    decoders = {draft: Decoder(checkpoint, source, shared=masks.shared(source)) for draft, source in runs.items()}
    passes: dict[tuple[str, int], list[Stats]] = {cell: [] for cell in cells}
    tokens: dict[tuple[str, int], list[list[int]]] = {}
    for repeat in range(1 + args.repeats):
        for draft, size in cells:
            settings = Settings(
                max_new_tokens=args.max_new_tokens,
                batch_size=size,
                calls_per_chunk=args.calls_per_chunk,
            )
            # A short pass compiles: a prompt of each padded length is enough.
            some = prompts if repeat else _one_of_each_length(checkpoint, runs[draft], prompts, settings)
            stream = decoders[draft].stream(prompts, settings)
            stream.stats = Stats()
            got = _decode(stream, some)
            if repeat:
                tokens[draft, size] = got
                passes[draft, size].append(stream.stats)
                print(f"{draft}, batch {size}: {stream.stats}", file=sys.stderr, flush=True)
    rows = [_row(cell, passes[cell], tokens) for cell in cells]
    print(json.dumps(rows, indent=1))
    if args.output:
        made_with = environment(checkpoint.number_format)
        given = {
            name: Path(value).name if name in ("model", "input", "masks") else value
            for name, value in vars(args).items()
            if value
        }
        record = {
            "arguments": {name: value for name, value in given.items() if name != "output"},
            "prompts": len(prompts),
            **masks.said,
        }
        whole_files.write_json(args.output, record | {"environment": made_with, "runs": rows})
    return 0


def _prompts(args: argparse.Namespace, checkpoint: Any) -> list[Prompt]:
    if args.input:
        return list(map(options.encoder(args, checkpoint.tokenizer), PromptFile(args.input)))
    draw = random.Random(0)
    vocabulary = checkpoint.config.vocab_size
    return [
        Prompt(id=i, token_ids=[draw.randrange(vocabulary) for _ in range(draw.randint(1, args.longest))])
        for i in range(args.random)
    ]


def _one_of_each_length(
    checkpoint: Checkpoint, source: DraftSource, prompts: list[Prompt], settings: Settings
) -> list[Prompt]:
    eos = checkpoint.eos_token_ids
    batches = [make_batch(checkpoint.config, source, [prompt], settings, eos_token_ids=eos) for prompt in prompts]
    of_length = {batch.prompt_BT.shape: prompt for batch, prompt in zip(batches, prompts, strict=True)}
    return [dataclasses.replace(prompt, max_new_tokens=2) for prompt in of_length.values()]


def _decode(stream: AnyDecoder, prompts: list[Prompt]) -> list[list[int]]:
    answers = {number: answer for update in stream.run(enumerate(prompts)) for number, answer in update.finished}
    return [answers[number].token_ids for number in range(len(prompts))]


def _row(cell: tuple[str, int], passes: list[Stats], tokens: dict[tuple[str, int], list[list[int]]]) -> dict[str, Any]:
    stats = sorted(passes, key=lambda stats: stats.seconds)[len(passes) // 2]  # the median pass
    first = next(iter(tokens.values()))
    same = np.mean([a == b for a, b in zip(tokens[cell], first, strict=True)])
    more = {
        "seconds_of_passes": [round(stats.seconds, 3) for stats in passes],
        "equal_to_the_first_setting": float(same),
    }
    return {"draft": cell[0], "batch_size": cell[1]} | stats.as_json() | more


if __name__ == "__main__":
    sys.exit(exit_status(main))
