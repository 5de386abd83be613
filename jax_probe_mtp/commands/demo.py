"""`demo` as a command: a real model answers two prompts, and every token is compared with plain decoding's."""

import argparse
import importlib.resources
import sys
from pathlib import Path
from typing import Any

import jax

from jax_probe_mtp.commands import demo_model
from jax_probe_mtp.commands.cache_folder import cache_folder
from jax_probe_mtp.commands.verify.report import show
from jax_probe_mtp.decoding.settings import Settings
from jax_probe_mtp.drafting.spec import DEFAULT_DRAFT, PLAIN, draft_name, parse_draft, with_tuned_masks
from jax_probe_mtp.files.records.record import Record
from jax_probe_mtp.generation.decoder import Decoder
from jax_probe_mtp.jobs.encode import Encoder
from jax_probe_mtp.sameness import verdicts
from jax_probe_mtp.sameness.compare import answers_of, compare
from jax_probe_mtp.tuning.masks_file import load_masks

DEMO_PROMPTS = ("Write a Python function that adds two numbers.", "What is the capital of France?")
DEMO_TOKENS = 48
MASKS = Path(str(importlib.resources.files("jax_probe_mtp") / "tuning" / "SmolLM2-135M-Instruct.safetensors"))


def add_command(commands: Any) -> None:
    """Adds the command to the parser's."""
    demo = commands.add_parser("demo", help="fetch SmolLM2-135M-Instruct, answer two prompts, show the proof")
    demo.set_defaults(command=_demo)


def _demo(args: argparse.Namespace) -> int:
    from checkpoints_convert import load_checkpoint

    checkpoint = load_checkpoint(_converted_model(cache_folder()), dtype="float32")
    records = [Record(index=i, id=i, prompt=prompt) for i, prompt in enumerate(DEMO_PROMPTS)]
    prompts, settings = list(map(Encoder(checkpoint.tokenizer), records)), Settings(max_new_tokens=DEMO_TOKENS)
    untuned = parse_draft(DEFAULT_DRAFT)
    tuned, masks = with_tuned_masks(untuned), load_masks(MASKS, checkpoint)
    says = "decoding three times: plainly, with one mask and 14 drafts a call, and with a mask tuned for this model"
    print(f"{says}; comparing every token", file=sys.stderr)
    plain = answers_of(Decoder(checkpoint, parse_draft(PLAIN)), prompts, settings)
    for answer in plain:
        print(f"\n> {DEMO_PROMPTS[int(answer.id)]}\n{answer.text}\n")
    status = 0
    for source, shared in ((untuned, None), (tuned, masks.shared)):
        found = compare(checkpoint, prompts, source, settings, shared=shared, plain_answers=plain)
        print(f"{draft_name(source)}:")
        status = max(status, verdicts.status_of(verdicts.summary(show(found))))
    if jax.default_backend() == "cpu":
        print(
            "(a CPU's call takes longer the more rows it has; fewer calls pay where reading the weights is the limit)",
            file=sys.stderr,
        )
    return status


def _converted_model(folder: Path) -> Path:
    """Gives the converted model, and makes it if it is not there; of several demos at once the first one's is everyone's."""
    from checkpoints_convert import convert_gguf, is_converted

    converted = folder / "SmolLM2-135M-Instruct"
    if is_converted(converted):
        return converted
    print(f"fetching SmolLM2-135M-Instruct (98 MB) into {folder}", file=sys.stderr)
    try:
        convert_gguf(demo_model.fetch(folder), converted)
    except (ValueError, OSError):  # whatever it was: the other's is whole
        if not is_converted(converted):
            raise
        print(f"another demo was faster: using its {converted}", file=sys.stderr)
    return converted
