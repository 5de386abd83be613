"""`--tree auto` as `generate` and `verify` have it: the tree that pays, and a word on stderr."""

import dataclasses
import sys
from collections.abc import Sequence

from jax_probe_mtp.commands.cache_folder import cache_folder
from jax_probe_mtp.decoding.batch import make_batch
from jax_probe_mtp.decoding.settings import Prompt, Settings
from jax_probe_mtp.drafting.source import DraftSource
from jax_probe_mtp.drafting.spec import PLAIN, parse_draft
from jax_probe_mtp.errors import one_line
from jax_probe_mtp.measuring import tree_choice
from jax_probe_mtp.model.checkpoint import Checkpoint


def choose_tree(
    checkpoint: Checkpoint, prompts: Sequence[Prompt], template: DraftSource, settings: Settings
) -> tree_choice.Choice:
    """Chooses the tree that pays for these prompts, and checks them first. Where there are none, settings have a capacity."""
    if prompts:
        if settings.batch_size >= 1:  # else it is `choose` that says so
            settings = dataclasses.replace(settings, batch_size=min(settings.batch_size, len(prompts)))
        plain, eos = parse_draft(PLAIN), checkpoint.eos_token_ids
        one_row = dataclasses.replace(settings, batch_size=1)
        batches = [make_batch(checkpoint.config, plain, [prompt], one_row, eos_token_ids=eos) for prompt in prompts]
        settings = dataclasses.replace(settings, capacity=max(batch.config.capacity for batch in batches))
    try:
        folder = cache_folder() / "auto_tree"
    except ValueError as error:
        print(f"what a call costs is not kept: {one_line(error)}", file=sys.stderr)
        folder = None

    def say(line: str) -> None:
        print(line, file=sys.stderr, flush=True)

    return tree_choice.choose(checkpoint, settings, template=template, folder=folder, say=say)
