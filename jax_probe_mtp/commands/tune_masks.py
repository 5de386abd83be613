"""`tune-masks` as a command: the model answers prompts, and masks are tuned on its answers."""

import argparse
import contextlib
import dataclasses
import datetime
import importlib.resources
import json
import logging
import shutil
import sys
import time
from pathlib import Path
from typing import Any

from tqdm import tqdm

from jax_probe_mtp.commands import options
from jax_probe_mtp.decoding.settings import Settings
from jax_probe_mtp.drafting.spec import PLAIN, parse_draft
from jax_probe_mtp.errors import local_file
from jax_probe_mtp.files.json_lines import json_lines
from jax_probe_mtp.files.prompt_file import PromptFile
from jax_probe_mtp.files.run_file import Begun, begun
from jax_probe_mtp.files.whole_files import check_files, write_json
from jax_probe_mtp.jobs.job import EXIT_ERRORS, Job
from jax_probe_mtp.jobs.made_by import made_by
from jax_probe_mtp.jobs.survey import survey
from jax_probe_mtp.model.checkpoint import Checkpoint
from jax_probe_mtp.model.mesh import check_mesh, make_mesh, parse_mesh
from jax_probe_mtp.tuning import masks, masks_file, texts, tune
from jax_probe_mtp.tuning.loss import HIT_SIZES

OWN_PROMPTS = "prompts.jsonl"  # beside the package's tuning/
ROWS = 16  # of the batch that answers


def add_command(commands: Any) -> None:
    """Adds the command to the parser's."""
    usual = masks.TuneSettings()
    tuning = commands.add_parser(
        "tune-masks", allow_abbrev=False, help="tune mask vectors on the model's own answers; no weight is changed"
    )
    options.add_model(tuning)
    tuning.add_argument(
        "--input",
        type=local_file,
        metavar="F.jsonl",
        help='what the model answers, one {"id": ..., "prompt": ...} a line (default: prompts of the package\'s own)',
    )
    tuning.add_argument(
        "--output",
        type=local_file,
        required=True,
        metavar="M.safetensors",
        help="the masks; until then, FILE.run/ is kept",
    )
    tuning.add_argument(
        "--num-masks", type=int, default=usual.num_masks, metavar="K", help="1 to 3, one a depth (default: %(default)s)"
    )
    tuning.add_argument("--steps", type=int, default=usual.steps, metavar="N", help="of Adam (default: %(default)s)")
    tuning.add_argument(
        "--texts-per-step",
        type=int,
        default=usual.batch_size,
        metavar="B",
        help="answers of a step (default: %(default)s)",
    )
    tuning.add_argument(
        "--texts-at-a-time",
        type=int,
        metavar="B",
        help="of these, how many are in memory; fewer take less of it (default: all)",
    )
    tuning.add_argument(
        "--learning-rate",
        type=float,
        default=usual.learning_rate,
        metavar="R",
        help="of the first step, in deviations of the embedding table (default: %(default)s)",
    )
    tuning.add_argument(
        "--max-new-tokens",
        type=int,
        default=options.NEW_TOKENS,
        metavar="N",
        help="tokens of an answer at most (default: %(default)s)",
    )
    tuning.add_argument(
        "--max-length",
        type=int,
        default=usual.max_length,
        metavar="N",
        help="leave out texts of more tokens (default: %(default)s)",
    )
    tuning.add_argument(
        "--batch-size",
        type=int,
        default=ROWS,
        metavar="B",
        help="answers that are made at a time (default: %(default)s)",
    )
    tuning.add_argument(
        "--seed", type=int, default=usual.seed, metavar="S", help="of the order of the texts (default: %(default)s)"
    )
    tuning.add_argument("--mesh", metavar="data=D,tensor=T", help="split over D x T devices (default: one device)")
    options.add_template(tuning)
    tuning.set_defaults(command=_tune_masks)


def _tune_masks(args: argparse.Namespace) -> int:
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    logging.getLogger("jax_probe_mtp").setLevel("INFO")
    if args.output.exists():
        raise ValueError(f"--output {args.output} exists; name another, or delete it to tune again.")
    check_files({"--output": args.output}, [args.input])
    settings = masks.TuneSettings(
        num_masks=args.num_masks,
        steps=args.steps,
        batch_size=args.texts_per_step,
        micro_batch=args.texts_per_step if args.texts_at_a_time is None else args.texts_at_a_time,
        learning_rate=args.learning_rate,
        max_length=args.max_length,
        seed=args.seed,
    )
    prompts = PromptFile(args.input or own_prompts())
    if prompts.num_records > prompts.num_lines:
        raise ValueError(
            f"{prompts.path} asks for several answers to a prompt, but one of each is tuned on; leave n out."
        )
    if prompts.num_records < texts.MIN_TEXTS:
        raise ValueError(
            f"{prompts.path} holds {prompts.num_records} prompts, too few to tune on: give {texts.MIN_TEXTS}."
        )
    opened = options.open_model(args)
    mesh = make_mesh(*parse_mesh(args.mesh)) if args.mesh else None
    data, tensor = (1, 1) if mesh is None else mesh.devices.shape
    for size in (args.batch_size, settings.micro_batch):
        check_mesh(opened.config, size, data, tensor)
    most = -(-prompts.num_records // data) * data
    how_to_answer = Settings(max_new_tokens=args.max_new_tokens, batch_size=min(args.batch_size, most), capacity=1)
    how_to_answer.check(opened.config, parse_draft(PLAIN), num_shards=data)
    folder = args.output.with_name(args.output.name + ".run")
    folder.mkdir(exist_ok=True)
    _check_prompts(prompts, folder)
    checkpoint = opened.load(mesh)
    status = _answer(args, prompts, checkpoint, how_to_answer, folder / "answers.jsonl")
    if status not in (0, EXIT_ERRORS):
        return status
    answers = [answer for *_, answer in json_lines(folder / "answers.jsonl") if not answer.get("error")]
    pairs = [(answer["prompt_ids"], answer["token_ids"]) for answer in answers]
    tuned = _tune(checkpoint, pairs, settings, folder / "steps")
    about = tuned.about["texts"]
    about |= {"prompts": prompts.path.name, "left_out": prompts.num_records - about["tuned_on"] - about["held_back"]}
    masks_file.save_masks(tuned, args.output)
    shutil.rmtree(folder)
    print(
        f"{about['tuned_on']} answers tuned on, {about['held_back']} held back, {about['left_out']} left out",
        file=sys.stderr,
    )
    rates = ", ".join(f"{rate:.3f}" for rate in tuned.about["hits"][0])
    sizes = ", ".join(map(str, tuned.about["hit_sizes"]))
    print(
        f"{args.output}: {len(tuned.masks_MD)} x {tuned.masks_MD.shape[1]} numbers, of step {tuned.about['best_step']}"
    )
    print(f"the token two ahead is among the first mask's best {sizes} in {rates} of held-back places")
    return 0


def own_prompts() -> Path:
    """Gives the package's own prompts, made for tuning: short questions of many kinds."""
    return Path(str(importlib.resources.files("jax_probe_mtp") / "tuning" / OWN_PROMPTS))


def _check_prompts(prompts: PromptFile, folder: Path) -> None:
    """Refuses to go on with the answers to other prompts; keeps by what the run's are known."""
    path, digest = folder / "prompts.json", prompts.digest()
    there = None
    if path.exists():
        with contextlib.suppress(ValueError):
            there = json.loads(path.read_bytes())
        if there != digest:
            raise ValueError(
                f"{folder} holds a run that began with other prompts than {prompts.path} has now; delete that folder to begin "
                f"anew, or give the prompts that it had."
            )
    write_json(path, digest)


def _answer(
    args: argparse.Namespace, prompts: PromptFile, checkpoint: Checkpoint, settings: Settings, output: Path
) -> int:
    """Lets the model answer the prompts, in their order; goes on where an earlier run was cut off."""
    before = begun(output)
    at = before.at if before else datetime.datetime.now()
    encode = dataclasses.replace(options.encoder(args, checkpoint.tokenizer), date=at)
    capacity = survey(prompts, checkpoint.config, encode, dataclasses.replace(settings, capacity=None)).capacity
    settings = dataclasses.replace(settings, capacity=capacity)
    run = made_by(
        checkpoint,
        settings,
        Begun(at, False),
        encode,
        draft=PLAIN,
    )
    plain = parse_draft(PLAIN)
    return Job(prompts, output, run, checkpoint, plain, settings, encode=encode, is_ordered=True).run()


def _tune(
    checkpoint: Checkpoint, pairs: list[texts.Pair], settings: masks.TuneSettings, folder: Path
) -> masks.TunedMasks:
    """Tunes under a bar, with a line for every look at the answers that are held back."""
    began: list[tuple[float, int]] = []  # when and at which step
    with tqdm(total=settings.steps, unit="step", file=sys.stderr, disable=None) as bar:

        def report(step: int, loss: float | None, look: masks.Look | None) -> None:
            began.append((time.monotonic(), step))
            bar.update(step - bar.n)
            if look is None:
                bar.set_postfix_str(f"loss {loss:.3f}", refresh=False)
                return
            loss_says = "" if look.loss is None else f"loss {look.loss:.3f}, "
            rates = ", ".join(f"{of_mask[HIT_SIZES.index(masks.KEPT_BY)]:.3f}" for of_mask in look.hits)
            line = f"step {step} of {settings.steps}: {loss_says}among a mask's best {masks.KEPT_BY}: {rates}"
            bar.write(line + _time_left(began, settings.steps), file=sys.stderr)

        return tune.tune_masks(checkpoint, pairs, settings, folder=folder, report=report)


def _time_left(began: list[tuple[float, int]], steps: int) -> str:
    """Says how long the steps left take, by those since the second of this run: the first one compiles."""
    if len(began) < 3 or began[-1][1] == steps:
        return ""
    (start, first), (now, step) = began[1], began[-1]
    return f", about {tqdm.format_interval((now - start) / (step - first) * (steps - step))} left"
