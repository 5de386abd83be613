"""Decodes on one device and on several: which combinations crash, a process for each, and do tokens differ?

    python scripts/stress/meshes.py --shape qwen2.5-0.5b --layers 4 --meshes tensor=2 data=2 --output R.json
    python scripts/stress/meshes.py --model MODEL --input F.jsonl --meshes tensor=2 --exact --output R.json

Without --model, weights and prompts are random. Each process decodes the same prompts on one device and on the mesh, in the
same way of drafting. In float32 all tokens must be the same. In bfloat16 they are where a device runs the same program on as
many rows (`data=D`); a sum over devices rounds otherwise. With --exact the answers of the mesh are compared with those of plain
decoding at one row, by as many devices as share the weights: all must be the same. A process that crashes costs only its own
combination; the record has the end of what it wrote.
"""

import argparse
import concurrent.futures
import dataclasses
import functools
import itertools
import json
import random
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from checkpoints_convert import load_checkpoint
from jax_probe_mtp import Prompt, Settings
from jax_probe_mtp.drafting.spec import PLAIN, parse_draft
from jax_probe_mtp.errors import Parser, exit_status, positive
from jax_probe_mtp.files.prompt_file import PromptFile
from jax_probe_mtp.files.whole_files import check_files, write_json
from jax_probe_mtp.generation.decoder import Decoder
from jax_probe_mtp.jobs.encode import Encoder
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.mesh import make_mesh, parse_mesh, sharded_params
from jax_probe_mtp.model.params import random_params

sys.path.insert(0, str(Path(__file__).parents[1] / "measure"))
from shapes import SHAPES

NUM_PROMPTS, LONGEST_PROMPT = 6, 200  # the longest is prefilled in a piece of its own length
SECONDS = 900  # a combination that takes longer hangs


def main(argv: Sequence[str] | None = None) -> int:
    """Prints a line for each combination; exit status 1 where one failed or float32 tokens differ."""
    parser = Parser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=sorted(SHAPES), default="qwen2.5-0.5b")
    parser.add_argument("--layers", type=positive, default=4)
    parser.add_argument("--model", help="a checkpoint instead, with --input")
    parser.add_argument("--input", type=Path, metavar="F.jsonl", help="as for generate")
    parser.add_argument("--limit", type=positive, default=12, metavar="N", help="so many of its prompts")
    parser.add_argument("--exact", action="store_true", help="the exact mode, against plain decoding at one row")
    parser.add_argument("--formats", nargs="+", default=["float32", "bfloat16", "int8"], metavar="FORMAT")
    parser.add_argument(
        "--drafts", nargs="+", default=["plain", "probe:14", "recycle:30", "merged:16"], metavar="DRAFT"
    )
    parser.add_argument("--meshes", nargs="+", default=["tensor=2", "data=2"], metavar="M")
    parser.add_argument("--batch-size", type=positive, default=4)
    parser.add_argument("--max-new-tokens", type=positive, default=32)
    parser.add_argument("--processes", type=positive, default=1, help="at a time")
    parser.add_argument("--output", type=Path, metavar="R.json")
    parser.add_argument(
        "--one", nargs=3, metavar=("FORMAT", "DRAFT", "M"), help="this combination alone, in this process"
    )
    args = parser.parse_args(argv)
    if args.one:
        print(json.dumps(compare(args, *args.one)))
        return 0
    check_files({"--output": args.output}, [args.input])
    if (args.model is None) != (args.input is None):
        raise ValueError("--model and --input belong together: give both, or neither for random weights and prompts.")
    for mesh in args.meshes:
        parse_mesh(mesh)
    with concurrent.futures.ThreadPoolExecutor(args.processes) as threads:
        combinations = itertools.product(args.formats, args.drafts, args.meshes)
        runs = list(threads.map(lambda one: run_apart(argv, args, one), combinations))
    if args.output:
        of = {"model": Path(args.model).name} if args.model else {"shape": args.shape, "layers": args.layers}
        write_json(args.output, of | {"exact": args.exact, "runs": runs})
    must_be_same = [run for run in runs if args.exact or run["format"] == "float32"]
    return int(any("error" in run for run in runs) or any(run["same"] < run["of"] for run in must_be_same))


def run_apart(argv: Sequence[str] | None, args: argparse.Namespace, one: tuple[str, str, str]) -> dict[str, Any]:
    """Runs a combination in a process of its own, and says what came of it."""
    given = list(sys.argv[1:] if argv is None else argv)
    run: dict[str, Any] = dict(zip(("format", "draft", "mesh"), one, strict=True))
    try:
        done = subprocess.run(
            [sys.executable, __file__, *given, "--one", *one],
            capture_output=True,
            text=True,
            timeout=SECONDS,
            check=False,
        )
        status, out, errors = done.returncode, done.stdout, done.stderr
    except subprocess.TimeoutExpired:
        status, out, errors = -1, "", f"nothing came within {SECONDS} s"
    if status:
        run |= {"status": status, "error": errors[-2000:]}
    else:
        run |= json.loads(out.splitlines()[-1])
    says = (
        f"status {status}: {errors.strip().splitlines()[-1:]}"
        if status
        else "{same} of {of} same, {tau:.2f}".format(**run)
    )
    print(*one, says, flush=True)
    return run


def compare(args: argparse.Namespace, form: str, draft: str, mesh_name: str) -> dict[str, Any]:
    """Decodes on one device and on the mesh."""
    data, tensor = parse_mesh(mesh_name)
    make = functools.partial(_loaded if args.model else _random, args, form)
    several = make(make_mesh(data, tensor))
    prompts = _questions(args, several) if args.model else _random_prompts(several.config.vocab_size)

    def answers(checkpoint: Checkpoint, draft: str, batch_size: int) -> list[Any]:
        settings = Settings(
            max_new_tokens=args.max_new_tokens, batch_size=batch_size, capacity=512, is_exact=args.exact
        )
        return list(Decoder(checkpoint, parse_draft(draft)).run(prompts, settings))

    if args.exact:
        one = answers(make(make_mesh(1, tensor) if tensor > 1 else None), PLAIN, 1)
    else:
        one = answers(make(None), draft, args.batch_size // data)
    got = answers(several, draft, args.batch_size)
    calls, committed = (sum(getattr(a, name) for a in got) for name in ("calls", "committed"))
    return {
        "same": sum(a.token_ids == b.token_ids for a, b in zip(one, got, strict=True)),
        "of": len(prompts),
        "calls_of_one": sum(a.calls for a in one),
        "calls": calls,
        "tau": committed / calls,
    }


def _dtype_and_weights(form: str) -> tuple[str, str | None]:
    return ("bfloat16", form) if form == "int8" else (form, None)


def _loaded(args: argparse.Namespace, form: str, mesh: Mesh | None) -> Checkpoint:
    dtype, weights = _dtype_and_weights(form)
    return load_checkpoint(args.model, dtype=dtype, weights=weights, mesh=mesh)


def _questions(args: argparse.Namespace, checkpoint: Checkpoint) -> list[Prompt]:
    records = itertools.islice(PromptFile(args.input), args.limit)
    return list(map(Encoder(checkpoint.tokenizer, use_chat_template=True), records))


def _random(args: argparse.Namespace, form: str, mesh: Mesh | None) -> Checkpoint:
    """Makes a model of random weights, the same on any devices."""
    cfg = dataclasses.replace(SHAPES[args.shape], num_layers=args.layers)
    dtype, weights = _dtype_and_weights(form)
    params = random_params(cfg, jax.random.key(0), jnp.dtype(dtype), weights)

    def spread(leaf: jax.Array, wanted: jax.ShapeDtypeStruct) -> jax.Array:
        padding = [(0, after - before) for before, after in zip(leaf.shape, wanted.shape, strict=True)]
        return jax.device_put(np.pad(np.asarray(leaf), padding), wanted.sharding)

    if mesh is not None:
        params = jax.tree.map(spread, params, sharded_params(cfg, mesh, jnp.dtype(dtype), weights))
    return Checkpoint(params=params, config=cfg, tokenizer=None, eos_token_ids=(0,), name="random")


def _random_prompts(vocab_size: int) -> list[Prompt]:
    draw = random.Random(0)
    return [
        Prompt(id=i, token_ids=[draw.randrange(vocab_size) for _ in range(1 + i * LONGEST_PROMPT // NUM_PROMPTS)])
        for i in range(NUM_PROMPTS)
    ]


if __name__ == "__main__":
    sys.exit(exit_status(main))
