"""Tunes a mask for a model, keeps it in a file, and compares the acceptance length tau before and after.

The model answers prompts plainly; the mask, one vector of the embedding space, learns to guess the token two ahead in those
answers. No weight changes, and no token of any answer: only the number of calls does (docs/masks.md).

    jax-probe-mtp tune-masks --model MODEL --output mask.safetensors        # 195 prompts and 300 steps, minutes on a GPU
    jax-probe-mtp generate --model MODEL --prompt TEXT --masks mask.safetensors

Here it is done in Python, with few prompts and few steps, so that a CPU is done in some minutes:

    python tune_a_mask.py --model HuggingFaceTB/SmolLM2-135M-Instruct --output mask.safetensors
"""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from checkpoints_convert import load_checkpoint
from jax_probe_mtp import Checkpoint, Settings, generate
from jax_probe_mtp.tuning import TunedMasks, TuneSettings, load_masks, save_masks, tune_masks

TOPICS = ("rain", "bread", "trains", "chess", "bees", "the moon", "glass", "salt", "tea", "maps", "wool", "tides")
ASKED = ("Explain {} in three sentences.", "Write a short story about {}.")
PROMPTS = [form.format(topic) for topic in TOPICS for form in ASKED]
OTHERS = ["How do I keep a plant alive?", "Describe a street in the morning.", "Why do people sing?", "Plan a picnic."]


def tuned_on(checkpoint: Checkpoint, prompts: Sequence[str], settings: Settings, how: TuneSettings) -> TunedMasks:
    """Lets the model answer, 20 prompts or more, and tunes on the answers."""
    answers = generate(checkpoint, prompts, draft="plain", settings=settings)
    return tune_masks(checkpoint, [(answer.prompt_ids, answer.token_ids) for answer in answers], how)


def tau_of(checkpoint: Checkpoint, prompts: Sequence[str], settings: Settings, **draft: Any) -> tuple[float, list]:
    """Gives tau, tokens of decode calls over decode calls, and the tokens."""
    answers = generate(checkpoint, prompts, settings=settings, **draft)
    tau = sum(answer.committed for answer in answers) / sum(answer.calls for answer in answers)
    return tau, [answer.token_ids for answer in answers]


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", required=True)
    parser.add_argument("--output", type=Path, default=Path("mask.safetensors"))
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--max-new-tokens", type=int, default=48)
    args = parser.parse_args(argv)
    checkpoint = load_checkpoint(args.model, dtype="float32")
    settings = Settings(max_new_tokens=args.max_new_tokens, batch_size=8)

    how = TuneSettings(steps=args.steps, look_every=10, batch_size=4, micro_batch=4)
    save_masks(tuned_on(checkpoint, PROMPTS, settings, how), args.output)
    masks = load_masks(args.output, checkpoint)  # refused with another model than it was tuned for

    others = checkpoint, OTHERS, settings
    plain, plain_ids = tau_of(*others, draft="plain")
    before, before_ids = tau_of(*others, draft="probe:14@mask_init=mean")  # the paper's mask
    after, after_ids = tau_of(*others, draft="probe:14@mask_init=tuned", shared=masks.shared)
    print(f"best step {masks.about['best_step']} of {args.steps}, from {masks.about['start']}")
    print(f"tau on {len(OTHERS)} other prompts: plain {plain:.3f}, mean {before:.3f}, tuned {after:.3f}")
    print("the same tokens" if plain_ids == before_ids == after_ids else "other tokens: a bug")


if __name__ == "__main__":
    main()
